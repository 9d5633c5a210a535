"""What ``promptmill workers`` shows: the pool's workers as JSON objects, as a plain table, and on a full screen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from rich.text import Text

from jobs.store.read_batch import read_batches
from jobs.store.store import Store
from submit.status.lines_in_flight import in_turns, lines_in_flight, with_lines_in_flight
from submit.status.pool_pause import POOL_PAUSED, pool_known_paused
from submit.status.table import NARROW_GAP, Column, plain_table, table, text
from submit.status.text import count, duration, plural, rate, short_name, size
from submit.status.widgets import WIDE, bar, fit, more, sparkline, title_line, wrapped
from submit.status.worker_state import WorkerState
from submit.status.workers import LostWorker, Workers, read_lost_workers

NO_WORKERS = "no workers; `promptmill worker --model MODEL` starts one"
NARROW = 100
"""Below so many columns the sizes of models are left out."""
SPARK = 30
LEAST_LINES = 6
"""Lines of the screen that are kept for lines in flight, however many workers there are."""
STYLES = {
    "busy": "green",
    "starting": "yellow",
    "loading": "yellow",
    "draining": "yellow",
    "paused": "magenta",
}

AnyWorker = WorkerState | LostWorker


class WorkersReader:
    """Reads the workers again and again."""

    def __init__(self, store: Store) -> None:
        self._store, self._workers = store, Workers(store.connection)

    def read(self, *, drawn: bool = False) -> WorkersView:
        """What the workers say, and which of RQ's say nothing; if it is to be ``drawn``, with the names of batches."""
        now, workers = self._store.now(), self._workers.read()
        lost = read_lost_workers(self._store.connection, {worker.name for worker in workers}, now)
        worked_on = {line.batch_id for _, line in lines_in_flight(workers)} if drawn else set()
        batches = read_batches(self._store.connection, sorted(worked_on))
        names = {batch.id: batch.name for batch in batches if batch.name is not None}
        return WorkersView(now, workers, lost, names, pool_known_paused(self._store))


@dataclass(frozen=True, slots=True)
class WorkersView:
    """The workers at one moment: ``now`` in seconds since the epoch; names of batches, where they have one, by id."""

    now: float
    workers: Sequence[WorkerState]
    lost: Sequence[LostWorker] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    pool_paused: bool = False
    done: ClassVar[bool] = False
    """There is always more to come."""

    @property
    def _all(self) -> list[AnyWorker]:
        return [*self.workers, *self.lost]

    def as_json(self) -> list[dict[str, Any]]:
        """The workers with their lines in flight, then the lost ones."""
        live = [
            {
                **worker.as_dict(),
                "uptime_s": None if (uptime := worker.uptime(self.now)) is None else round(uptime, 1),
                "in_flight": [{"batch_id": line.batch_id, **line.as_dict()} for line in worker.in_flight],
            }
            for worker in self.workers
        ]
        return [*live, *(worker.as_dict() for worker in self.lost)]

    def text(self, width: int | None) -> list[str]:
        """A table, by name; the lost workers last."""
        above = [POOL_PAUSED] if self.pool_paused else []
        if not self._all:
            return [*above, NO_WORKERS]
        sizes = width is None or width >= NARROW
        speed, *counts = _numbers(self.now, nothing="-")
        columns: list[Column[AnyWorker]] = [
            Column("worker", lambda worker: worker.name),
            Column("state", lambda worker: _state(worker, "silent for")),
            Column("models", _of_live(lambda worker: _models(worker, sizes=sizes), "-")),
            Column("memory", _of_live(_memory, "-"), right=True, rank=2),
            speed,
            *counts,
            Column("host", lambda worker: worker.hostname or "-", rank=9),
            Column("version", _of_live(lambda worker: worker.version or "-", "-"), rank=10),
        ]
        return [*above, *plain_table(columns, self._all, width)]

    def draw(self, width: int, height: int, *, unicode: bool = True) -> list[Text]:
        """At most ``height`` lines of at most ``width`` columns: the workers, then their lines in flight in turns."""
        lines = heading("promptmill workers", self.workers, self.now, width, pool_paused=self.pool_paused)
        if not self._all:
            return fit([*lines, text(""), text(NO_WORKERS)], width, height)
        lines += [*wrapped(throughput(self.workers, SPARK, unicode), width), text("")]
        in_flight = in_turns(lines_in_flight(self.workers))
        drawn = drawn_table(self._all, width, now=self.now, unicode=unicode)
        room = height - len(lines) - (LEAST_LINES if in_flight else 0)
        lines += more(drawn, max(room, 3), len(self._all))
        return with_lines_in_flight(
            lines,
            in_flight,
            sum(worker.lines_in_flight for worker in self.workers),
            width,
            height,
            batch_name=lambda batch_id: self.names.get(batch_id) or batch_id,
            unicode=unicode,
        )


def drawn_table(workers: Sequence[AnyWorker], width: int, *, now: float, unicode: bool = True) -> list[Text]:
    """A header and a line per worker for a full screen: as the plain table, with bars and the last minute's speed."""
    memory_bar, spark, minute = (10, 20, "last minute") if width >= WIDE else (5, 10, "minute")
    speed, *counts = _numbers(now, nothing="")
    columns: list[Column[AnyWorker]] = [
        Column("worker", lambda worker: text(worker.name, "bold"), least=8),
        Column("state", lambda worker: _state(worker, "silent")),
        Column("model", _of_live(lambda worker: _models(worker, sizes=False), ""), rank=6, least=9),
        Column("memory", _of_live(lambda worker: _memory_bar(worker, memory_bar, unicode), ""), rank=5),
        speed,
        Column(minute, _of_live(lambda worker: sparkline(worker.speeds, spark, unicode=unicode), ""), rank=4),
        *counts,
    ]
    return table(columns, workers, width, least_gap=NARROW_GAP)


def heading(title: str, workers: Sequence[WorkerState], now: float, width: int, *, pool_paused: bool) -> list[Text]:
    """What is watched, how many workers there are and what they do, and the time of day; then that the pool is paused,
    where it is."""
    states = Counter(worker.effective_state for worker in workers)
    order = ("busy", "idle", "starting", "loading", "paused", "draining")
    counted = [f"{states.pop(state)} {state}" for state in order if states[state]]
    counted += [f"{number} {state}" for state, number in sorted(states.items()) if number]
    shown = f"{plural(len(workers), 'worker')}: {', '.join(counted)}" if workers else "no workers"
    left = text(title, "bold").append("   ").append_text(text(shown, "" if workers else "red"))
    first = title_line(left, now, width)
    return [first, text(POOL_PAUSED, "magenta")] if pool_paused else [first]


def throughput(workers: Sequence[WorkerState], spark: int, unicode: bool) -> list[Text]:
    """Tokens per second of all workers, now and as a sparkline of the last minute, lines per second, and
    where texts are scored their tokens."""
    longest = max((len(worker.speeds) for worker in workers), default=0)
    summed = [
        sum(worker.speeds[-back] for worker in workers if len(worker.speeds) >= back) for back in range(longest, 0, -1)
    ]
    tokens = sum(worker.tokens_per_second or 0.0 for worker in workers)
    lines = sum(worker.lines_per_second or 0.0 for worker in workers)
    scored = sum(worker.scored_per_second or 0.0 for worker in workers)
    minute = sparkline(summed, spark, unicode=unicode)
    shown = [text(f"{rate(tokens)} tok/s ", "bold").append_text(minute), text(f"{rate(lines)} lines/s")]
    return [*shown, text(f"{rate(scored)} scored tok/s")] if scored else shown


def state_text(worker: WorkerState) -> str:
    """The state for a person; one that loads a model says which."""
    if worker.effective_state == "loading" and worker.model is not None:
        return f"loading {short_name(worker.model)}"
    return worker.effective_state


def _of_live(cell: Callable[[WorkerState], str | Text], nothing: str) -> Callable[[AnyWorker], str | Text]:
    """A cell that lost workers have nothing in."""
    return lambda worker: cell(worker) if isinstance(worker, WorkerState) else nothing


def _numbers(now: float, *, nothing: str) -> list[Column[AnyWorker]]:
    """The columns of numbers. ``full`` is how full a worker's batch is, ``cached`` the part of the last minute's prompt
    tokens that came from the prefix cache, ``lines`` those in flight, ``done`` those since the worker was started."""

    def number(title: str, cell: Callable[[WorkerState], str], rank: int = 0) -> Column[AnyWorker]:
        return Column(title, _of_live(cell, nothing), right=True, rank=rank)

    return [
        number("tok/s", lambda worker: rate(worker.tokens_per_second)),
        number("full", lambda worker: _percent(worker.occupancy), rank=1),
        number("cached", lambda worker: _percent(worker.cached_share), rank=3),
        number("lines", lambda worker: f"{worker.lines_in_flight:,}"),
        number("done", lambda worker: count(worker.lines_done), rank=7),
        number("uptime", lambda worker: duration(worker.uptime(now)), rank=8),
    ]


def _state(worker: AnyWorker, silent: str) -> Text:
    if isinstance(worker, LostWorker):
        return text(f"{silent} {duration(worker.silent_s)}", "red")
    return text(state_text(worker), STYLES.get(worker.effective_state, ""))


def _models(worker: WorkerState, *, sizes: bool) -> str:
    """The models in memory, with the size of their weights, then the others that the worker serves, in brackets."""
    loaded = [f"{short_name(model.name)} {size(model.size)}" if sizes else short_name(model.name)
              for model in worker.loaded]  # fmt: skip
    in_memory = {model.name for model in worker.loaded}
    others = [f"({short_name(model)})" for model in worker.models if model not in in_memory]
    return ", ".join([*loaded, *others]) or "-"


def _memory(worker: WorkerState) -> str:
    """Bytes in use, and of how many; a device that recommends no limit has none."""
    if worker.memory_bytes is None:
        return "-"
    used, limit = size(worker.memory_bytes), worker.memory_limit_bytes
    return used if limit is None else f"{used} of {size(limit)}"


def _memory_bar(worker: WorkerState, width: int, unicode: bool) -> str | Text:
    used, limit = worker.memory_bytes, worker.memory_limit_bytes
    if used is None or not limit:
        return _memory(worker)
    share = used / limit
    style = "green" if share < 0.8 else "yellow" if share < 0.95 else "red"
    return bar(share, width, style, unicode=unicode).append(f" {size(used)}")


def _percent(share: float | None) -> str:
    """A part of one as ``41%``; ``-`` when unknown."""
    return "-" if share is None else f"{share:.0%}"
