"""What ``promptmill workers`` shows: the pool's workers as a table, or as JSON objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from submit.status.lost_workers import Silent
from submit.status.text import count, duration, fitted, rate, short_name, size
from submit.status.worker_state import WorkerState

__all__ = ["memory_text", "models_text", "share", "state_text", "worker_objects", "worker_table"]

NO_WORKERS = "no workers; `promptmill worker --model MODEL` starts one"
HEADER = (
    "worker",
    "state",
    "models",
    "memory",
    "tok/s",
    "full",
    "cached",
    "lines",
    "done",
    "uptime",
    "host",
    "version",
)
FLUSH_RIGHT = frozenset({"memory", "tok/s", "full", "cached", "lines", "done", "uptime"})
DROPPED_FIRST = ("version", "host", "uptime", "done", "cached", "memory", "full")
"""Columns a narrow terminal does without, in this order."""
NARROW = 100
"""Below so many columns the sizes of models are left out."""


def worker_table(
    states: Sequence[WorkerState], silent: Sequence[Silent], now: float, *, width: int | None = None
) -> list[str]:
    """Workers by name as lines of at most ``width`` columns (None: as wide as need be); those that fell silent last.

    ``full`` is how full their batches are, ``cached`` the part of the last minute's prompt tokens that came from the
    prefix cache, ``lines`` those in flight, ``done`` those finished since the worker was started.
    """
    if not states and not silent:
        return [NO_WORKERS]
    sizes = width is None or width >= NARROW
    rows = [_row(state, now, sizes) for state in states]
    rows += [_silent_row(one) for one in silent]
    return fitted(HEADER, rows, right=FLUSH_RIGHT, dropped_first=DROPPED_FIRST, width=width)


def _row(state: WorkerState, now: float, sizes: bool) -> list[str]:
    return [
        state.name,
        state_text(state),
        models_text(state, sizes=sizes),
        memory_text(state),
        rate(state.tokens_per_second),
        share(state.occupancy),
        share(state.cached_share),
        f"{state.lines_in_flight:,}",
        count(state.lines_done),
        duration(state.uptime(now)),
        state.hostname or "-",
        state.version or "-",
    ]


def _silent_row(one: Silent) -> list[str]:
    return [one.name, f"silent for {duration(one.silent_s)}", *["-"] * 8, one.hostname or "-", "-"]


def state_text(state: WorkerState) -> str:
    """The state for a person; one that loads a model says which."""
    if state.effective_state == "loading" and state.model is not None:
        return f"loading {short_name(state.model)}"
    return state.effective_state


def models_text(state: WorkerState, *, sizes: bool = True) -> str:
    """The models in memory, with the size of their weights, then the others that the worker serves, in brackets."""
    loaded = [
        f"{short_name(model.name)} {size(model.size)}" if sizes else short_name(model.name) for model in state.loaded
    ]
    warm = {model.name for model in state.loaded}
    cold = [f"({short_name(model)})" for model in state.models if model not in warm]
    return ", ".join([*loaded, *cold]) or "-"


def memory_text(state: WorkerState) -> str:
    """Bytes in use, and of how many; a device that recommends no limit has none."""
    if state.memory_bytes is None:
        return "-"
    used = size(state.memory_bytes)
    return used if state.memory_limit_bytes is None else f"{used} of {size(state.memory_limit_bytes)}"


def share(part: float | None) -> str:
    """A part of one as ``41%``; ``-`` when unknown."""
    return "-" if part is None else f"{part:.0%}"


def worker_objects(states: Sequence[WorkerState], silent: Sequence[Silent], now: float) -> list[dict[str, Any]]:
    """The JSON objects of the workers, with their lines in flight."""
    live = [
        {
            **state.as_dict(),
            "uptime_s": None if (uptime := state.uptime(now)) is None else round(uptime, 1),
            "in_flight": [{"batch_id": line.batch_id, **line.as_dict()} for line in state.in_flight],
        }
        for state in states
    ]
    return [*live, *(one.as_dict() for one in silent)]
