"""``promptmill status --watch`` on a full screen: all batches, and the lines in flight over all workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from rich.text import Text

from jobs.batch import PRIORITIES, Batch
from submit.status.overview import NO_BATCHES, models_of, pace, state_of, word_of
from submit.status.progress import Rates
from submit.status.text import duration, plural, rate
from submit.status.worker_state import WorkerState
from submit.status.workers import POOL_PAUSED
from submit.watch.in_flight import flight_section, taking_turns
from submit.watch.widgets import WIDE, Column, bar, beside, columns, fit, more, sparkline, text, wrapped
from submit.watch.worker_rows import summed_speeds

__all__ = ["PoolScene", "draw_pool", "heading", "in_order"]

SPARK = 20
FEW_ENDED = 3
"""Batches that have ended are at most so many where there is not room for all."""
STYLES = {
    "running": "green",
    "waiting": "yellow",
    "loading": "yellow",
    "paused": "magenta",
    "completed": "bright_black",
    "cancelled": "yellow",
    "expired": "yellow",
    "failed": "red",
}


@dataclass(frozen=True, slots=True)
class PoolScene:
    """The pool at one moment: ``now`` in seconds since the epoch; ``rates`` of the last minute, and why batches wait,
    by batch id."""

    now: float
    batches: Sequence[Batch]
    states: Sequence[WorkerState]
    rates: Mapping[str, Rates] = field(default_factory=dict)
    waiting: Mapping[str, str] = field(default_factory=dict)
    paused: bool = False
    """The whole pool is."""


def draw_pool(scene: PoolScene, width: int, height: int, *, unicode: bool = True) -> list[Text]:
    """At most ``height`` lines of at most ``width`` columns: the pool in short, batches, lines in flight."""
    lines = [
        *heading("promptmill", scene.states, scene.now, width, paused=scene.paused),
        *_totals(scene, width, unicode),
        text(""),
    ]
    by_id = {batch.id: batch for batch in scene.batches}
    flights = taking_turns(
        [
            (state, line)
            for state in scene.states
            for line in state.in_flight
            if line.batch_id not in by_id or not by_id[line.batch_id].done
        ]
    )
    room = height - len(lines)
    # Lines in flight have half of the screen where there are so many, and what batches leave.
    wanted = len(flights) + 3 if flights else 0
    lines += _batch_lines(scene, width, max(room - min(wanted, room // 2), 3), room - wanted, unicode)
    left = height - len(lines) - 1
    section = flight_section(
        flights,
        sum(state.lines_in_flight for state in scene.states),
        width,
        left,
        batch_name=lambda batch_id: (by_id[batch_id].name if batch_id in by_id else None) or batch_id,
        unicode=unicode,
    )
    return fit([*lines, *([text(""), *section] if section else [])], width, height)


def heading(title: str, states: Sequence[WorkerState], now: float, width: int, *, paused: bool) -> list[Text]:
    """What is watched, how many workers there are and what they do, and the time of day; then that the pool is paused,
    where it is."""
    words = Counter(state.effective_state for state in states)
    order = ("busy", "idle", "starting", "loading", "paused", "draining")
    counted = [f"{words.pop(word)} {word}" for word in order if words[word]]
    counted += [f"{number} {word}" for word, number in sorted(words.items()) if number]
    workers = f"{plural(len(states), 'worker')}: {', '.join(counted)}" if states else "no workers"
    left = text(title, "bold").append("   ").append_text(text(workers, "" if states else "red"))
    first = beside(left, text(datetime.fromtimestamp(now).strftime("%H:%M:%S"), "bright_black"), width)
    return [first, text(POOL_PAUSED, "magenta")] if paused else [first]


def _totals(scene: PoolScene, width: int, unicode: bool) -> list[Text]:
    states = scene.states
    speed = sum(state.tokens_per_second or 0.0 for state in states)
    lines = sum(state.lines_per_second or 0.0 for state in states)
    words = Counter(word_of(batch, scene.waiting.get(batch.id)) for batch in scene.batches if not batch.done)
    spark = sparkline(summed_speeds(states), SPARK, unicode=unicode)
    parts = [
        text(f"{rate(speed)} tok/s ", "bold").append_text(spark),
        text(f"{rate(lines)} lines/s"),
        text(", ".join(f"{number} {word}" for word, number in sorted(words.items())) or "nothing to do"),
    ]
    return wrapped(parts, width)


def in_order(batches: Sequence[Batch], waiting: Container[str] = ()) -> list[Batch]:
    """What runs first, then what waits, both by priority and the older first; then what has ended, the latest first."""
    live = [batch for batch in batches if not batch.done]
    done = [batch for batch in batches if batch.done]
    live.sort(
        key=lambda batch: (batch.id in waiting, batch.status != "in_progress", _urgency(batch.priority), batch.id)
    )
    done.sort(key=lambda batch: (batch.ended_at or 0.0, batch.id), reverse=True)
    return [*live, *done]


def _urgency(priority: str) -> int:
    return PRIORITIES.index(priority) if priority in PRIORITIES else len(PRIORITIES)


def _batch_lines(scene: PoolScene, width: int, rows: int, spare: int, unicode: bool) -> list[Text]:
    """The batches in at most so many ``rows``. Those that have ended have what is left of the rows that nothing else
    wants (``spare``), and are the latest few where that is less."""
    batches = in_order(scene.batches, scene.waiting)
    if not batches:
        return [text(NO_BATCHES)]
    count = len(batches)
    if count + 1 > spare:
        live = sum(not batch.done for batch in batches)
        batches = batches[: live + max(FEW_ENDED, spare - live - 2)]
    lines = _batch_table(scene, batches, width, unicode)
    if len(batches) < count and len(lines) < rows:
        return [*lines, text(f"... and {count - len(batches):,} more that have ended", "bright_black")]
    return more(lines, rows, count)


def _batch_table(scene: PoolScene, batches: Sequence[Batch], width: int, unicode: bool) -> list[Text]:
    paces = [pace(batch, scene.now, scene.rates.get(batch.id)) for batch in batches]
    run = [batch.finished - batch.unrun for batch in batches]
    shares = [lines / batch.total if batch.total else 0.0 for batch, lines in zip(batches, run, strict=True)]
    failures = [batch.failed - batch.unrun for batch in batches]
    table = [
        Column("batch", [text(batch.name or batch.id, _weight(batch)) for batch in batches], least=12, middle=True),
        Column("id", [text(batch.id if batch.name else "", "bright_black") for batch in batches], rank=8),
        Column("state", [_state(batch, scene) for batch in batches], rank=1),
        Column("progress", [bar(share, 24 if width >= WIDE else 8, _colour(batch), unicode=unicode)
                            for batch, share in zip(batches, shares, strict=True)], rank=3),
        Column("", [text(f"{int(share * 100)}%") for share in shares], right=True),
        Column("lines", [text(f"{lines:,}/{batch.total:,}")
                         for batch, lines in zip(batches, run, strict=True)], right=True),
        Column("tok/s", [text(rate(speed)) for speed, _ in paces], right=True, rank=2),
        Column("left", [_left(batch, eta, scene) for batch, (_, eta) in zip(batches, paces, strict=True)], right=True),
        Column("prio", [text(batch.priority) for batch in batches], rank=5),
        Column("model", [text(models_of(batch.models)) for batch in batches], rank=6),
        Column("", [text(scene.waiting.get(batch.id, ""), "yellow") for batch in batches], rank=7, least=24),
    ]  # fmt: skip
    if any(failures):
        place = next(place for place, column in enumerate(table) if column.title == "lines") + 1
        cells = [text(f"{failed:,}" if failed else "-", "red" if failed else "") for failed in failures]
        table.insert(place, Column("failed", cells, right=True, rank=2))
    return columns(table, width)


def _weight(batch: Batch) -> str:
    return "bright_black" if batch.done else "bold"


def _colour(batch: Batch) -> str:
    if not batch.done:
        return "green"
    return "bright_black" if batch.status == "completed" else STYLES.get(batch.status, "bright_black")


def _state(batch: Batch, scene: PoolScene) -> Text:
    why = scene.waiting.get(batch.id)
    return text(state_of(batch, why, scene.now), STYLES.get(word_of(batch, why), ""))


def _left(batch: Batch, eta: float | None, scene: PoolScene) -> Text:
    if batch.done:
        ended = batch.ended_at
        return text("-" if ended is None else f"{duration(scene.now - ended)} ago", "bright_black")
    return text("-" if batch.id in scene.waiting else duration(eta))
