"""``promptmill workers --watch`` on a full screen: each worker, and the lines it has in flight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.text import Text

from submit.status.lost_workers import Silent
from submit.status.text import rate
from submit.status.worker_state import WorkerState
from submit.status.worker_table import NO_WORKERS
from submit.watch.in_flight import flight_section, taking_turns
from submit.watch.pool_view import heading
from submit.watch.widgets import fit, more, sparkline, text, wrapped
from submit.watch.worker_rows import crew_table, summed_speeds

__all__ = ["WorkersScene", "draw_workers"]

SPARK = 30
LEAST_LINES = 6
"""Lines of the screen that are kept for lines in flight, however many workers there are."""


@dataclass(frozen=True, slots=True)
class WorkersScene:
    """The workers at one moment: ``now`` in seconds since the epoch; names of batches, where they have one, by id."""

    now: float
    states: Sequence[WorkerState]
    silent: Sequence[Silent] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    paused: bool = False
    """The whole pool is."""


def draw_workers(scene: WorkersScene, width: int, height: int, *, unicode: bool = True) -> list[Text]:
    """At most ``height`` lines of at most ``width`` columns: the workers, then their lines in flight in turns."""
    states = scene.states
    lines = heading("promptmill workers", states, scene.now, width, paused=scene.paused)
    if not states and not scene.silent:
        return fit([*lines, text(""), text(NO_WORKERS)], width, height)
    speed = sum(state.tokens_per_second or 0.0 for state in states)
    done = sum(state.lines_per_second or 0.0 for state in states)
    spark = sparkline(summed_speeds(states), SPARK, unicode=unicode)
    parts = [text(f"{rate(speed)} tok/s ", "bold").append_text(spark), text(f"{rate(done)} lines/s")]
    lines += [*wrapped(parts, width), text("")]
    flights = taking_turns([(state, line) for state in states for line in state.in_flight])
    table = crew_table(states, width, now=scene.now, silent=scene.silent, unicode=unicode)
    room = height - len(lines) - (LEAST_LINES if flights else 0)
    lines += more(table, max(room, 3), len(states) + len(scene.silent))
    section = flight_section(
        flights,
        sum(state.lines_in_flight for state in states),
        width,
        height - len(lines) - 1,
        batch_name=lambda batch_id: scene.names.get(batch_id) or batch_id,
        unicode=unicode,
    )
    return fit([*lines, *([text(""), *section] if section else [])], width, height)
