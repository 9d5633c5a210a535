"""Schedules on the page: when each runs next, what became of its last runs, and a run by hand."""

from __future__ import annotations

from typing import Any

from jobs.errors import RefusedError
from jobs.store.keys import SCHEDULER
from jobs.store.store import Store
from serve.page.batches import source_name
from submit.schedule.model import RunOutcome, Schedule
from submit.schedule.run_by_hand import run_schedule
from submit.schedule.store import Schedules

MOST = 200
RUNS = 10
RUN_S = 20.0


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


def remove(store: Store, name: str) -> bool:
    """Remove a schedule; its batches stay. False: there was none."""
    return Schedules(store.connection).remove(name)
