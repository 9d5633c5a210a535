"""``promptmill status BATCH --watch`` on a full screen: progress, the workers that serve it, lines in flight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from rich.text import Text

from jobs.batch import Batch
from jobs.store.orphans import Orphans
from submit.status.overview import described, in_flight, pace, rest_waits, serving
from submit.status.progress import Rates
from submit.status.text import count, duration, memory_size, plural, rate
from submit.status.worker_state import WorkerState
from submit.status.workers import POOL_PAUSED, activity
from submit.watch.in_flight import flight_section, taking_turns
from submit.watch.widgets import bar, beside, fit, more, text, wrapped
from submit.watch.worker_rows import crew_table

__all__ = ["BatchScene", "draw_batch"]

STYLES = {"completed": "green", "cancelled": "yellow", "expired": "yellow", "failed": "red"}
FEW_WORKERS = 3


@dataclass(frozen=True, slots=True)
class BatchScene:
    """A batch at one moment: ``now`` in seconds since the epoch, ``recent`` its rates of the last minute,
    ``memory`` the bytes it takes in Redis."""

    now: float
    batch: Batch
    states: Sequence[WorkerState]
    queues: frozenset[str]
    recent: Rates = Rates()
    memory: int | None = None
    pool_paused: bool = False
    orphans: Orphans | None = None


def draw_batch(scene: BatchScene, width: int, height: int, *, unicode: bool = True) -> list[Text]:
    """At most ``height`` lines of at most ``width`` columns: facts, progress, workers, lines in flight."""
    batch = scene.batch
    waiting = activity(batch, scene.queues, scene.states, pool_paused=scene.pool_paused, orphans=scene.orphans)
    waiting = waiting or rest_waits(batch, scene.queues, scene.states, scene.orphans)
    lines = [_title(batch, scene.now, width), text(""), _progress(batch, width, unicode)]
    if scene.pool_paused and not batch.done:
        lines.insert(1, text(POOL_PAUSED, "magenta"))
    if waiting is not None:
        lines.append(text(waiting, "yellow"))
    lines += wrapped(_pace(scene, waiting), width)
    described_so = [*described(batch), ("memory", "" if scene.memory is None else memory_size(scene.memory))]
    facts = [text(f"{label} ", "bright_black").append(text(shown).plain) for label, shown in described_so if shown]
    for fact in facts:
        fact.truncate(width, overflow="ellipsis")
    lines += wrapped(facts, width)
    workers, flights = serving(batch, scene.states, scene.queues), taking_turns(in_flight(batch, scene.states))
    if workers:
        room = max(height - len(lines) - (min(len(flights), 4) + 4), FEW_WORKERS)
        table = crew_table(workers, width, now=scene.now, unicode=unicode)
        lines += [text(""), *more(table, room, len(workers))]
    left = height - len(lines) - 1
    section = flight_section(flights, len(flights), width, left, unicode=unicode)
    return fit([*lines, *([text(""), *section] if section else [])], width, height)


def _title(batch: Batch, now: float, width: int) -> Text:
    left = text(batch.name or batch.id, "bold")
    if batch.name is not None:
        left.append(f"   {batch.id}", "bright_black")
    left.append("   ").append_text(text(batch.status, STYLES.get(batch.status, "")))
    return beside(left, text(datetime.fromtimestamp(now).strftime("%H:%M:%S"), "bright_black"), width)


def _progress(batch: Batch, width: int, unicode: bool) -> Text:
    run = batch.finished - batch.unrun
    share = run / batch.total if batch.total else 1.0
    said = text(f"{int(share * 100):>4}%   {run:,} of {plural(batch.total, 'line')}", "bold")
    if failed := batch.failed - batch.unrun:
        said.append_text(text(f"   {failed:,} failed", "red"))
    if batch.unrun:
        said.append_text(text(f"   {batch.unrun:,} not run", "yellow"))
    room = max(width - said.cell_len, 0)
    return bar(share, room, STYLES.get(batch.status, "green"), unicode=unicode).append_text(said)


def _pace(scene: BatchScene, waiting: str | None) -> list[Text]:
    batch, recent = scene.batch, scene.recent
    speed, eta = pace(batch, scene.now, recent)
    lines = recent.lines if recent.lines else batch.rates(scene.now)["lines_per_second"]
    parts = []
    if speed is not None:
        parts.append(text(f"{rate(speed)} tok/s", "bold"))
    if lines is not None:
        parts.append(text(f"{rate(lines)} lines/s"))
    if eta is not None and waiting is None:
        parts.append(text(f"{duration(eta)} left", "bold"))
    started, ended = batch.times.get("started"), batch.ended_at
    if started is not None:
        parts.append(text(f"{'took' if ended is not None else 'running for'} {duration(batch.elapsed(scene.now))}"))
    usage = batch.usage
    cached = f" ({usage.cached_tokens / usage.prompt_tokens:.0%} cached)" if usage.prompt_tokens else ""
    parts.append(text(f"{count(usage.prompt_tokens)} prompt tokens{cached}"))
    parts.append(text(f"{count(usage.completion_tokens)} generated"))
    if not batch.done and "expires" in batch.times:
        parts.append(text(f"expires in {duration(batch.times['expires'] - scene.now)}", "yellow"))
    return parts
