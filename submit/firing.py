"""Runs of schedules: deciding about each that is due, and submitting its batch once, whoever dies on the way.

A run that has begun is in its schedule's hash, and is gone on with from there. Its batch is uploaded as any other, but
becomes live only after one of the uploads has been claimed in the hash: a scheduler that dies before that leaves an
upload behind that is swept; one that dies after it leaves a claim that the next one makes live; and one that only
slept finds that its own upload is not the claimed one, and gives it up.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs.batch import timestamp
from jobs.errors import InputError, PromptmillError, RedisError, RefusedError
from jobs.schedule import Claim, Outcome, Run, Schedule, ScheduleNotFoundError
from jobs.schedules import Schedules
from jobs.shard import Group
from jobs.store import Store
from submit.runqueue import DueRun, RunQueue
from submit.scheduling import order_from, prompts_of, unfinished_batch
from submit.submitter import submit

__all__ = ["GRACE_S", "Firing", "StoppedError"]

log = logging.getLogger("promptmill.scheduler")

GRACE_S = 60.0
"""A run that is queued no later than this after it was due is on time."""
MAX_CLAIM_BYTES = 2**19
TRY_AGAIN_S = 10.0
"""Pause before a run is tried again that Redis refused, as one that is full does."""


class StoppedError(Exception):
    """The scheduler is to end, or is no longer the active one: what is under way is left to the next."""


class OvertakenError(Exception):
    """A run is another scheduler's, or its schedule was replaced or removed."""


class Firing:
    """Takes runs that are queued, decides about them and submits them.

    ``stopping`` is asked now and then, ``observe`` told of each step. Of paths of schedules those in the folders of
    ``read_from`` are read, or all where it names none.
    """

    def __init__(
        self,
        store: Store,
        *,
        read_from: Sequence[Path] = (),
        stopping: Callable[[], bool] = lambda: False,
        observe: Callable[[str], object] = lambda step: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._schedules = Schedules(store.connection)
        self._queue = RunQueue(store)
        self._read_from = read_from
        self._stopping = stopping
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
                    self.decide(run, queued_at)
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

    def decide(self, due_run: DueRun, queued_at: float | None) -> None:
        """Begin the run, or pass it over and say why; one that its schedule does not have due is nobody's.

        Raises:
            ScheduleNotFoundError, RefusedError: there is no such schedule, or it is none.
        """
        name, due = due_run
        schedule, now = self._schedules.get(name), self._store.server_time()
        if due > now:
            return
        if due == schedule.next:
            self._decide(schedule, now, late=(queued_at or now) - due > GRACE_S)
        elif due == schedule.asked and schedule.run is None:
            self._begin(schedule, Run(due, asked=True), schedule.next)

    def _decide(self, schedule: Schedule, now: float, *, late: bool) -> None:
        run = Run(schedule.next)
        if late:
            last, missed = schedule.cron.latest(schedule.next, now - GRACE_S)
            run = Run(last, missed=missed)
        following = schedule.cron.after(run.due)
        if late and not schedule.catch_up:
            self._pass_over(schedule, run, following, "no scheduler was there at that time")
        elif schedule.allow_overlap:
            self._begin(schedule, run, following)
        elif schedule.run is not None:
            self._pass_over(schedule, run, following, f"its run of {timestamp(schedule.run.due)} is not submitted yet")
        elif (batch_id := unfinished_batch(self._store, schedule)) is not None:
            self._pass_over(schedule, run, following, f"batch {batch_id} of an earlier run is not done")
        else:
            self._begin(schedule, run, following)

    def _begin(self, schedule: Schedule, run: Run, following: int) -> None:
        if self._schedules.begin(schedule, run, following):
            log.info("%s: the run of %s begins", schedule.name, timestamp(run.due), extra={"action": "run_begins"})
        self._observe("begun")

    def _pass_over(self, schedule: Schedule, run: Run, following: int, why: str) -> None:
        outcome = Outcome(run.due, self._store.server_time(), "skipped", why=why, missed=run.missed)
        if self._schedules.pass_over(schedule, outcome, following):
            what = "the run" if run.missed < 2 else f"{run.missed} runs, the last that"
            log.warning(
                "%s: %s of %s skipped: %s",
                schedule.name, what, timestamp(run.due), why, extra={"action": "run_skipped"},
            )  # fmt: skip
        self._observe("passed over")

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
            if run.claim is None:
                run = self._upload(schedule, run)
            self._settle(schedule, run, run.claim)
        except (RedisAwayError, RedisError, OvertakenError, StoppedError):
            raise
        except PromptmillError as error:
            self._failed(schedule, run, _reason(error))
        except Exception as error:
            log.exception("%s: its run ended in an error that should not be", schedule.name)
            self._failed(schedule, run, f"internal error: {type(error).__name__}: {error}")

    def _upload(self, schedule: Schedule, run: Run) -> Run:
        """The run with the claim of its upload."""
        order = order_from(self._schedules.order(schedule), schedule.name)
        store = _ClaimingStore(self._store, self._schedules, schedule.name, run)
        with prompts_of(self._schedules, schedule, self._read_from) as prompts:
            submit(store, prompts, order, progress=self._look_up, now=self._store.now)
        self._observe("claimed")
        return store.run

    def _look_up(self, _lines: int, _size: int) -> None:
        self._observe("uploading")
        self._stop_here()

    def _settle(self, schedule: Schedule, run: Run, claim: Claim | None) -> None:
        """Make the claimed upload live, or begin anew where it was swept."""
        if claim is None:
            raise RefusedError("its upload was not claimed")
        facts = {**claim.facts, "groups": [Group(*pair) for pair in claim.facts["groups"]]}
        live = self._store.commit(claim.batch_id, **facts)
        self._observe("committed")
        if not live:
            log.info("%s: its upload was swept; once more", schedule.name, extra={"action": "run_swept"})
            self._schedules.go_on(schedule.name, run, replace(run, claim=None))
            return
        outcome = Outcome(
            run.due, self._store.server_time(), "submitted", claim.batch_id, asked=run.asked, missed=run.missed
        )
        if self._schedules.record(schedule.name, run, outcome):
            log.info(
                "%s: the run of %s is batch %s",
                schedule.name, timestamp(run.due), claim.batch_id, extra={"action": "run_submitted"},
            )  # fmt: skip
        self._observe("recorded")

    def _failed(self, schedule: Schedule, run: Run, why: str) -> None:
        at = self._store.server_time()
        if self._schedules.record(schedule.name, run, Outcome(run.due, at, "failed", None, why, run.asked, run.missed)):
            log.error(
                "%s: the run of %s failed: %s",
                schedule.name, timestamp(run.due), why, extra={"action": "run_failed"},
            )  # fmt: skip
        self._observe("recorded")


class _ClaimingStore(Store):
    """A store whose commit claims an upload for a run; whoever goes on with the run makes it live."""

    def __init__(self, store: Store, schedules: Schedules, name: str, run: Run) -> None:
        super().__init__(store.connection, now=store.now, server_time=store.server_time)
        self._schedules = schedules
        self._name = name
        self.run = run

    def commit(self, batch_id: str, *, groups: Iterable[Group], **facts: Any) -> bool:
        """Claim the upload for the run.

        Raises:
            OvertakenError: the run is another's, or over: this upload is not wanted.
            RefusedError: the batch has too many models.
        """
        pairs = [[group.model, group.adapter_path] for group in groups]
        claimed = replace(self.run, claim=Claim(batch_id, {**facts, "groups": pairs}))
        if len(claimed.encoded()) > MAX_CLAIM_BYTES:
            raise RefusedError("its lines name too many models and adapters")
        if not self._schedules.go_on(self._name, self.run, claimed):
            raise OvertakenError
        self.run = claimed
        return True


def _reason(error: PromptmillError) -> str:
    """An error as one line: of a refused input with its first problem."""
    if isinstance(error, InputError) and error.problems:
        return f"{error}: {error.problems[0]}"
    return str(error)
