"""What ``promptmill schedule list`` shows: when each schedule runs next, and what became of its last run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from jobs.batch import Batch
from submit.schedule.cron import MOST_COUNTED
from submit.schedule.model import RunOutcome, Schedule
from submit.status.table import Column, plain_table
from submit.status.text import clip, duration, plural

NO_SCHEDULES = "no schedules; `promptmill schedule add NAME --cron '0 2 * * *' FILE --model MODEL` makes one"


def schedule_table(
    schedules: Sequence[Schedule], batches: Mapping[str, Batch], now: float, *, width: int | None = None
) -> list[str]:
    """Schedules as lines of a table of at most ``width`` columns (None: as wide as need be), then what went wrong.

    ``batches`` are those of their last runs that are there, by id; ``now`` is by the server's clock.
    """
    if not schedules:
        return [NO_SCHEDULES]
    columns: list[Column[Schedule]] = [
        Column("schedule", lambda schedule: schedule.name),
        Column("cron", lambda schedule: schedule.cron.expression, rank=1),
        Column("zone", lambda schedule: schedule.cron.zone, rank=2),
        Column("next run", lambda schedule: next_run(schedule, now)),
        Column("last run", lambda schedule: _last_run(schedule, batches)),
        Column("source", _source, rank=3),
        Column("model", lambda schedule: clip(", ".join(schedule.models) or "-", 60), rank=4),
    ]
    lines = plain_table(columns, schedules, width)
    reasons = [
        f"{schedule.name}: the run of {_local(last.due)} {_what(last)}: {clip(last.why, 500)}"
        for schedule in schedules
        for last in schedule.runs[:1]
        if last.why is not None
    ]
    return [*lines, "", *reasons] if reasons else lines


def next_run(schedule: Schedule, now: float) -> str:
    """When a schedule runs next, by the clock of who reads it, and in how long."""
    if schedule.paused:
        return "paused"
    return f"{_local(schedule.next)} ({_in(schedule.next - now)})"


def missed_runs(count: int) -> str:
    """How many runs were missed, as far as they are counted."""
    return plural(count, "run") if count < MOST_COUNTED else f"{MOST_COUNTED:,} or more runs"


def _last_run(schedule: Schedule, batches: Mapping[str, Batch]) -> str:
    if schedule.run is not None:
        return f"{_local(schedule.run.due)} being submitted"
    if not schedule.runs:
        return "-"
    last = schedule.runs[0]
    if last.batch_id is None:
        return f"{_local(last.due)} {_what(last)}"
    batch = batches.get(last.batch_id)
    return f"{_local(last.due)} {last.batch_id} {'gone' if batch is None else batch.status}"


def _what(outcome: RunOutcome) -> str:
    missed = f" ({missed_runs(outcome.missed)} missed)" if outcome.missed > 1 else ""
    return f"{outcome.state}{missed}"


def _source(schedule: Schedule) -> str:
    if schedule.path is not None:
        return f"{clip(schedule.path, 60)} (read at each run)"
    return f"{clip(schedule.source, 60)} ({plural(schedule.lines, 'line')}, stored)"


def _in(seconds: float) -> str:
    if seconds <= 0:
        return "due"
    whole = round(seconds)
    if whole >= 2 * 86400:
        return f"in {whole // 86400} days"
    return f"in {duration(seconds)}"


def _local(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")
