"""A run of a schedule by hand: submitted by the client, or by the scheduler where that has the file."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable

from jobs.errors import RefusedError, WaitTimeoutError
from jobs.store.store import UPLOAD_LEASE_S, Store
from submit.schedule.add import submit_run
from submit.schedule.model import Run, Schedule, no_schedule
from submit.schedule.store import OvertakenError, Schedules
from submit.status.text import duration
from submit.upload.submitter import ReadSoFar

NO_SCHEDULER = "no scheduler is running: `promptmill scheduler` starts one"
POLL_S = 0.2
ASK_S = 60.0
BY_HAND_S = UPLOAD_LEASE_S
"""A run by hand that is not submitted after so long is submitted by others: its client may be dead."""


class BusyError(RefusedError):
    """Another run of the schedule has begun and is not submitted yet."""


def run_schedule(
    store: Store,
    name: str,
    *,
    allow_overlap: bool = False,
    timeout: float = ASK_S,
    progress: ReadSoFar = lambda lines, size: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> str:
    """Submit a batch of a schedule now; its id. Where its file is read at each run, the scheduler does it.

    Raises:
        RefusedError: there is no such schedule; an earlier batch of it is not done and none may overlap; the run was
            refused, as for bad lines in the file; or a scheduler is needed and there is none.
        WaitTimeoutError: the scheduler has not done it within ``timeout`` seconds, but will.
    """
    from redis.exceptions import RedisError

    schedules = Schedules(store.connection)
    schedule, now = schedules.get(name), int(store.server_time())
    overlap = allow_overlap or schedule.allow_overlap
    if schedule.path is not None:
        return _run_by_scheduler(schedules, schedule, now, timeout, clock, sleep, overlap=overlap)
    run = Run(now, asked=True, by=uuid.uuid4().hex)
    if not overlap:
        _begin(schedules, schedule, run, overlap=False)
    try:
        return submit_run(store, schedule, run, begun=not overlap, progress=progress)
    except OvertakenError:
        shown = "`promptmill schedule list` shows whether it was submitted elsewhere"
        raise RefusedError(f"this run of schedule '{schedule.name}' was taken over, or ended: {shown}") from None
    finally:
        with contextlib.suppress(RedisError):  # of one that was submitted nothing is there any more
            schedules.end(schedule, run)


def _begin(schedules: Schedules, schedule: Schedule, run: Run, *, overlap: bool) -> None:
    """Begin a run by hand. One whose client has not submitted it for long is replaced: the client may be dead.

    Raises:
        BusyError: another run of the schedule has begun.
        RefusedError: a batch of it is not done, or it is gone.
    """
    other = schedule.run
    gone = other if other is not None and other.by is not None and run.due - other.due >= BY_HAND_S else None
    met = schedules.begin(schedule, run, overlap=overlap, gone=gone)
    if met == "over":
        raise no_schedule(schedule.name)
    if met == "busy":
        raise BusyError(f"a run of schedule '{schedule.name}' is being submitted: --allow-overlap runs it besides")
    if met != "begun":
        raise RefusedError(
            f"batch {met} of schedule '{schedule.name}' is not done: wait, `promptmill cancel {met}`, or "
            "--allow-overlap to run it besides"
        )


def _run_by_scheduler(
    schedules: Schedules,
    schedule: Schedule,
    now: int,
    timeout: float,
    clock: Callable[[], float],
    sleep: Callable[[float], object],
    *,
    overlap: bool,
) -> str:
    """The batch of a run that begins here and that the scheduler submits."""
    if schedules.active_scheduler() is None:
        raise RefusedError(f"the file of schedule '{schedule.name}' is read by the scheduler, and {NO_SCHEDULER}")
    # Its outcome is known by this time, which no other run by hand has.
    run = Run(max([now, *(outcome.due + 1 for outcome in schedule.runs if outcome.asked)]), asked=True)
    begun, ends_at = False, clock() + timeout
    while clock() < ends_at:
        if not begun:
            try:
                _begin(schedules, schedule, run, overlap=overlap)
                begun = True
            except BusyError:
                if not overlap:
                    raise
        found = schedules.get(schedule.name)
        outcome = next((outcome for outcome in found.runs if (outcome.due, outcome.asked) == (run.due, True)), None)
        if outcome is not None and outcome.batch_id is not None:
            return outcome.batch_id
        if found.id != schedule.id:
            raise RefusedError(f"schedule '{schedule.name}' was replaced before it was run: run it again")
        if outcome is not None:
            raise RefusedError(f"the scheduler could not run '{schedule.name}': {outcome.why}")
        sleep(POLL_S)
    then = (
        "it will: `promptmill schedule list` shows its batch then"
        if begun
        else "another run is in its way: run it again"
    )
    raise WaitTimeoutError(f"the scheduler has not run '{schedule.name}' after {duration(timeout)}; {then}")
