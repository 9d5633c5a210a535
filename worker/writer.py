"""The writer thread: turns ended lines into records and stores them, whatever Redis is doing at the moment."""

from __future__ import annotations

import enum
import logging
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import redis.exceptions

from jobs.errors import LineError, StaleAttemptError
from jobs.record import Choice, RunStats, error_record, result_record
from jobs.store import FinishedLine, Store
from worker.held import HeldShard

if TYPE_CHECKING:
    from worker.compute import ServedModel
    from worker.engine.sequence import Finished

__all__ = ["End", "EndedLine", "FailedLine", "Writer"]

T = TypeVar("T")

log = logging.getLogger("promptmill.worker")

GATHER_S = 0.05
"""How long finished lines may wait for others, so that one round trip stores many."""
RETRY_S = (0.2, 0.5, 1.0, 2.0, 5.0)


class End(enum.Enum):
    """How a shard ends on this worker."""

    FINISHED = "finished"
    LOST = "lost"
    """Its lease went to another worker, and whatever this one still does for it is void."""
    INCOMPLETE = "incomplete"
    """Redis no longer has all records that were stored, as after a crash: the rest must be generated again."""


@dataclass(frozen=True, slots=True)
class EndedLine:
    """A line the engine is done with."""

    held: HeldShard
    index: int
    served: ServedModel
    finished: Finished
    at: float


@dataclass(frozen=True, slots=True)
class FailedLine:
    """A line that failed outside the engine: it could not be read, prepared, or its model not loaded."""

    held: HeldShard
    index: int
    code: str
    message: str
    param: str | None
    at: float


class Writer(threading.Thread):
    """Stores records under their attempt's fence, and finishes shards.

    ``on_ended(held, end)`` is called when a shard is done with, ``on_retry(held, index)`` when a line is to be tried
    again.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        on_ended: Callable[[HeldShard, End], None],
        on_retry: Callable[[HeldShard, int], None] = lambda held, index: None,
        *,
        sleep: Callable[[float], Any] | None = None,
    ) -> None:
        super().__init__(name="writer", daemon=True)
        self.store = store
        self.worker_name = name
        self._on_ended = on_ended
        self._on_retry = on_retry
        self._queue: queue.SimpleQueue[EndedLine | FailedLine | HeldShard | None] = queue.SimpleQueue()
        self._given_up = threading.Event()
        self._count_lock = threading.Lock()
        self._unstored = 0
        self._out = False
        self._sleep = sleep or self._given_up.wait

    def put(self, line: EndedLine | FailedLine) -> None:
        with self._count_lock:
            self._unstored += 1
        self._queue.put(line)

    @property
    def unstored(self) -> int | None:
        """Lines that were put here and are not dealt with yet; None while Redis is out."""
        return None if self._out else self._unstored

    def check(self, held: HeldShard) -> None:
        """Finish the shard if no line of it is left: one whose lines all ended in earlier attempts."""
        self._queue.put(held)

    def stop(self) -> None:
        """End once all that is queued is stored."""
        self._queue.put(None)

    def give_up(self) -> None:
        """Do not wait for Redis any longer."""
        self._given_up.set()

    def run(self) -> None:
        while True:
            items = self._gather()
            self._write([item for item in items if item is not None])
            with self._count_lock:
                self._unstored -= sum(isinstance(item, EndedLine | FailedLine) for item in items)
            if None in items:
                return

    def _gather(self) -> list[EndedLine | FailedLine | HeldShard | None]:
        items = [self._queue.get()]
        deadline = time.monotonic() + GATHER_S
        while items[-1] is not None:
            try:
                items.append(self._queue.get(timeout=max(deadline - time.monotonic(), 0)))
            except queue.Empty:
                break
        return items

    def _write(self, items: list[EndedLine | FailedLine | HeldShard]) -> None:
        lines: dict[str, list[FinishedLine]] = defaultdict(list)
        shards: dict[str, HeldShard] = {}
        for item in items:
            held = item if isinstance(item, HeldShard) else item.held
            shards[held.job_id] = held
            if not isinstance(item, HeldShard) and not held.ended.is_set() and not self._tried_again(item):
                lines[held.job_id].append(self._record(item))
        for job_id, held in shards.items():
            if not held.ended.is_set():
                self._store(held, lines[job_id])

    def _tried_again(self, item: EndedLine | FailedLine) -> bool:
        """Whether a line gets another attempt: it failed for a reason that may pass, and not too often yet."""
        held, failure = item.held, item.finished.error if isinstance(item, EndedLine) else None
        if failure is None or not failure.passing or held.last(item.index):
            return False
        attempt = held.attempt
        try:
            attempt.tries[item.index] = self.persistently(lambda: self.store.fail(attempt, item.index))
        except StaleAttemptError as stale:
            if held.attempt is not attempt:  # this worker itself took it up again meanwhile
                return self._tried_again(item)
            self._lost(held, stale)
            return True
        except redis.exceptions.RedisError as error:
            log.error("gave up noting a failed attempt at line %d of %s: %s", item.index, held.job_id, error)
            return True
        message = "attempt %d at line %d of %s failed: %s; trying it again by itself"
        arguments = (attempt.tries.get(item.index, 1), item.index, held.job_id, failure.message)
        log.warning(message, *arguments, extra={"action": "line_retried"})
        self._on_retry(held, item.index)
        return True

    def _store(self, held: HeldShard, lines: list[FinishedLine]) -> None:
        attempt = held.attempt
        try:
            if lines:
                self.persistently(lambda: self.store.write(held.attempt, lines))
                held.remaining.difference_update(line.index for line in lines)
            if not held.remaining:
                finished = self.persistently(lambda: self.store.finish(held.attempt, len(held.lines)))
                self._end(held, End.FINISHED if finished else End.INCOMPLETE)
        except StaleAttemptError as stale:
            if held.attempt is not attempt:  # this worker itself took it up again meanwhile
                self._store(held, lines)
                return
            self._lost(held, stale)
        except redis.exceptions.RedisError as error:
            log.error("gave up storing %d records of %s: %s", len(lines), held.job_id, error)

    def _lost(self, held: HeldShard, stale: StaleAttemptError) -> None:
        log.warning("%s; its lines are dropped here", stale, extra={"action": "lease_lost"})
        self._end(held, End.LOST)

    def _end(self, held: HeldShard, end: End) -> None:
        held.ended.set()
        self._on_ended(held, end)

    def persistently(self, step: Callable[[], T]) -> T:
        """Try until Redis takes it: what was generated is not thrown away because Redis is out for minutes."""
        attempt = 0
        while True:
            try:
                done = step()
                self._out = False
                return done
            except redis.exceptions.RedisError as error:
                if self._given_up.is_set():
                    raise
                self._out = True
                pause = RETRY_S[min(attempt, len(RETRY_S) - 1)]
                log.warning("Redis is out (%s); trying again in %.1f s", error, pause, extra={"action": "redis_out"})
                self._sleep(pause)
                attempt += 1

    def _record(self, item: EndedLine | FailedLine) -> FinishedLine:
        if isinstance(item, FailedLine):
            return self._failure(item, item.code, item.message, item.param)
        if item.finished.error is not None:
            return self._failure(item, item.finished.error.code, item.finished.error.message, None)
        try:
            return self._result(item)
        except Exception as error:
            # A tokenizer can raise anything on odd tokens: that is this line's failure, nobody else's.
            log.exception("line %d of %s cannot be written down", item.index, item.held.job_id)
            return self._failure(item, "internal_error", f"the result cannot be written down: {error}", None)

    def _failure(self, item: EndedLine | FailedLine, code: str, message: str, param: str | None) -> FinishedLine:
        held = item.held
        line = next(line for line in held.lines if line.index == item.index)
        try:
            job = held.job(line)
        except LineError:
            job = None
        record = error_record(
            line_id=job.id if job is not None else f"line-{line.line}",
            index=item.index,
            batch_id=held.attempt.batch_id,
            code=code,
            message=message,
            param=param,
            attempt=held.attempt_at(item.index),
            finished_at=item.at,
            worker=self.worker_name,
            model=held.group.model,
            endpoint=job.endpoint if job is not None else None,
            metadata=job.metadata if job is not None else None,
        )
        return FinishedLine(item.index, False, 0, 0, 0, record)

    def _result(self, item: EndedLine) -> FinishedLine:
        held, job, sequences = item.held, item.held.jobs[item.index], item.finished.sequences
        choices = []
        for sequence in sequences:
            text = item.served.assembler.assemble(sequence)
            choices.append(
                Choice(
                    index=sequence.choice,
                    text=text.text,
                    reasoning=text.reasoning,
                    stop_reason=text.stop_reason,
                    stop_string=text.stop_string,
                    logprobs=text.logprobs,
                )
            )
        stats = run_stats(item, held)
        ended_at = max(sequence.finished_at or 0.0 for sequence in sequences)
        generated_for = ended_at - (sequences[0].prefill_started or ended_at)
        record = result_record(
            job,
            choices,
            stats,
            batch_id=held.attempt.batch_id,
            model_revision=item.served.revision,
            worker=self.worker_name,
            attempt=held.attempt_at(item.index),
            created_at=item.at - generated_for,
            finished_at=item.at,
        )
        usage = (stats.prompt_tokens, stats.completion_tokens, stats.cached_tokens)
        return FinishedLine(item.index, True, *usage, record)


def run_stats(item: EndedLine, held: HeldShard) -> RunStats:
    """The line's statistics; with n > 1 tokens are summed and times are those of the longest choice."""
    sequences = item.finished.sequences
    first = sequences[0]
    accepted = [seq.accepted_draft_tokens for seq in sequences if seq.accepted_draft_tokens is not None]
    begun = first.prefill_started if first.prefill_started is not None else first.submitted_at
    return RunStats(
        prompt_tokens=first.prompt_tokens,
        completion_tokens=sum(sequence.completion_tokens for sequence in sequences),
        cached_tokens=first.cached_tokens,
        time_to_first_token_s=first.prefill_s or 0.0,
        prefill_s=first.prefill_s or 0.0,
        decode_s=max(sequence.decode_s or 0.0 for sequence in sequences),
        queue_s=max(held.taken_at - held.committed_at, 0.0) + max(begun - first.submitted_at, 0.0) + first.waited_s,
        accepted_draft_tokens=sum(accepted) if accepted else None,
    )
