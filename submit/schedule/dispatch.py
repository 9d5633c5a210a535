"""Runs of schedules: each that is due begins or is skipped, and each that has begun is submitted once, whoever dies.

A run that has begun is in its schedule's hash, and any scheduler goes on with it from there. Its batch is uploaded as
any other, and becomes live in the step that records the run. A scheduler that dies before that leaves an upload behind
that is swept, and the next one makes another. One that only slept finds that the run is over, and gives its upload up.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path

from jobs.batch import timestamp
from jobs.errors import InputError, PromptmillError, RedisError
from jobs.store.store import Store
from submit.schedule.add import submit_run
from submit.schedule.model import Run, RunOutcome, Schedule
from submit.schedule.run_by_hand import BY_HAND_S
from submit.schedule.store import OvertakenError, Schedules
from submit.schedule.table import missed_runs

log = logging.getLogger("promptmill.scheduler")

GRACE_S = 60.0
"""A run that begins no later than this after it was due is on time."""
LATE_S = 3600.0
"""One for which a scheduler was there, but no Redis, is run that late."""
TRY_AGAIN_S = 10.0
"""Pause before a run is tried again that Redis refused, as one that is full does."""


class StoppedError(Exception):
    """The scheduler is to end, or is no longer the active one: what is under way is left to the next."""


@dataclass
class Dispatcher:
    """Begins the runs that are due, which is quick, and submits those that have begun, which may take long.

    ``stopping`` is asked now and then, ``observe`` hears of each step. Of paths of schedules those in the folders of
    ``read_from`` are read. ``scheduler_was_there`` says whether one was there at a time, and has been since. A thread
    that calls :meth:`begin_due` and another that calls :meth:`submit_begun` do not meet but in Redis.
    """

    store: Store
    _: KW_ONLY
    read_from: Sequence[Path] = ()
    stopping: Callable[[], bool] = lambda: False
    scheduler_was_there: Callable[[float], bool] = lambda due: False
    observe: Callable[[str], object] = lambda step: None
    clock: Callable[[], float] = time.monotonic
    _tried: dict[str, float] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._schedules = Schedules(self.store.connection)

    # --- beginning ---

    def begin_due(self, schedules: Iterable[Schedule]) -> None:
        """Begin or skip the runs of these that are due by cron, as far as there is time for it.

        Raises:
            redis.exceptions.RedisError: Redis is away, or refuses it.
        """
        now = self.store.server_time()
        for schedule in schedules:
            if schedule.next <= now and not schedule.paused and not self.stopping():
                self._decide(schedule, now)

    def _decide(self, schedule: Schedule, now: float) -> None:
        run, why = Run(schedule.next), None
        if now - schedule.next > GRACE_S:
            last, missed = schedule.cron.latest(schedule.next, now - GRACE_S)
            run = Run(last, missed=missed)
            why = None if schedule.catch_up else self._too_late(last, now)
        following = schedule.cron.after(run.due)
        why = why or self._begin(schedule, run, following)
        if why is not None:
            self._skip(schedule, run, following, why)

    def _too_late(self, due: int, now: float) -> str | None:
        if not self.scheduler_was_there(due):
            return "no scheduler was there at that time, or Redis refused it"
        if now - due > LATE_S:
            return "for more than an hour Redis was away or full, or an earlier run in its way"
        return None

    def _begin(self, schedule: Schedule, run: Run, following: int) -> str | None:
        """Begin the run, or say why it is skipped. It stays due where another is in its way that will soon be gone."""
        met = self._schedules.begin(schedule, run, following, overlap=schedule.allow_overlap)
        if met == "begun":
            log.info("%s: the run of %s begins", schedule.name, timestamp(run.due), extra={"action": "run_begins"})
            self.observe("begun")
        elif met == "busy" and schedule.run is not None and not schedule.allow_overlap:
            return f"its run of {timestamp(schedule.run.due)} is not submitted yet"
        elif met not in ("busy", "over"):
            return f"batch {met} of an earlier run is not done"
        return None

    def _skip(self, schedule: Schedule, run: Run, following: int, why: str) -> None:
        outcome = RunOutcome(run.due, self.store.server_time(), "skipped", why=why, missed=run.missed)
        if self._schedules.skip(schedule, outcome, following):
            what = "the run" if run.missed < 2 else f"{missed_runs(run.missed)}, the last that"
            log.warning(
                "%s: %s of %s skipped: %s",
                schedule.name, what, timestamp(run.due), why, extra={"action": "run_skipped"},
            )  # fmt: skip

    # --- submitting ---

    def submit_begun(self) -> None:
        """Submit the runs that have begun, those of a scheduler that died among them.

        Raises:
            redis.exceptions.RedisError: it is away; what is under way stays so.
        """
        now = self.store.server_time()
        for schedule in self._schedules.read(self._schedules.names(), runs=0):
            if self.stopping():
                return
            if isinstance(schedule, Schedule) and (run := schedule.run) is not None and self._may_try(schedule.id):
                left_to_its_client = run.by is not None and now - run.due < BY_HAND_S
                if not left_to_its_client:
                    self._try(schedule, run)

    def _may_try(self, incarnation: str) -> bool:
        return self.clock() - self._tried.get(incarnation, float("-inf")) >= TRY_AGAIN_S

    def _try(self, schedule: Schedule, run: Run) -> None:
        """Submit a run that has begun; what Redis refuses is tried again later."""
        import redis.exceptions

        try:
            self._submit(schedule, run)
            self._tried.pop(schedule.id, None)
        except StoppedError:
            log.debug("the run of %s is left to the next scheduler", schedule.name)
        except OvertakenError:
            log.info("the run of %s was seen to elsewhere", schedule.name, extra={"action": "overtaken"})
        except (RedisError, redis.exceptions.ResponseError) as error:
            log.warning("the run of %s waits: %s", schedule.name, error, extra={"action": "run_waits"})
            self._tried[schedule.id] = self.clock()
        except redis.exceptions.RedisError:
            raise
        except PromptmillError as error:
            self._failed(schedule, run, _reason(error))
        except Exception as error:
            log.exception("%s: its run ended in an error that should not be", schedule.name)
            self._failed(schedule, run, f"internal error: {type(error).__name__}: {error}")

    def _submit(self, schedule: Schedule, run: Run) -> None:
        batch_id = submit_run(self.store, schedule, run, read_from=self.read_from, progress=self._look_up)
        log.info(
            "%s: the run of %s is batch %s",
            schedule.name, timestamp(run.due), batch_id, extra={"action": "run_submitted"},
        )  # fmt: skip
        self.observe("committed")

    def _look_up(self, _lines: int, _size: int) -> None:
        self.observe("uploading")
        if self.stopping():
            raise StoppedError

    def _failed(self, schedule: Schedule, run: Run, why: str) -> None:
        at = self.store.server_time()
        if self._schedules.end(schedule, run, RunOutcome(run.due, at, "failed", None, why, run.asked, run.missed)):
            log.error(
                "%s: the run of %s failed: %s",
                schedule.name, timestamp(run.due), why, extra={"action": "run_failed"},
            )  # fmt: skip


def _reason(error: PromptmillError) -> str:
    """An error as one line: of a refused input with its first problem."""
    if isinstance(error, InputError) and error.problems:
        return f"{error}: {error.problems[0]}"
    return str(error)
