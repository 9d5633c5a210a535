"""The workers, as the full-screen views show them: one line each."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from submit.status.lost_workers import Silent
from submit.status.text import count, duration, rate, size
from submit.status.worker_state import WorkerState
from submit.status.worker_table import memory_text, models_text, share, state_text
from submit.watch.widgets import WIDE, Column, bar, columns, sparkline, text

__all__ = ["crew_table", "summed_speeds"]

STYLES = {
    "busy": "green",
    "starting": "yellow",
    "loading": "yellow",
    "draining": "yellow",
    "paused": "magenta",
    "silent": "red",
}


def crew_table(
    states: Sequence[WorkerState],
    width: int,
    *,
    now: float,
    silent: Sequence[Silent] = (),
    unicode: bool = True,
) -> list[Text]:
    """A header and a line per worker: state, models, memory, speed of the last minute, how full its batch is, what came
    from the prefix cache, lines in flight and done, uptime."""
    nothing = [text("") for _ in silent]
    memory_bar, spark, minute = (10, 20, "last minute") if width >= WIDE else (5, 10, "minute")
    table = [
        Column(
            "worker",
            [text(name, "bold") for name in (*(state.name for state in states), *(one.name for one in silent))],
            least=8,
        ),
        Column("state", [*(_state(state) for state in states), *(_fell_silent(one) for one in silent)]),
        Column("model", [*(text(models_text(state, sizes=False)) for state in states), *nothing], rank=5, least=9),
        Column("memory", [*(_memory(state, memory_bar, unicode) for state in states), *nothing], rank=4),
        Column("tok/s", [*(text(rate(state.tokens_per_second)) for state in states), *nothing], right=True),
        Column(
            minute,
            [*(sparkline(state.speeds, spark, unicode=unicode) for state in states), *nothing],
            rank=3,
        ),
        Column("full", [*(text(share(state.occupancy)) for state in states), *nothing], right=True, rank=1),
        Column("cached", [*(text(share(state.cached_share)) for state in states), *nothing], right=True, rank=2),
        Column("lines", [*(text(f"{state.lines_in_flight:,}") for state in states), *nothing], right=True),
        Column("done", [*(text(count(state.lines_done)) for state in states), *nothing], right=True, rank=6),
        Column("uptime", [*(text(duration(state.uptime(now))) for state in states), *nothing], right=True, rank=7),
    ]
    return columns(table, width)


def summed_speeds(states: Sequence[WorkerState]) -> list[float]:
    """New tokens of all workers in each second of the last minute, the latest last."""
    longest = max((len(state.speeds) for state in states), default=0)
    return [sum(state.speeds[-back] for state in states if len(state.speeds) >= back) for back in range(longest, 0, -1)]


def _state(state: WorkerState) -> Text:
    return text(state_text(state), STYLES.get(state.effective_state, ""))


def _fell_silent(one: Silent) -> Text:
    return text(f"silent {duration(one.silent_s)}", STYLES["silent"])


def _memory(state: WorkerState, width: int, unicode: bool) -> Text:
    used, limit = state.memory_bytes, state.memory_limit_bytes
    if used is None or not limit:
        return text(memory_text(state))
    part = used / limit
    style = "green" if part < 0.8 else "yellow" if part < 0.95 else "red"
    return bar(part, width, style, unicode=unicode).append(f" {size(used)}")
