"""Following a batch: its records into files, once in the order of the input, or live in the order of finishing."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from jobs.batch import Batch
from jobs.errors import WaitTimeoutError
from jobs.store.cancel import current
from jobs.store.orphans import known_orphans
from jobs.store.store import Store
from submit.results.formats import make_format
from submit.results.output import Output
from submit.results.read import StoredRecord, finished_records, ordered_records
from submit.status.pool_pause import pool_known_paused
from submit.status.text import duration
from submit.status.waiting import why_waiting
from submit.status.workers import Workers

__all__ = ["POLL_S", "Watcher", "write_results"]

POLL_S = 0.2
LOOK_S = 1.0
"""How often the workers' states are read, for progress only."""
OUTAGE_S = 300.0
"""A Redis that was reached once may be away for this long before following is given up."""

Clock = Callable[[], float]
Sleep = Callable[[float], None]


class Watcher(Protocol):
    """Shows how a batch gets on: :class:`submit.status.progress.Progress`, or a test."""

    def update(self, batch: Batch, waiting: str | None = None) -> None: ...

    def note(self, text: str) -> None: ...


def write_results(
    store: Store,
    batch_id: str,
    out: Path | None,
    *,
    errors: Path | None = None,
    follow: bool = False,
    fmt: str = "native",
    keep_cut: bool = False,
    progress: Watcher | None = None,
    timeout: float | None = None,
    poll_s: float = POLL_S,
    clock: Clock = time.monotonic,
    sleep: Sleep = time.sleep,
    observe: Callable[[StoredRecord], None] | None = None,
    on_poll: Callable[[Batch], None] | None = None,
) -> Batch:
    """Write a batch's records to ``out`` (None or ``-``: stdout) and those of failed lines to ``errors``.

    Without ``follow``: what there is now, in the order of the input; the files appear whole, replacing older
    ones. With ``follow``: in the order of finishing until the batch is done; the files begin with what is
    finished already and grow. ``errors`` None is beside ``out``, and is written only when a line failed.
    ``fmt`` and ``keep_cut`` are those of :func:`submit.results.formats.make_format`.
    ``observe`` sees each record; ``on_poll`` is called with the batch about every ``poll_s`` seconds.

    Returns:
        The batch as it was when its last records were read.

    Raises:
        WaitTimeoutError: the batch was not done after ``timeout`` seconds; what was finished is written.
        BatchNotFoundError: there is no such batch, or it was purged meanwhile.
        RefusedError, PromptmillError: a file cannot be written.
    """
    shape = make_format(fmt, store, store.batch(batch_id), keep_cut=keep_cut)
    output = Output(out, errors, shape)

    def take(record: StoredRecord) -> None:
        output.put(record)
        if observe is not None:
            observe(record)

    try:
        if follow:
            loop = _Loop(store, batch_id, progress, clock, sleep)
            batch = loop.run(take, output.flush, timeout, poll_s, on_poll)
        else:
            batch = current(store, batch_id)
            for record in ordered_records(store.connection, batch_id):
                take(record)
        output.close()
    except BaseException:
        output.abandon()
        raise
    return batch


class _Loop:
    """Polls until the batch is done. Redis may go away between two polls: reading goes on at the position kept."""

    def __init__(self, store: Store, batch_id: str, progress: Watcher | None, clock: Clock, sleep: Sleep) -> None:
        self._store, self._batch_id, self._progress = store, batch_id, progress
        self._clock, self._sleep = clock, sleep
        self._position = 0
        self._workers = Workers(store.connection, clock=clock)
        self._waiting: str | None = None
        self._finished: int | None = None
        self._looked_at: float | None = None
        self._away_since: float | None = None
        self._said_away = ""

    def run(
        self,
        take: Callable[[StoredRecord], None],
        flush: Callable[[], None],
        timeout: float | None,
        poll_s: float,
        on_poll: Callable[[Batch], None] | None,
    ) -> Batch:
        begun = self._clock()
        while True:
            batch = self._poll(take)
            flush()
            if batch is not None and batch.done:
                return batch
            if timeout is not None and self._clock() - begun >= timeout:
                raise WaitTimeoutError(self._late(timeout, batch))
            if batch is not None and on_poll is not None:
                on_poll(batch)
            self._sleep(poll_s)

    def _poll(self, take: Callable[[StoredRecord], None]) -> Batch | None:
        """One look at Redis; None while it is away, which is waited out."""
        from redis.exceptions import BusyLoadingError, ConnectionError, TimeoutError

        try:
            # The batch first: one that is done by then has all its records.
            batch = current(self._store, self._batch_id)
            for record in finished_records(self._store.connection, self._batch_id, start=self._position):
                take(record)
                self._position = record.after
            self._show(batch)
        except BusyLoadingError:
            self._away_since = self._clock()  # it comes back, and has taken no time of its patience
            self._say_away("Redis is loading its data; waiting for it")
            return None
        except (ConnectionError, TimeoutError):
            now = self._clock()
            if self._away_since is None:
                self._away_since = now
            self._say_away("Redis is away; waiting for it to come back")
            if now - self._away_since > OUTAGE_S:
                raise
            return None
        if self._away_since is not None:
            self._away_since = None
            self._said_away = ""
            self._note("Redis is back")
        return batch

    def _say_away(self, text: str) -> None:
        if self._said_away != text:
            self._said_away = text
            self._note(text)

    def _show(self, batch: Batch) -> None:
        if self._progress is None:
            return
        now = self._clock()
        if self._looked_at is None or now - self._looked_at >= LOOK_S:
            self._looked_at = now
            states = self._workers.read()
            queues = self._workers.queues_of(batch.id, states)
            orphans = known_orphans(self._store.connection, [batch.id]).get(batch.id)
            waiting = why_waiting(batch, queues, states, pool_paused=pool_known_paused(self._store), orphans=orphans)
            # Workers publish once a second; lines that finish speak for themselves.
            self._waiting = waiting if self._finished in (None, batch.finished) else None
            self._finished = batch.finished
        self._progress.update(batch, None if batch.done else self._waiting)

    def _note(self, text: str) -> None:
        if self._progress is not None:
            self._progress.note(text)

    def _late(self, timeout: float, batch: Batch | None) -> str:
        if batch is None:
            return f"batch {self._batch_id} is not done after {duration(timeout)}: Redis is away"
        return (
            f"batch {batch.id} is not done after {duration(timeout)}: {batch.finished:,} of {batch.total:,} lines; "
            "it goes on without you"
        )
