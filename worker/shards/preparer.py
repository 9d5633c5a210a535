"""The preparer thread: checks the lines of taken shards once more, renders and tokenises them, feeds the engine."""

from __future__ import annotations

import logging
import queue
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, replace

from jobs.errors import LineError, ModelLoadError
from jobs.guided.check import Checker
from jobs.lines.line import Job
from jobs.shard import Group, ShardLine
from worker.models.compute import Compute
from worker.models.engine_factory import ServedModel
from worker.shards.claimed import HeldShard, QuarantineLevel
from worker.shards.writer import Writer

log = logging.getLogger("promptmill.worker")


@dataclass(frozen=True, slots=True)
class Work:
    """A shard to prepare, or one line of it that is tried again ``after_s`` seconds from now."""

    held: HeldShard
    loading: Future[ServedModel]
    again: int | None = None
    after_s: float = 0.0

    def todo(self) -> list[ShardLine]:
        todo = (line for line in self.held.todo() if line.index not in self.held.refused)
        return [line for line in todo if self.again in (None, line.index)]


class ShardPreparer(threading.Thread):
    """Prepares shards in the order they were taken. Threads: any for the public methods; preparer for the rest.

    ``on_load_failed(held)`` is called when the shard's model cannot be loaded; the shard is then no longer this
    thread's.
    """

    def __init__(
        self,
        compute: Compute,
        writer: Writer,
        on_load_failed: Callable[[HeldShard], None],
    ) -> None:
        super().__init__(name="preparer", daemon=True)
        self._compute, self._writer, self._on_load_failed = compute, writer, on_load_failed
        self._queue: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._checker = Checker()
        self._unprepared: Counter[Group] = Counter()
        self._count_lock = threading.Lock()

    def put(
        self, held: HeldShard, loading: Future[ServedModel], *, again: int | None = None, after_s: float = 0.0
    ) -> None:
        """Prepare a shard, or try one line of it ``again``."""
        work = Work(held, loading, again, after_s)
        self._count(held.group, len(work.todo()))
        self._queue.put(work)

    def stop(self) -> None:
        """Take nothing more; lines not yet prepared stay with their shard."""
        self._stopped.set()
        self._queue.put(None)

    def run(self) -> None:
        while (work := self._queue.get()) is not None:
            held, todo = work.held, work.todo()
            if not todo:
                self._writer.check(held)
                continue
            try:
                served = work.loading.result()
            except ModelLoadError:
                self._count(held.group, -len(todo))
                self._on_load_failed(held)
                continue
            except CancelledError:
                return
            # Suspects before others, which would be under way first and hold them off; of them those that failed less
            # often first: see worker/faults/quarantine.py.
            for line in sorted(todo, key=lambda line: self._turn(held, line)):
                if self._stopped.is_set():
                    return
                # Else it is, or will be, another's, or over.
                if held.running and line.index not in held.dropped:
                    self._prepare(held, served, line, work.after_s)
                self._count(held.group, -1)

    def _turn(self, held: HeldShard, line: ShardLine) -> tuple[bool, int]:
        free = held.quarantine(line.index) is QuarantineLevel.NONE
        return free, 0 if free else held.attempt.failures(line.index)

    def _prepare(self, held: HeldShard, served: ServedModel, line: ShardLine, after_s: float) -> None:
        if held.hopeless(line.index):
            deaths, tries = held.attempt.deaths.get(line.index, 0), held.attempt.failures(line.index)
            message = f"{deaths} of {tries} attempts at this line ended with the death of their worker"
            self._writer.fail(held, line, LineError("worker_crashed" if deaths else "internal_error", None, message))
            about = (line.line, held.attempt.batch_id, message)
            log.warning("line %d of %s is given up: %s", *about, extra={"action": "line_given_up"})
            return
        try:
            job = self._checked(held.job(line))
            held.jobs[line.index] = job
            prepared = served.preparer.prepare(job, key=held.key(line.index), rank=held.rank)
        except LineError as error:
            self._writer.fail(held, line, error)
        except Exception as error:
            # A template or tokenizer can raise anything on odd input: that is this line's failure, nobody else's.
            log.exception("line %d of %s cannot be prepared", line.line, held.attempt.batch_id)
            self._writer.fail(held, line, LineError("internal_error", None, f"the prompt cannot be prepared: {error}"))
        else:
            level, tries = held.quarantine(line.index), held.attempt.failures(line.index)
            self._compute.add(held.group, prepared, level=level, after_s=after_s, tries=tries)

    def _checked(self, job: Job) -> Job:
        """The job with the warnings of its constraint, which is checked here, wherever it was checked before.

        Raises:
            LineError: it cannot be enforced.
        """
        if job.constraint is None:
            return job
        warnings = self._checker.check(job.constraint)
        return replace(job, warnings=warnings) if warnings else job

    def unprepared(self, group: Group) -> int:
        """Lines taken for a model and not yet with its engine."""
        with self._count_lock:
            return self._unprepared[group]

    def _count(self, group: Group, change: int) -> None:
        with self._count_lock:
            self._unprepared[group] += change
