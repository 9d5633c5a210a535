"""What ``promptmill status`` shows: all batches as JSON objects, as a plain table, and on a full screen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar

from rich.text import Text

from jobs.batch import ID_CUT, PRIORITIES, Batch
from jobs.store.cancel import expire_due
from jobs.store.store import Store
from submit.status.lines_in_flight import in_turns, lines_in_flight, with_lines_in_flight
from submit.status.pool_pause import POOL_PAUSED, pool_known_paused
from submit.status.rates import BatchRates, Window, pace
from submit.status.table import NARROW_GAP, Column, plain_table, table, text
from submit.status.text import cells, clip, count, duration, rate, short_name
from submit.status.waiting import read_outlooks
from submit.status.widgets import WIDE, bar, more, wrapped
from submit.status.worker_state import WorkerState
from submit.status.workers import Workers
from submit.status.workers_view import heading, throughput

NO_BATCHES = "no batches; `promptmill submit FILE --model MODEL` makes one"
LONGEST_NAME = 24
"""Columns of a name in a terminal that has no room for all."""
ID_HEAD, ID_TAIL = 6, 5
"""Letters of an id that is shown short; more at its end where it would be one of several."""
SPARK = 20
FEW_ENDED = 3
"""Batches that have ended are at most so many where there is not room for all."""
DAY_S = 86400.0
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


class PoolReader:
    """Reads all batches again and again; where they are printed ``as_json``, nothing of the workers."""

    def __init__(self, store: Store, *, as_json: bool = False) -> None:
        self._store, self._as_json = store, as_json
        self._workers = Workers(store.connection)
        self._windows: dict[str, Window] = {}

    def read(self, *, drawn: bool = False) -> PoolView:
        """The batches as they are, and why they wait."""
        expire_due(self._store)
        now, batches = self._store.now(), self._store.batches()
        self._windows = {batch.id: self._windows.get(batch.id, Window()) for batch in batches}
        rates = {batch.id: self._windows[batch.id].add(now, batch) for batch in batches}
        if self._as_json:
            return PoolView(now, batches, rates=rates)
        workers, live = self._workers.read(), [batch for batch in batches if not batch.done]
        outlooks = read_outlooks(self._store, self._workers, live, workers)
        reasons = {batch_id: why for batch_id, outlook in outlooks.items() if (why := outlook.why_waiting) is not None}
        return PoolView(now, batches, workers, rates, reasons, pool_known_paused(self._store))


@dataclass(frozen=True, slots=True)
class PoolView:
    """The pool at one moment: ``now`` in seconds since the epoch; ``rates`` of the recent past, and why batches wait
    (``waiting``), by batch id. Batches are ordered the oldest first."""

    now: float
    batches: Sequence[Batch]
    workers: Sequence[WorkerState] = ()
    rates: Mapping[str, BatchRates] = field(default_factory=dict)
    waiting: Mapping[str, str] = field(default_factory=dict)
    pool_paused: bool = False
    done: ClassVar[bool] = False
    """There is always more to come."""

    def as_json(self) -> list[dict[str, Any]]:
        """The batches, the oldest first."""
        return [batch.as_dict(self.now) for batch in self.batches]

    def text(self, width: int | None) -> list[str]:
        """A table of at most ``width`` columns (None: as wide as need be); where there is no room, ids are shortened
        first."""
        above = [POOL_PAUSED] if self.pool_paused else []
        if not self.batches:
            return [*above, NO_BATCHES]
        lines = plain_table(self._plain_columns(short=False), self.batches, None)
        if width is not None and max(map(cells, lines)) > width:
            lines = plain_table(self._plain_columns(short=True), self.batches, width)
        return [*above, *lines]

    def _plain_columns(self, *, short: bool) -> list[Column[Batch]]:
        ids = _short_ids([batch.id for batch in self.batches]) if short else {}

        def name(batch: Batch) -> str:
            return clip(batch.name or "-", LONGEST_NAME) if short else batch.name or "-"

        def pace_of(batch: Batch) -> tuple[float | None, float | None]:
            return (None, None) if batch.id in self.waiting else self._pace(batch)

        def age(batch: Batch) -> float | None:
            return self.now - batch.times["created"] if "created" in batch.times else None

        return [
            Column("batch", lambda batch: ids.get(batch.id, batch.id)),
            Column("name", name, rank=1),
            Column("status", self._state),
            Column("done/failed/total", lambda batch: f"{batch.completed:,}/{batch.failed:,}/{batch.total:,}",
                   right=True),
            Column("tokens", lambda batch: count(batch.usage.prompt_tokens + batch.usage.completion_tokens),
                   right=True, rank=5),
            Column("tok/s", lambda batch: rate(pace_of(batch)[0]), right=True, rank=3),
            Column("eta", lambda batch: duration(pace_of(batch)[1]), right=True, rank=2),
            Column("model", _models, rank=4),
            Column("age", lambda batch: duration(age(batch)), right=True, rank=6),
        ]  # fmt: skip

    def draw(self, width: int, height: int, *, unicode: bool = True) -> list[Text]:
        """At most ``height`` lines of at most ``width`` columns: the pool in short, batches, lines in flight."""
        states = Counter(state_name(batch, self.waiting.get(batch.id)) for batch in self.batches if not batch.done)
        counted = ", ".join(f"{number} {state}" for state, number in sorted(states.items())) or "nothing to do"
        lines = [
            *heading("promptmill", self.workers, self.now, width, pool_paused=self.pool_paused),
            *wrapped([*throughput(self.workers, SPARK, unicode), text(counted)], width),
            text(""),
        ]
        by_id = {batch.id: batch for batch in self.batches}
        done = {batch.id for batch in self.batches if batch.done}
        in_flight = in_turns(pair for pair in lines_in_flight(self.workers) if pair[1].batch_id not in done)
        room = height - len(lines)
        # Lines in flight have half of the screen where there are so many, and what batches leave.
        wanted = len(in_flight) + 3 if in_flight else 0
        lines += self._batch_lines(width, max(room - min(wanted, room // 2), 3), room - wanted, unicode)
        return with_lines_in_flight(
            lines,
            in_flight,
            sum(worker.lines_in_flight for worker in self.workers),
            width,
            height,
            batch_name=lambda batch_id: (by_id[batch_id].name if batch_id in by_id else None) or batch_id,
            unicode=unicode,
        )

    def _batch_lines(self, width: int, rows: int, spare: int, unicode: bool) -> list[Text]:
        """The batches in at most so many ``rows``. Those that have ended have what is left of the rows that nothing
        else wants (``spare``), and are the latest few where that is less."""
        batches = in_order(self.batches, self.waiting)
        if not batches:
            return [text(NO_BATCHES)]
        total = len(batches)
        if total + 1 > spare:
            live = sum(not batch.done for batch in batches)
            batches = batches[: live + max(FEW_ENDED, spare - live - 2)]
        lines = table(self._drawn_columns(batches, width, unicode), batches, width, least_gap=NARROW_GAP)
        if len(batches) < total and len(lines) < rows:
            return [*lines, text(f"... and {total - len(batches):,} more that have ended", "bright_black")]
        return more(lines, rows, total)

    def _drawn_columns(self, batches: Sequence[Batch], width: int, unicode: bool) -> list[Column[Batch]]:
        bar_width = 24 if width >= WIDE else 8
        failed: Column[Batch] = Column("failed", _failed, right=True, rank=2)

        def progress(batch: Batch) -> Text:
            return bar(_share(batch), bar_width, STYLES.get(batch.status, "green"), unicode=unicode)

        return [
            Column("batch", lambda batch: text(batch.name or batch.id, "bright_black" if batch.done else "bold"),
                   least=12, middle=True),
            Column("id", lambda batch: text(batch.id if batch.name else "", "bright_black"), rank=8),
            Column("state", self._state, rank=1),
            Column("progress", progress, rank=3),
            Column("", lambda batch: f"{int(_share(batch) * 100)}%", right=True),
            Column("lines", lambda batch: f"{batch.ran:,}/{batch.total:,}", right=True),
            *([failed] if any(batch.failed_running for batch in batches) else []),
            Column("tok/s", lambda batch: rate(self._pace(batch)[0]), right=True, rank=2),
            Column("left", self._left, right=True),
            Column("prio", lambda batch: batch.priority, rank=5),
            Column("model", _models, rank=6),
            Column("", lambda batch: text(self.waiting.get(batch.id, ""), "yellow"), rank=7, least=24),
        ]  # fmt: skip

    def _pace(self, batch: Batch) -> tuple[float | None, float | None]:
        return pace(batch, self.now, self.rates.get(batch.id))

    def _state(self, batch: Batch) -> Text:
        """The state of a batch in one word; of one that waits for its start time, that time."""
        state = state_name(batch, self.waiting.get(batch.id))
        shown = state
        if not batch.done and not batch.paused and "starts" in batch.times:
            at, ahead = datetime.fromtimestamp(batch.times["starts"]), batch.times["starts"] - self.now
            when = f"{at:%H:%M}" if ahead < DAY_S else f"{at:%a %H:%M}" if ahead < 6 * DAY_S else f"{at:%F}"
            shown = f"begins {when}"
        return text(shown, STYLES.get(state, ""))

    def _left(self, batch: Batch) -> Text:
        if batch.done:
            ended = batch.ended_at
            return text("-" if ended is None else f"{duration(self.now - ended)} ago", "bright_black")
        return text("-" if batch.id in self.waiting else duration(self._pace(batch)[1]))


def in_order(batches: Sequence[Batch], waiting: Container[str] = ()) -> list[Batch]:
    """What runs first, then what waits, both by priority and the older first; then what has ended, the latest first."""
    live = [batch for batch in batches if not batch.done]
    done = [batch for batch in batches if batch.done]
    live.sort(
        key=lambda batch: (
            batch.id in waiting,
            batch.status != "in_progress",
            (*PRIORITIES, batch.priority).index(batch.priority),  # one of another version comes last
            batch.id,
        )
    )
    done.sort(key=lambda batch: (batch.ended_at or 0.0, batch.id), reverse=True)
    return [*live, *done]


def state_name(batch: Batch, why: str | None) -> str:
    """The state of a batch in one word; ``why`` it does not run is what :attr:`BatchOutlook.why_waiting` says."""
    if why is None:
        return "running" if batch.status == "in_progress" else batch.status
    return next((state for state in ("loading", "paused") if why.startswith(state)), "waiting")


def _short_ids(ids: Sequence[str]) -> dict[str, str]:
    """Ids with a cut in the middle that commands take for the whole, each for one of these alone."""
    tail = ID_TAIL
    while len({batch_id[-tail:] for batch_id in ids}) < len(set(ids)) and tail < max(map(len, ids)):
        tail += 1
    cut = ID_HEAD + len(ID_CUT) + tail
    return {
        batch_id: batch_id if len(batch_id) <= cut else f"{batch_id[:ID_HEAD]}{ID_CUT}{batch_id[-tail:]}"
        for batch_id in ids
    }


def _models(batch: Batch) -> str:
    """The first model, and how many more there are."""
    if not batch.models:
        return "-"
    more_models = f" +{len(batch.models) - 1}" if len(batch.models) > 1 else ""
    return f"{short_name(batch.models[0])}{more_models}"


def _share(batch: Batch) -> float:
    return batch.ran / batch.total if batch.total else 0.0


def _failed(batch: Batch) -> Text:
    failed = batch.failed_running
    return text(f"{failed:,}" if failed else "-", "red" if failed else "")
