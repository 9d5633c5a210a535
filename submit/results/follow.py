"""Following a batch: its records into files, once in the order of the input, or live in the order of finishing."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, Self

from jobs.batch import Batch
from jobs.errors import WaitTimeoutError
from jobs.store.cancel import current
from jobs.store.store import Store
from submit.results.destination import Destination
from submit.results.formats import renderer
from submit.results.output import Output
from submit.results.read import StoredRecord, finished_records, ordered_records
from submit.results.summary import Tally
from submit.status.text import duration
from submit.status.waiting import read_outlooks
from submit.status.workers import Workers

if TYPE_CHECKING:
    from submit.results.tables.card import Card

POLL_S = 0.2
LOOK_S = 1.0
"""How often the workers' states are read, for progress only."""
OUTAGE_S = 300.0
"""A Redis that was reached once may be away for this long before following is given up."""

Clock = Callable[[], float]
Sleep = Callable[[float], None]


class Sink(Protocol):
    """Where records go: :class:`submit.results.output.Output`, or a table's file."""

    tally: Tally

    def put(self, record: StoredRecord) -> None: ...

    def flush(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, /, *error: object) -> None: ...


class Watcher(Protocol):
    """Shows how a batch gets on: :class:`submit.status.progress.Progress`, or a test."""

    def update(self, batch: Batch, waiting: str | None = None) -> None: ...

    def note(self, text: str) -> None: ...


def write_results(store: Store, batch_id: str, destination: Destination) -> tuple[Batch, Tally]:
    """Write the records that there are now, in the order of the input. The files appear whole, replacing older ones.

    Returns:
        The batch as it was just before its records were read, and how its lines ended.

    Raises:
        BatchNotFoundError: there is no such batch, or it was purged meanwhile.
        RefusedError, PromptmillError: a file cannot be written.
    """
    card = _card(destination)
    with _output(destination, store, store.batch(batch_id)) as output:
        batch = current(store, batch_id)
        for record in ordered_records(store.connection, batch_id):
            output.put(record)
            if card is not None:
                card.add(record)
    if card is not None:
        from submit.results.tables.open import columns_of, files_of

        card.write(batch, files_of(destination, output), columns_of(store, batch, output), store.now())
    return batch, output.tally


def _card(destination: Destination) -> Card | None:
    """The card of a table, if there is to be one.

    Raises:
        RefusedError: a README.md is there that is none of ours.
    """
    if not destination.card or destination.out is None:
        return None
    from submit.results.tables.card import Card

    card = Card(destination.out)
    card.see_that_it_may_be_written()
    return card


def follow_results(
    store: Store,
    batch_id: str,
    destination: Destination,
    *,
    progress: Watcher | None = None,
    timeout: float | None = None,
    poll_s: float = POLL_S,
    clock: Clock = time.monotonic,
    sleep: Sleep = time.sleep,
    on_poll: Callable[[Batch], None] | None = None,
    at_end: bool = True,
) -> tuple[Batch, Tally]:
    """Write records in the order of finishing until the batch is done. The files begin with what is finished already
    and grow; a format that is whole or nothing is written at the end, unless ``at_end`` leaves
    that to the caller. ``on_poll`` is called with the batch about every ``poll_s`` seconds.

    Returns:
        As :func:`write_results`.

    Raises:
        WaitTimeoutError: the batch was not done after ``timeout`` seconds; what was finished is written.
        And what :func:`write_results` raises.
    """
    begun = clock()
    with contextlib.ExitStack() as stack:
        output = None
        if not destination.whole:
            output = stack.enter_context(_output(destination, store, store.batch(batch_id)))
        poller = _Poller(store, batch_id, output, progress, clock)
        while True:
            batch = poller.poll()
            if output is not None:
                output.flush()
            if batch is not None and batch.done:
                break
            if timeout is not None and clock() - begun >= timeout:
                raise WaitTimeoutError(_too_late(batch_id, timeout, batch))
            if batch is not None and on_poll is not None:
                on_poll(batch)
            sleep(poll_s)
    if output is not None:
        return batch, output.tally
    return write_results(store, batch_id, destination) if at_end else (batch, Tally(destination))


def _output(destination: Destination, store: Store, batch: Batch) -> Sink:
    if destination.table:
        from submit.results.tables.open import table_output

        return table_output(destination, store, batch)
    return Output(destination, renderer(destination, store, batch))


def _too_late(batch_id: str, timeout: float, batch: Batch | None) -> str:
    text = f"batch {batch_id} is not done after {duration(timeout)}: "
    if batch is None:
        return f"{text}Redis is away"
    return f"{text}{batch.finished:,} of {batch.total:,} lines; it goes on without you"


class _Poller:
    """Takes what is new of a batch. Redis may go away between two polls: reading goes on at the position kept."""

    def __init__(
        self, store: Store, batch_id: str, output: Sink | None, progress: Watcher | None, clock: Clock
    ) -> None:
        self._store, self._batch_id, self._output = store, batch_id, output
        self._progress, self._clock = progress, clock
        self._position = 0
        self._workers = Workers(store.connection, clock=clock)
        self._waiting: str | None = None
        self._finished: int | None = None
        self._looked_at: float | None = None
        self._away_since: float | None = None
        self._away_note = ""

    def poll(self) -> Batch | None:
        """One look at Redis; None while it is away, which is waited out."""
        from redis.exceptions import BusyLoadingError, ConnectionError, TimeoutError

        try:
            # The batch first: one that is done by then has all its records.
            batch = current(self._store, self._batch_id)
            if self._output is not None:
                for record in finished_records(self._store.connection, self._batch_id, start=self._position):
                    self._output.put(record)
                    self._position = record.after
            self._show(batch)
        except BusyLoadingError:
            self._away_since = self._clock()  # it comes back: this time is no part of OUTAGE_S
            self._note_away("Redis is loading its data; waiting for it")
            return None
        except (ConnectionError, TimeoutError):
            if self._away_since is None:
                self._away_since = self._clock()
            self._note_away("Redis is away; waiting for it to come back")
            if self._clock() - self._away_since > OUTAGE_S:
                raise
            return None
        if self._away_since is not None:
            self._away_since, self._away_note = None, ""
            self._note("Redis is back")
        return batch

    def _note_away(self, text: str) -> None:
        if self._away_note != text:
            self._away_note = text
            self._note(text)

    def _show(self, batch: Batch) -> None:
        if self._progress is None:
            return
        now = self._clock()
        if self._looked_at is None or now - self._looked_at >= LOOK_S:
            self._looked_at = now
            outlooks = read_outlooks(self._store, self._workers, [batch], self._workers.read())
            waiting = outlooks[batch.id].why_waiting
            # Workers publish once a second; lines that finish speak for themselves.
            self._waiting = waiting if self._finished in (None, batch.finished) else None
            self._finished = batch.finished
        self._progress.update(batch, None if batch.done else self._waiting)

    def _note(self, text: str) -> None:
        if self._progress is not None:
            self._progress.note(text)
