"""A worker's published state, read with bounds: the value may be anybody's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from jobs.batch import timestamp
from submit.status.text import printable

__all__ = ["FailingModel", "LineInFlight", "LoadedModel", "WorkerState", "parse_state"]

MAX_COUNT = 2**53
YEAR_9999 = 253_402_300_799
MOST_SPEEDS = 60


@dataclass(frozen=True, slots=True)
class LineInFlight:
    """A line being worked on: what of its prompt is read, what is generated so far."""

    batch_id: str
    index: int
    id: str
    phase: str
    prompt_tokens: int
    prefilled: int
    completion_tokens: int

    def as_dict(self) -> dict[str, Any]:
        return {
            "index": self.index,
            "id": self.id,
            "phase": self.phase,
            "prompt_tokens": self.prompt_tokens,
            "prefilled": self.prefilled,
            "completion_tokens": self.completion_tokens,
        }


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in a worker's memory, and the bytes of its weights."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class FailingModel:
    """A model that a worker cannot load: why, and in how many seconds it is tried again."""

    name: str
    reason: str
    retry_s: float

    def as_dict(self) -> dict[str, Any]:
        return {"model": self.name, "reason": self.reason, "retry_s": self.retry_s}


@dataclass(frozen=True, slots=True)
class WorkerState:
    """What one worker published last, at most six seconds ago; None and 0 where it does not say.

    ``state`` is ``starting`` (not ready for work yet), ``idle``, ``busy``, ``loading`` (then ``model`` says which) or
    ``draining``; ``models`` are those it serves, ``loaded`` those in its memory, ``failing`` those it cannot load;
    ``refused`` has, by batch id, why shards of batches went back. ``tokens_per_second`` counts new
    tokens of the last second, ``speeds`` those of each second of the last minute, and ``occupancy`` (0..1) is how full
    the batch was. ``cached_share`` (0..1) is the part of the last minute's prompt tokens that came from the prefix
    cache. ``lines_done``, ``prompt_tokens``, ``cached_tokens`` and ``completion_tokens`` are totals since
    ``started_at`` (seconds since the epoch), and ``lines_in_flight`` counts those beyond what ``in_flight`` lists too.
    """

    name: str
    state: str
    model: str | None
    models: tuple[str, ...]
    queues: tuple[str, ...]
    tokens_per_second: float | None
    occupancy: float | None
    memory_bytes: int | None
    in_flight: tuple[LineInFlight, ...]
    loaded: tuple[LoadedModel, ...] = ()
    failing: tuple[FailingModel, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    memory_limit_bytes: int | None = None
    paused: bool = False
    speeds: tuple[float, ...] = ()
    cached_share: float | None = None
    lines_per_second: float | None = None
    lines_in_flight: int = 0
    lines_done: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    hostname: str | None = None
    version: str | None = None
    started_at: float | None = None

    @property
    def word(self) -> str:
        """The state in one word: a worker that is paused and has nothing else to say is ``paused``."""
        return "paused" if self.paused and self.state in ("idle", "busy") else self.state

    def uptime(self, now: float) -> float | None:
        """Seconds since it was started, at ``now`` seconds since the epoch."""
        return None if self.started_at is None else max(now - self.started_at, 0.0)

    def as_dict(self) -> dict[str, Any]:
        """What ``status --json`` and ``workers --json`` print, but for the lines in flight."""
        return {
            "name": self.name,
            "state": self.word,
            "loading": self.model,
            "models": list(self.models),
            "loaded": [{"model": model.name, "bytes": model.size} for model in self.loaded],
            "failing": [model.as_dict() for model in self.failing],
            "refused": dict(self.refused),
            "paused": self.paused,
            "tokens_per_second": self.tokens_per_second,
            "lines_per_second": self.lines_per_second,
            "occupancy": self.occupancy,
            "cached_share": self.cached_share,
            "memory_bytes": self.memory_bytes,
            "memory_limit_bytes": self.memory_limit_bytes,
            "lines_in_flight": self.lines_in_flight,
            "totals": {
                "lines": self.lines_done,
                "prompt_tokens": self.prompt_tokens,
                "cached_tokens": self.cached_tokens,
                "completion_tokens": self.completion_tokens,
            },
            "started_at": None if self.started_at is None else timestamp(self.started_at),
            "hostname": self.hostname,
            "version": self.version,
        }

    def lines_of(self, batch_id: str) -> tuple[LineInFlight, ...]:
        return tuple(line for line in self.in_flight if line.batch_id == batch_id)


def parse_state(raw: bytes) -> WorkerState | None:
    """The state in a worker's JSON; None where it is none (not a worker's at all). What another version of promptmill
    leaves out has its default."""
    try:
        return _parsed(orjson.loads(raw))
    except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError, ValueError):
        return None


def _parsed(data: dict[str, Any]) -> WorkerState:
    totals = data.get("totals") or {}
    in_flight = tuple(_line(item) for item in data.get("in_flight") or ())
    return WorkerState(
        name=_text(data["name"]),
        state=_text(data["state"]),
        model=_text_or_none(data.get("model")),
        models=tuple(_text(item) for item in data.get("models") or ()),
        queues=tuple(_text(item) for item in data.get("queues") or ()),
        tokens_per_second=_number(data.get("tokens_per_second")),
        occupancy=_share(data.get("occupancy")),
        memory_bytes=_count_or_none(data.get("memory_bytes")),
        in_flight=in_flight,
        loaded=tuple(LoadedModel(_text(item["model"]), _count(item["bytes"])) for item in data.get("loaded") or ()),
        failing=tuple(_failing(item) for item in data.get("failing") or ()),
        refused={_text(item["batch_id"]): _text(item["reason"]) for item in data.get("refused") or ()},
        memory_limit_bytes=_count_or_none(data.get("memory_limit_bytes")),
        paused=data.get("paused") is True,
        speeds=tuple(_number(item) or 0.0 for item in (data.get("speeds") or ())[-MOST_SPEEDS:]),
        cached_share=_share(data.get("cached_share")),
        lines_per_second=_number(data.get("lines_per_second")),
        lines_in_flight=max(_count(data.get("lines_in_flight") or 0), len(in_flight)),
        lines_done=_count(totals.get("lines") or 0),
        prompt_tokens=_count(totals.get("prompt_tokens") or 0),
        cached_tokens=_count(totals.get("cached_tokens") or 0),
        completion_tokens=_count(totals.get("completion_tokens") or 0),
        hostname=_text_or_none(data.get("hostname")),
        version=_text_or_none(data.get("version")),
        started_at=_number(data.get("started_at"), YEAR_9999),
    )


def _failing(item: dict[str, Any]) -> FailingModel:
    return FailingModel(_text(item["model"]), _text(item["reason"]), _number(item.get("retry_s")) or 0.0)


def _line(item: dict[str, Any]) -> LineInFlight:
    return LineInFlight(
        batch_id=_text(item["batch_id"]),
        index=_count(item["index"]),
        id="-" if item.get("id") is None else _text(item["id"]),
        phase=_text(item["phase"]),
        prompt_tokens=_count(item.get("prompt_tokens") or 0),
        prefilled=_count(item.get("prefilled") or 0),
        completion_tokens=_count(item.get("completion_tokens") or 0),
    )


def _text(value: Any) -> str:
    """Text fit for a terminal: what could move its cursor is replaced."""
    if not isinstance(value, str):
        raise TypeError("text is needed")
    return printable(value)


def _text_or_none(value: Any) -> str | None:
    return None if value is None else _text(value)


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= MAX_COUNT:
        raise ValueError("a count is needed")
    return value


def _count_or_none(value: Any) -> int | None:
    return None if value is None else _count(value)


def _number(value: Any, most: float = MAX_COUNT) -> float | None:
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 <= value <= most:
        raise ValueError("a number is needed")
    return float(value)


def _share(value: Any) -> float | None:
    number = _number(value)
    return None if number is None else min(number, 1.0)
