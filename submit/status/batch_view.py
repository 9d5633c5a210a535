"""What ``promptmill status BATCH`` shows: one batch as a JSON object, as plain facts, and on a full screen."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

import orjson
from rich.text import Text

from jobs.batch import Batch
from jobs.delivery import origin
from jobs.store.cancel import current
from jobs.store.orphans import Orphans, find_orphans
from jobs.store.retention import memory
from jobs.store.store import Store
from submit.status.lines_in_flight import (
    LineOnWorker,
    in_turns,
    lines_in_flight,
    plain_lines_in_flight,
    with_lines_in_flight,
)
from submit.status.pool_pause import POOL_PAUSED
from submit.status.rates import BatchRates, Window, pace, scored_pace
from submit.status.table import text
from submit.status.text import count, duration, memory_size, plural, printable, rate, size
from submit.status.waiting import BatchOutlook, read_outlooks
from submit.status.widgets import bar, more, title_line, wrapped
from submit.status.worker_state import WorkerState
from submit.status.workers import Workers
from submit.status.workers_view import drawn_table, state_text

MEASURE_S, MEASURE_RATIO = 10.0, 20
"""What a batch takes in Redis is measured again after this long, and after so many times what it took: each of its keys
is asked for. So it is with its shards that are in no queue: all queues are read."""
STYLES = {"completed": "green", "cancelled": "yellow", "expired": "yellow", "failed": "red"}
FEW_WORKERS = 3


class BatchReader:
    """Reads one batch again and again."""

    def __init__(self, store: Store, batch_id: str) -> None:
        self._store, self._batch_id = store, batch_id
        self._workers, self._window = Workers(store.connection), Window()
        self._memory: int | None = None
        self._orphans: Orphans | None = None
        self._measure_at = 0.0

    def read(self, *, drawn: bool = False) -> BatchView:
        """The batch and the workers as they are."""
        now, batch = self._store.now(), current(self._store, self._batch_id)
        outlook = read_outlooks(self._store, self._workers, [batch], self._workers.read())[batch.id]
        if now >= self._measure_at:
            self._memory = memory(self._store.connection, batch.id)
            self._orphans = find_orphans(self._store, batch.id)
            end = self._store.now()
            self._measure_at = end + max(MEASURE_S, MEASURE_RATIO * (end - now))
        recent = self._window.add(now, batch)
        return BatchView(now, replace(outlook, orphans=self._orphans), recent, self._memory)


@dataclass(frozen=True, slots=True)
class BatchView:
    """A batch at one moment: ``now`` in seconds since the epoch, ``recent`` its rates of the last minute, ``memory``
    the bytes it takes in Redis."""

    now: float
    outlook: BatchOutlook
    recent: BatchRates = BatchRates()
    memory: int | None = None

    @property
    def batch(self) -> Batch:
        return self.outlook.batch

    @property
    def done(self) -> bool:
        """Whether the batch will not change any more."""
        return self.batch.done

    @property
    def pool_paused(self) -> bool:
        """Whether the pool is paused, and the batch has to do with it."""
        return self.outlook.pool_paused and not self.done

    @property
    def waiting(self) -> str | None:
        """Why nothing of the batch, or not all of it, seems to happen."""
        return self.outlook.why_waiting or self.outlook.why_rest_waits

    @property
    def in_flight(self) -> list[LineOnWorker]:
        """The batch's lines in flight, in the order of the input."""
        # What a worker that died published last is there for some seconds after the batch was done.
        found = [] if self.done else lines_in_flight(self.outlook.workers, self.batch.id)
        return sorted(found, key=lambda pair: pair[1].index)

    def as_json(self) -> dict[str, Any]:
        """What Redis knows of the batch, and what the workers publish of it."""
        outlook = self.outlook
        return {
            **self.batch.as_dict(self.now),
            "memory_bytes": self.memory or 0,
            "waiting": outlook.why_waiting,
            "orphans": None if outlook.orphans is None else asdict(outlook.orphans),
            "unserved": outlook.unserved,
            "pool_paused": outlook.pool_paused,
            "workers": [worker.as_dict() for worker in outlook.serving],
            "in_flight": [{**line.as_dict(), "worker": worker.name} for worker, line in self.in_flight],
        }

    def text(self, width: int | None = None) -> list[str]:
        """The batch's facts, then its lines in flight; as wide as need be."""
        batch = self.batch
        why = self.waiting
        facts = [
            ("batch", batch.id if batch.name is None else f"{batch.id} ({batch.name})"),
            ("status", batch.status if why is None else f"{batch.status}, {why}"),
            ("pool", POOL_PAUSED if self.pool_paused else ""),
            *_description(batch),
            ("lines", _counts(batch)),
            ("tokens", _tokens(batch)),
            ("rate", self._rate(why)),
            ("webhook", self._webhook()),
            *self._times(),
            ("memory", "" if self.memory is None else f"{memory_size(self.memory)} in Redis"),
            *(("worker", _worker(worker)) for worker in self.outlook.serving),
        ]
        lines = [f"{label:<10}{printable(fact)}" for label, fact in facts if fact]
        return lines + plain_lines_in_flight(self.in_flight)

    def _rate(self, why: str | None) -> str:
        per_second, eta = pace(self.batch, self.now, self.recent)
        speed = "" if per_second is None else f"{rate(per_second)} tok/s"
        left = "" if eta is None or why is not None else f"{duration(eta)} left"
        return ", ".join(filter(None, (speed, scored_pace(self.batch, self.now, self.recent), left)))

    def _webhook(self) -> str:
        """What became of the webhook; of its URL no more than the host."""
        delivery, done = self.batch.delivery, self.batch.done
        if self.batch.webhook is None or delivery is None:
            return ""
        host = origin(self.batch.webhook)
        if not done:
            return f"{host}, when the batch is done"
        if delivery.state == "waiting" and not delivery.tries:
            return f"{host}: waiting for `promptmill scheduler` to send it"
        shown = f"{host}: {delivery.state}"
        if delivery.tries and delivery.state != "refused":
            shown += " after 1 try" if delivery.tries == 1 else f" after {delivery.tries:,} tries"
        if delivery.answer is not None:
            shown += f", {delivery.answer}"
        if delivery.state == "waiting" and delivery.next_at is not None:
            shown += f"; tried again in {duration(max(delivery.next_at - self.now, 0.0))}"
        return shown

    def _times(self) -> list[tuple[str, str]]:
        """When what happened to the batch happened, and when what is to happen will."""
        batch, times, now = self.batch, self.batch.times, self.now
        past = {"submitted": "created", "retried": "retried", "started": "started"}
        past |= {"ended": batch.status} if batch.done else {}
        to_come = {} if batch.done else {"begins": "starts", "expires": "expires"}
        shown = [
            *((label, f"{_local(times[key])} ({duration(now - times[key])} ago)")
              for label, key in past.items() if key in times),
            *((label, f"{_local(times[key])} (in {duration(times[key] - now)})")
              for label, key in to_come.items() if key in times),
        ]  # fmt: skip
        if batch.ended_at is not None and batch.keep_s is not None:
            until = batch.ended_at + batch.keep_s
            shown.append(("kept", f"until {_local(until)} ({duration(until - now)} more)"))
        return shown

    def draw(self, width: int, height: int, *, unicode: bool = True) -> list[Text]:
        """At most ``height`` lines of at most ``width`` columns: facts, progress, workers, lines in flight."""
        batch, why = self.batch, self.waiting
        lines = [self._title(width), text(""), _progress(batch, width, unicode)]
        if self.pool_paused:
            lines.insert(1, text(POOL_PAUSED, "magenta"))
        if why is not None:
            lines.append(text(why, "yellow"))
        lines += wrapped(self._pace(why), width)
        description = [*_description(batch), ("memory", "" if self.memory is None else memory_size(self.memory))]
        facts = [text(f"{label} ", "bright_black").append(printable(fact)) for label, fact in description if fact]
        lines += wrapped(facts, width)
        workers, in_flight = self.outlook.serving, in_turns(self.in_flight)
        if workers:
            room = max(height - len(lines) - (min(len(in_flight), 4) + 4), FEW_WORKERS)
            drawn = drawn_table(workers, width, now=self.now, unicode=unicode)
            lines += [text(""), *more(drawn, room, len(workers))]
        return with_lines_in_flight(lines, in_flight, len(in_flight), width, height, unicode=unicode)

    def _title(self, width: int) -> Text:
        batch = self.batch
        left = text(batch.name or batch.id, "bold")
        if batch.name is not None:
            left.append(f"   {batch.id}", "bright_black")
        left.append("   ").append_text(text(batch.status, STYLES.get(batch.status, "")))
        return title_line(left, self.now, width)

    def _pace(self, why: str | None) -> list[Text]:
        batch, now, usage = self.batch, self.now, self.batch.usage
        speed, eta = pace(batch, now, self.recent)
        lines = self.recent.lines if self.recent.lines else batch.rates(now)["lines_per_second"]
        cached = f" ({usage.cached_tokens / usage.prompt_tokens:.0%} cached)" if usage.prompt_tokens else ""
        running = "running for" if batch.ended_at is None else "took"
        expires = None if batch.done else batch.times.get("expires")
        parts = [
            ("" if speed is None else f"{rate(speed)} tok/s", "bold"),
            (scored_pace(batch, now, self.recent), "bold"),
            ("" if lines is None else f"{rate(lines)} lines/s", ""),
            ("" if eta is None or why is not None else f"{duration(eta)} left", "bold"),
            (f"{running} {duration(batch.elapsed(now))}" if "started" in batch.times else "", ""),
            (f"{count(usage.prompt_tokens)} prompt tokens{cached}", ""),
            (f"{count(usage.completion_tokens)} generated", ""),
            (f"{count(usage.scored_tokens)} scored" if usage.scored_tokens else "", ""),
            ("" if expires is None else f"expires in {duration(expires - now)}", "yellow"),
        ]
        return [text(shown, style) for shown, style in parts if shown]


def _progress(batch: Batch, width: int, unicode: bool) -> Text:
    share = batch.ran / batch.total if batch.total else 1.0
    label = text(f"{int(share * 100):>4}%   {batch.ran:,} of {plural(batch.total, 'line')}", "bold")
    if failed := batch.failed_running:
        label.append_text(text(f"   {failed:,} failed", "red"))
    if batch.unrun:
        label.append_text(text(f"   {batch.unrun:,} not run", "yellow"))
    room = max(width - label.cell_len, 0)
    return bar(share, room, STYLES.get(batch.status, "green"), unicode=unicode).append_text(label)


def _description(batch: Batch) -> list[tuple[str, str]]:
    """What was submitted, as labels and facts; a fact that there is none of is empty."""
    defaults = {name: value for name, value in batch.defaults.items() if name != "model"}
    return [
        ("source", batch.source),
        ("models", ", ".join(batch.models)),
        ("priority", batch.priority),
        ("schedule", batch.schedule or ""),
        ("defaults", ", ".join(f"{name} {_json(value)}" for name, value in defaults.items())),
        ("metadata", _json(dict(batch.metadata)) if batch.metadata else ""),
    ]


def _json(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode()


def _counts(batch: Batch) -> str:
    lines = f"{batch.ran:,} of {batch.total:,} done"
    if failed := batch.failed_running:
        lines += f", {failed:,} failed"
    if batch.rejected:
        lines += f" ({batch.rejected:,} of them refused at submission)"
    if batch.unrun:
        lines += f", {batch.unrun:,} not run: the batch {batch.fate}"
    return lines


def _tokens(batch: Batch) -> str:
    usage = batch.usage
    cached = f" ({usage.cached_tokens:,} cached)" if usage.cached_tokens else ""
    scored = f", {usage.scored_tokens:,} scored" if usage.scored_tokens else ""
    return f"{usage.prompt_tokens:,} prompt{cached}, {usage.completion_tokens:,} generated{scored}"


def _worker(worker: WorkerState) -> str:
    shown = f"{worker.name}: {state_text(worker)}"
    if worker.tokens_per_second is not None and worker.state not in ("loading", "starting"):
        shown += f", {rate(worker.tokens_per_second)} tok/s"
    if worker.occupancy is not None:
        shown += f", {worker.occupancy:.0%} full"
    if worker.memory_bytes:
        shown += f", {size(worker.memory_bytes)}"
    return shown


def _local(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")
