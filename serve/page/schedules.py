"""Schedules on the page: added, paused and run by hand; when each runs next, and what became of its last runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jobs.errors import InputError, RefusedError
from jobs.params import did_you_mean
from jobs.store.keys import SCHEDULER
from jobs.store.store import Store
from serve.errors import ApiError
from serve.page.batches import source_name
from serve.page.drafts import Draft, sentence
from submit.schedule.add import ScheduleOrder, add_schedule
from submit.schedule.cron import Cron
from submit.schedule.model import MAX_SCHEDULE_NAME, RunOutcome, Schedule, is_schedule_name
from submit.schedule.run_by_hand import run_schedule
from submit.schedule.store import Schedules

MOST = 200
RUNS = 10
RUN_S = 20.0
FIELDS = ("name", "cron", "zone", "path", "catch_up", "allow_overlap", "replace", "expires")
SHOWN_TIMES = 3
LONGEST_CRON = 500


def shown_schedules(store: Store) -> dict[str, Any]:
    """The schedules by name, and whether a scheduler is there to run them."""
    schedules = Schedules(store.connection)
    names = schedules.names()
    found = [
        _damaged(name, schedule) if isinstance(schedule, RefusedError) else _shown(schedule)
        for name, schedule in zip(names[:MOST], schedules.read(names[:MOST], runs=RUNS), strict=True)
    ]
    alive = bool(store.connection.exists(SCHEDULER))
    return {"now": store.server_time(), "schedules": found, "counted": len(names), "scheduler": alive}


def _shown(schedule: Schedule) -> dict[str, Any]:
    return {
        "name": schedule.name,
        "cron": schedule.cron.expression,
        "zone": schedule.cron.zone,
        "source": source_name(schedule.path or schedule.source),
        "read_at_fire": schedule.path is not None,
        "lines": schedule.lines if schedule.path is None else None,
        "models": list(schedule.models),
        "next": schedule.next,
        "running": schedule.run is not None,
        "paused": schedule.paused,
        "catch_up": schedule.catch_up,
        "allow_overlap": schedule.allow_overlap,
        "runs": [_run(outcome) for outcome in schedule.runs],
        "error": None,
    }


def _run(outcome: RunOutcome) -> dict[str, Any]:
    return {
        "due": outcome.due,
        "state": outcome.state,
        "batch_id": outcome.batch_id,
        "missed": outcome.missed,
        "why": outcome.why,
    }


def _damaged(name: str, error: RefusedError) -> dict[str, Any]:
    return {"name": name, "runs": [], "models": [], "error": str(error)}


def run_now(store: Store, name: str, *, allow_overlap: bool) -> str:
    """Submit a batch of a schedule now; its id.

    Raises:
        RefusedError, WaitTimeoutError: as :func:`submit.schedule.run_by_hand.run_schedule`.
    """
    return run_schedule(store, name, allow_overlap=allow_overlap, timeout=RUN_S)


def cron_of(expression: Any, zone: Any) -> Cron:
    """The cron expression and the time zone that were typed in.

    Raises:
        ApiError: one of them is none.
    """
    for name, value in (("cron", expression), ("zone", zone)):
        if not isinstance(value, str) or not value.strip() or len(value) > LONGEST_CRON:
            raise ApiError(400, f"Missing required parameter: '{name}'.", code="missing_required_parameter", param=name)
    try:
        return Cron(expression, zone.strip())
    except RefusedError as error:
        raise ApiError(400, sentence(str(error)), code="invalid_value", param="cron") from None


def next_times(store: Store, cron: Cron) -> dict[str, Any]:
    """When a schedule would run first."""
    now = store.server_time()
    times = [int(now)]
    for _ in range(SHOWN_TIMES):
        times.append(cron.after(times[-1]))
    return {"now": now, "next": times[1:]}


def wanted_schedule(body: dict[str, Any], draft: Draft) -> tuple[ScheduleOrder, str | None]:
    """What is said of a new schedule, and the path of the file that the scheduler reads at each run, if any.

    Raises:
        ApiError: a field is no good.
    """
    for given in body:
        if given not in FIELDS:
            message = f"Unknown parameter: '{given[:80]}'{did_you_mean(given, FIELDS)}."
            raise ApiError(400, message, code="unknown_parameter", param=given[:80])
    name, path = body.get("name"), body.get("path") or None
    if not isinstance(name, str) or not is_schedule_name(name):
        wanted = f"up to {MAX_SCHEDULE_NAME} letters of the Latin alphabet, digits, _ and -, a letter or digit first"
        raise ApiError(400, f"Invalid 'name': expected {wanted}.", code="invalid_value", param="name")
    if path is not None and not isinstance(path, str):
        raise ApiError(400, "Invalid 'path': expected a string.", code="invalid_value", param="path")
    order = ScheduleOrder(
        name=name,
        cron=cron_of(body.get("cron"), body.get("zone")),
        order=draft.submitted(expires=body.get("expires") is True),
        read_at_fire=path is not None,
        catch_up=body.get("catch_up") is True,
        allow_overlap=body.get("allow_overlap") is True,
        take_place=body.get("replace") is True,
    )
    return order, path


def add(store: Store, wanted: ScheduleOrder, file: str | Path, source: str) -> str:
    """Add a schedule; its name. The file is checked and stored, or read at each run.

    Raises:
        ApiError: it has bad lines, the name is taken, or there is another reason against it.
    """
    try:
        schedule, _ = add_schedule(store, wanted, file, source=source)
    except InputError as error:
        first = f"; {error.problems[0]}" if error.problems else ""
        raise ApiError(400, f"{error}{first}", code="invalid_value", param="file") from None
    except RefusedError as error:
        text = str(error)
        if "--replace" in text:
            text = f"there is a schedule '{wanted.name}' already: choose another name, or have this one take its place"
        raise ApiError(400, sentence(text), code="invalid_value") from None
    return schedule.name


def set_paused(store: Store, name: str, *, paused: bool) -> bool:
    """Pause a schedule, or let it go on; False: it was so already.

    Raises:
        RefusedError: there is none.
    """
    schedules, now = Schedules(store.connection), store.server_time()
    return schedules.pause(name, now) if paused else schedules.resume(name, now)


def remove(store: Store, name: str) -> bool:
    """Remove a schedule; its batches stay. False: there was none."""
    return Schedules(store.connection).remove(name)
