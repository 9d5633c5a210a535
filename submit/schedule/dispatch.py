"""Runs of schedules: deciding about each that is due, and submitting its batch once, whoever dies on the way.

A run that has begun is in its schedule's hash, and is gone on with from there. Its batch is uploaded as any other, and
becomes live in the step that records the run: a scheduler that dies before that leaves an upload behind that is swept,
and the next one makes another; one that only slept finds that the run is over, and gives its upload up.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from jobs.batch import timestamp
from jobs.errors import InputError, PromptmillError, RedisError, RefusedError
from jobs.store.store import Store
from submit.schedule.add import BY_HAND_S, order_from, prompts_of, unfinished_batch
from submit.schedule.model import Outcome, Run, Schedule, ScheduleNotFoundError
from submit.schedule.rq_jobs import DueRun, RunQueue
from submit.schedule.run_store import OvertakenError, RunStore
from submit.schedule.store import Schedules
from submit.schedule.table import missed_runs
from submit.upload.submitter import submit

__all__ = ["GRACE_S", "Firing", "StoppedError"]

log = logging.getLogger("promptmill.scheduler")

GRACE_S = 60.0
"""A run that is queued no later than this after it was due is on time."""
LATE_S = 3600.0
"""One for which a scheduler was there, but no Redis, is run that late."""
TRY_AGAIN_S = 10.0
"""Pause before a run is tried again that Redis refused, as one that is full does."""


class StoppedError(Exception):
    """The scheduler is to end, or is no longer the active one: what is under way is left to the next."""


class Firing:
    """Takes runs that are queued, decides about them and submits them.

    ``stopping`` is asked now and then, ``observe`` told of each step. Of paths of schedules those in the folders of
    ``read_from`` are read. ``attended`` says whether a scheduler was there at a time, and has been since.
    """

    def __init__(
        self,
        store: Store,
        *,
        read_from: Sequence[Path] = (),
        stopping: Callable[[], bool] = lambda: False,
        attended: Callable[[float], bool] = lambda due: False,
        observe: Callable[[str], object] = lambda step: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._schedules = Schedules(store.connection)
        self._queue = RunQueue(store)
        self._read_from = read_from
        self._stopping = stopping
        self._attended = attended
        self._observe = observe
        self._clock = clock
        self._tried: dict[str, float] = {}

    def work(self) -> None:
        """See to all that is queued or has begun, until there is nothing more or the scheduler is stopping.

        Raises:
            redis.exceptions.RedisError: it is away; what is under way stays so.
        """
        self._queue.reclaim()
        with contextlib.suppress(StoppedError):
            while True:
                self._go_on()
                self._stop_here()
                found = self._queue.take()
                if found is None:
                    return
                run, queued_at = found
                self._observe("taken")
                try:
                    if not self.decide(run, queued_at):
                        continue  # it stays taken, and is queued again with the next work
                except ScheduleNotFoundError:
                    log.info("the run of %s is dropped: the schedule is gone", run[0])
                except RefusedError as error:
                    log.warning("the run of %s is dropped: %s", run[0], error, extra={"action": "refuse_schedule"})
                self._queue.done(run)

    def _stop_here(self) -> None:
        if self._stopping():
            raise StoppedError

    def _go_on(self) -> None:
        """Go on with the runs that have begun, a scheduler's that died among them."""
        for schedule in self._schedules.read(self._schedules.begun(), runs=0):
            if isinstance(schedule, Schedule) and schedule.run is not None and self._may_try(schedule.id):
                if schedule.run.by is not None and self._store.server_time() - schedule.run.due < BY_HAND_S:
                    continue  # it is being submitted by who asked for it
                self._stop_here()
                self._try(schedule)

    def _may_try(self, incarnation: str) -> bool:
        return self._clock() - self._tried.get(incarnation, float("-inf")) >= TRY_AGAIN_S

    def _try(self, schedule: Schedule) -> None:
        from redis.exceptions import ResponseError

        try:
            self.fire(schedule)
            self._tried.pop(schedule.id, None)
        except OvertakenError:
            log.info("the run of %s was seen to elsewhere", schedule.name, extra={"action": "overtaken"})
        except (RedisError, ResponseError) as error:
            log.warning("the run of %s waits: %s", schedule.name, error, extra={"action": "run_waits"})
            self._tried[schedule.id] = self._clock()

    # --- deciding ---

    def decide(self, due_run: DueRun, queued_at: float | None) -> bool:
        """Begin the run, or pass it over and say why; one that its schedule does not have due is nobody's. False: it is
        to be decided later, for another run is in its way.

        Raises:
            ScheduleNotFoundError, RefusedError: there is no such schedule, or it is none.
        """
        name, due = due_run
        schedule, now = self._schedules.get(name), self._store.server_time()
        if due > now:
            return True
        if due == schedule.next:
            return self._decide(schedule, now, late=(queued_at or now) - due > GRACE_S)
        if due == schedule.asked:
            overlap = schedule.allow_overlap or schedule.asked_overlap
            return self._begin(schedule, Run(due, asked=True), schedule.next, overlap=overlap)
        return True

    def _decide(self, schedule: Schedule, now: float, *, late: bool) -> bool:
        run = Run(schedule.next)
        if late:
            last, missed = schedule.cron.latest(schedule.next, now - GRACE_S, progress=self._stop_here)
            run = Run(last, missed=missed)
        following = schedule.cron.after(run.due)
        if late and not schedule.catch_up:
            if not self._attended(run.due):
                why = "no scheduler was there at that time, or Redis refused it"
                return self._pass_over(schedule, run, following, why)
            if now - run.due > LATE_S:
                why = "for more than an hour Redis was away or full, or an earlier run in its way"
                return self._pass_over(schedule, run, following, why)
        if not schedule.allow_overlap and schedule.run is not None:
            why = f"its run of {timestamp(schedule.run.due)} is not submitted yet"
            return self._pass_over(schedule, run, following, why)
        return self._begin(schedule, run, following, overlap=schedule.allow_overlap)

    def _begin(self, schedule: Schedule, run: Run, following: int, *, overlap: bool) -> bool:
        """Begin the run unless it would overlap; False: another is in its way."""
        if not overlap and (batch_id := unfinished_batch(self._store, schedule)) is not None:
            return self._pass_over(schedule, run, following, f"batch {batch_id} of an earlier run is not done")
        begun = self._schedules.begin(schedule, run, following, overlap=overlap)
        if begun is None:
            return False
        if begun:
            log.info("%s: the run of %s begins", schedule.name, timestamp(run.due), extra={"action": "run_begins"})
        self._observe("begun")
        return True

    def _pass_over(self, schedule: Schedule, run: Run, following: int, why: str) -> bool:
        at = self._store.server_time()
        outcome = Outcome(run.due, at, "skipped", why=why, asked=run.asked, missed=run.missed)
        if self._schedules.pass_over(schedule, outcome, following):
            what = "the run" if run.missed < 2 else f"{missed_runs(run.missed)}, the last that"
            log.warning(
                "%s: %s of %s skipped: %s",
                schedule.name, what, timestamp(run.due), why, extra={"action": "run_skipped"},
            )  # fmt: skip
        self._observe("passed over")
        return True

    # --- submitting ---

    def fire(self, schedule: Schedule) -> None:
        """Go on with the run that a schedule has begun, to its end.

        Raises:
            OvertakenError: it is another's.
            RedisError, redis.exceptions.RedisError: it is to be gone on with later.
        """
        from redis.exceptions import RedisError as RedisAwayError

        run = schedule.run
        if run is None:
            return
        try:
            self._submit(schedule, run)
        except (RedisAwayError, RedisError, OvertakenError, StoppedError):
            raise
        except PromptmillError as error:
            self._failed(schedule, run, _reason(error))
        except Exception as error:
            log.exception("%s: its run ended in an error that should not be", schedule.name)
            self._failed(schedule, run, f"internal error: {type(error).__name__}: {error}")

    def _submit(self, schedule: Schedule, run: Run) -> None:
        order = order_from(self._schedules.order(schedule), schedule.name)
        store = RunStore(self._store, schedule, run, run.due, asked=run.asked)
        with prompts_of(self._schedules, schedule, self._read_from) as prompts:
            submitted = submit(store, prompts, order, progress=self._look_up, now=self._store.now)
        log.info(
            "%s: the run of %s is batch %s",
            schedule.name, timestamp(run.due), submitted.batch_id, extra={"action": "run_submitted"},
        )  # fmt: skip
        self._observe("committed")

    def _look_up(self, _lines: int, _size: int) -> None:
        self._observe("uploading")
        self._stop_here()

    def _failed(self, schedule: Schedule, run: Run, why: str) -> None:
        at = self._store.server_time()
        if self._schedules.end(schedule, run, Outcome(run.due, at, "failed", None, why, run.asked, run.missed)):
            log.error(
                "%s: the run of %s failed: %s",
                schedule.name, timestamp(run.due), why, extra={"action": "run_failed"},
            )  # fmt: skip
        self._observe("failed")


def _reason(error: PromptmillError) -> str:
    """An error as one line: of a refused input with its first problem."""
    if isinstance(error, InputError) and error.problems:
        return f"{error}: {error.problems[0]}"
    return str(error)
