"""The writer: turns ended lines into records, spools them, and stores them, whatever Redis is doing at the moment.

Two threads, so that the spool is complete while Redis is out: the scribe writes records down, the writer delivers them.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import redis.exceptions

from jobs.attempt import Attempt
from jobs.batch import Batch
from jobs.errors import LineError, RefusedError, StaleAttemptError
from jobs.redis.connect import full
from jobs.shard import ShardLine
from jobs.spool import SpoolEntry
from jobs.store.store import FinishedLine, Store
from worker.engine.sequence import Failure
from worker.faults.spool import Spool
from worker.shards.claimed import End, HeldShard, State
from worker.shards.judge import Judges
from worker.shards.records import EndedLine, Observer, record_of, waiting_form

T = TypeVar("T")

log = logging.getLogger("promptmill.worker")

GATHER_S = 0.05
"""How long records may wait for others, so that one round trip stores many; not where somebody waits for them."""
SPOOLED_BYTES = 4 << 20
"""So many bytes of records are spooled at a time, for all lines of a shard may end in one step: or a longer one."""
RETRY_S = (0.2, 0.5, 1.0, 2.0, 5.0)
END_S = 10.0
"""How long a worker that ends waits for Redis to take its last records."""

Outcome = FinishedLine | EndedLine | None
"""What the scribe passes on of a shard: a record, a line to try again, or only the question whether it is done."""


class Writer(threading.Thread):
    """Stores records under their attempt's fence, and finishes shards. Threads: any for :meth:`put`, :meth:`fail`,
    :meth:`check` and the counts; writer for the rest, where a method says nothing else.

    ``on_ended(held, end)`` is called when a shard is done with, ``on_retry(held, index)`` when a line is to be tried
    again, ``on_again(held, index)`` (thread: scribe) when it is to be asked again because its text is not as expected,
    ``on_settled()`` when :attr:`unstored` comes to 0 or to None, or from it. Records go to the ``spool`` first,
    if there is one. ``left`` counts the lines that were put here and are not dealt with yet, ``delivered`` the records
    that Redis has taken.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        on_ended: Callable[[HeldShard, End], None],
        on_retry: Callable[[HeldShard, int], None] = lambda held, index: None,
        spool: Spool | None = None,
        *,
        on_again: Callable[[HeldShard, int], None] = lambda held, index: None,
        observer: Observer | None = None,
        on_settled: Callable[[], None] = lambda: None,
        sleep: Callable[[float], Any] | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(name="writer", daemon=True)
        self._store, self._worker_name, self._now = store, name, now
        self._on_ended, self._on_retry, self._on_settled = on_ended, on_retry, on_settled
        self._on_again, self._judges = on_again, Judges()
        self._spool = spool
        self._observer = observer or Observer()
        self._ended_lines: queue.SimpleQueue[EndedLine | HeldShard | None] = queue.SimpleQueue()
        self._written: queue.Queue[tuple[HeldShard, Outcome] | None] = queue.Queue()
        self._given_up = threading.Event()
        self._count_lock = threading.Lock()
        self.left = self.delivered = 0
        self._sleep = sleep or self._given_up.wait
        self._error: redis.exceptions.RedisError | None = None
        self._delivered_before_outage: int | None = None

    def put(self, line: EndedLine) -> None:
        with self._count_lock:
            self.left += 1
        self._ended_lines.put(line)

    def fail(self, held: HeldShard, line: ShardLine, error: LineError) -> None:
        """Put a line that ``error`` ends: it cannot be read or prepared, or its model cannot be loaded."""
        failure = Failure(error.code, error.at(line.line).text, param=error.field)
        self.put(EndedLine(held, line.index, self._now(), failure))

    def check(self, held: HeldShard) -> None:
        """Finish the shard if no line of it is left: one whose lines all ended in earlier attempts."""
        self._ended_lines.put(held)

    @property
    def unstored(self) -> int | None:
        """What is :attr:`left`; None while Redis is out."""
        return None if self._error is not None else self.left

    def stop(self) -> None:
        """End once all that is queued is stored. Thread: main."""
        self._ended_lines.put(None)

    def give_up(self) -> None:
        """Do not wait for Redis any longer. Thread: main."""
        self._given_up.set()

    def end(self, patience: float = END_S) -> bool:
        """Store what is left, waiting so many seconds for a Redis that is out. Thread: main.

        False: records wait in the spool for this host's next worker. Their shards must not be handed back, or those
        records would be stale.
        """
        self.stop()
        self.join(timeout=patience)
        self.give_up()
        self.join(timeout=patience / 2)
        left = self.left
        if self._spool is not None:
            self._spool.close(delivered=not left)
        if not left:
            return True
        if self._spool is None or not self._spool.usable:
            log.error("%d records could not be delivered; their lines are generated again", left)
            return True
        message = (
            "%d records are not delivered: they are in %s; this host's next worker with that --spool delivers them"
        )
        log.warning(message, left, self._spool.folder, extra={"action": "records_left"})
        return False

    # --- the scribe ---

    def _scribe(self) -> None:
        try:
            running = True
            while running:
                # What has ended by now is in the spool at once, should the worker die.
                items = [self._ended_lines.get()]
                while items[-1] is not None and not self._ended_lines.empty():
                    items.append(self._ended_lines.get())
                running = items[-1] is not None
                self._write_down([item for item in items if item is not None])
        finally:
            self._written.put(None)

    def _write_down(self, items: list[EndedLine | HeldShard]) -> None:
        written: list[tuple[HeldShard, Outcome]] = []
        entries: dict[str, tuple[Batch, list[SpoolEntry]]] = {}
        size = 0
        for item in items:
            if isinstance(item, HeldShard):
                written.append((item, None))
            elif item.held.ended:
                self._settle(1)
            elif item.tried_again:
                written.append((item.held, item))
            else:
                held, record = item.held, record_of(item, self._worker_name, self._judges)
                if record is None:
                    self._on_again(held, item.index)
                    self._settle(1)
                    continue
                written.append((held, waiting_form(item, record, self._worker_name)))
                self._observer.line_ended(item, ok=record.ok)
                job = held.jobs.get(item.index)
                chat = job is None or job.messages is not None
                entry = SpoolEntry(held.attempt.number, held.attempt.fence, chat, record)
                entries.setdefault(held.batch.id, (held.batch, []))[1].append(entry)
                size += len(record.record)
            if size > SPOOLED_BYTES:
                self._pass_on(written, entries)
                written, entries, size = [], {}, 0
        self._pass_on(written, entries)

    def _pass_on(
        self, written: list[tuple[HeldShard, Outcome]], entries: dict[str, tuple[Batch, list[SpoolEntry]]]
    ) -> None:
        """Spool what was written down, then have it delivered."""
        if self._spool is not None:
            for batch, own in entries.values():
                self._spool.append(batch, own)
        for pair in written:
            self._written.put(pair)

    # --- delivering ---

    def run(self) -> None:
        scribe = threading.Thread(target=self._scribe, name="scribe", daemon=True)
        scribe.start()
        while True:
            pairs = [self._written.get()]
            deadline = time.monotonic() + GATHER_S
            while pairs[-1] is not None:
                if pairs[-1][0].batch.answers is not None:
                    deadline = 0.0
                try:
                    pairs.append(self._written.get(timeout=max(deadline - time.monotonic(), 0)))
                except queue.Empty:
                    break
            self._deliver([pair for pair in pairs if pair is not None])
            if self._written.empty() and self._error is None:
                self._note_return()
            if pairs[-1] is None:
                break
        scribe.join()

    def _deliver(self, pairs: list[tuple[HeldShard, Outcome]]) -> None:
        lines: dict[str, list[FinishedLine]] = defaultdict(list)
        shards: dict[str, HeldShard] = {}
        for held, outcome in pairs:
            shards[held.job_id] = held
            if isinstance(outcome, EndedLine):
                self._try_again(outcome)
                self._settle(1)
            elif outcome is not None:
                lines[held.job_id].append(outcome)
        for job_id, held in shards.items():
            with contextlib.suppress(redis.exceptions.RedisError):  # given up: end() says what is left
                self._store_records(held, lines[job_id])
                self._finish(held)

    def _settle(self, lines: int) -> None:
        """So many lines are dealt with. Threads: writer and scribe; holds the lock."""
        with self._count_lock:
            self.left -= lines
            settled = lines > 0 and self.left == 0
        if settled:
            self._on_settled()

    def _try_again(self, line: EndedLine) -> None:
        """Give a line another attempt."""
        held, index = line.held, line.index
        try:
            failed = self._under(held, lambda attempt: self._store.fail(attempt, index))
        except redis.exceptions.RedisError as error:
            log.error("gave up noting a failed attempt at line %d of %s: %s", index, held.job_id, error)
            return
        if failed is None:
            return
        held.attempt.tries[index] = failed
        message = "attempt %d at line %d of %s failed: %s; trying it again by itself"
        reason = line.failure.message if line.failure is not None else ""
        log.warning(message, failed, index, held.job_id, reason, extra={"action": "line_retried"})
        self._observer.line_retried(held.group)
        self._on_retry(held, index)

    def _store_records(self, held: HeldShard, lines: list[FinishedLine]) -> None:
        def write(attempt: Attempt) -> bool:
            self._store.write(attempt, lines)
            return True

        stored = self._under(held, write) if lines else None
        if stored:
            held.keep(lines)
            self.delivered += len(lines)
        self._settle(len(lines))

    def _finish(self, held: HeldShard) -> None:
        """End a shard whose lines all have their records, or which waited for them to go back."""

        def finish(attempt: Attempt) -> bool:
            return self._store.finish(attempt, len(held.lines), own=held.own_records)

        if not held.remaining:
            finished = self._under(held, finish)
            if finished:
                self._end(held, End.FINISHED)
            elif finished is not None:
                log.warning(
                    "Redis lost records of %s; its lines go back", held.job_id, extra={"action": "records_lost"}
                )
                self._end(held, End.RETURNED)
        elif held.state is State.IDLE:
            self._end(held, End.RETURNED)

    def _under(self, held: HeldShard, step: Callable[[Attempt], T]) -> T | None:
        """Have Redis take something under the shard's attempt: a new one where this worker took it up again meanwhile.
        None: the shard has ended."""
        while not held.ended:
            attempt = held.attempt
            try:
                return self.persistently(partial(step, attempt))
            except StaleAttemptError as stale:
                if self._end(held, End.LOST, under=attempt):
                    log.warning("%s; its lines are dropped here", stale, extra={"action": "lease_lost"})
            except RefusedError as error:
                if self._end(held, End.REFUSED):
                    log.error("%s; the shard goes back", error, extra={"action": "refuse_shard"})
        return None

    def _end(self, held: HeldShard, end: End, *, under: Attempt | None = None) -> bool:
        """Bring a shard to its end; False where it has not ended by this."""
        if not held.end(under=under):
            return False
        try:
            self._on_ended(held, end)
        except redis.exceptions.RedisError as error:
            if not self._given_up.is_set():
                log.error("shard %s has ended, but is not closed in RQ's books: %s", held.job_id, error)
        return True

    # --- outages ---

    def persistently(self, step: Callable[[], T]) -> T:
        """Try until Redis takes it: what was generated is not thrown away because Redis is out for minutes.

        What is no outage is raised: :class:`StaleAttemptError`, :class:`RefusedError`.
        """
        tries = 0
        while self._error is None or not self._given_up.is_set():
            try:
                result = step()
            except (StaleAttemptError, RefusedError):
                self._note_answer(None)
                raise
            except redis.exceptions.RedisError as error:
                self._note_answer(error)
                self._sleep(RETRY_S[min(tries, len(RETRY_S) - 1)])
                tries += 1
            else:
                self._note_answer(None)
                return result
        raise self._error

    def _note_answer(self, error: redis.exceptions.RedisError | None) -> None:
        """Redis has answered, or with this error it has not."""
        if error is not None and self._delivered_before_outage is None:
            self._note_outage(error)
        before, self._error = self._error, error
        if (before is None) is not (error is None):
            self._on_settled()

    def _note_outage(self, error: redis.exceptions.RedisError) -> None:
        self._delivered_before_outage = self.delivered
        kept = "memory" if self._spool is None or not self._spool.usable else f"{self._spool.folder}"
        if full(error):
            message = "Redis is full: raise its maxmemory; until then finished records are kept in %s"
            log.error(message, kept, extra={"action": "redis_full"})
        else:
            message = "Redis is out (%s); until it is back finished records are kept in %s"
            log.warning(message, error, kept, extra={"action": "redis_out"})

    def _note_return(self) -> None:
        before, self._delivered_before_outage = self._delivered_before_outage, None
        if before is not None:
            delivered = self.delivered - before
            log.warning("Redis is back: delivered %d records", delivered, extra={"action": "redis_back"})
