"""A worker's published state, read with bounds: the value may be anybody's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any

import msgspec
import orjson

from jobs.batch import timestamp
from submit.status.text import printable

MOST_SPEEDS = 60

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Number = Annotated[float, msgspec.Meta(ge=0, le=2**53)]
Moment = Annotated[float, msgspec.Meta(ge=0, le=253_402_300_799)]
"""Seconds since the epoch, up to the year 9999."""


@dataclass(frozen=True, slots=True)
class LineInFlight:
    """A line being worked on: what of its prompt is read, what is generated so far."""

    batch_id: str
    index: Count
    id: str = "-"
    phase: str = "decode"
    prompt_tokens: Count = 0
    prefilled: Count = 0
    completion_tokens: Count = 0

    def as_dict(self) -> dict[str, Any]:
        """What ``status BATCH --json`` prints of the line."""
        shown = asdict(self)
        del shown["batch_id"]
        return shown


@dataclass(frozen=True, slots=True)
class ModelInMemory:
    """A model in a worker's memory, and the bytes of its weights."""

    name: str
    size: Count


@dataclass(frozen=True, slots=True)
class FailingModel:
    """A model that a worker cannot load: why, and in how many seconds it is tried again."""

    name: str
    reason: str
    retry_s: Number = 0.0


@dataclass(frozen=True, slots=True)
class WorkerState:
    """What one worker published last, at most six seconds ago; None and 0 where it does not say.

    ``state`` is ``starting`` (not ready for work yet), ``idle``, ``busy``, ``loading`` (then ``model`` says which) or
    ``draining``; ``models`` are those it serves, ``loaded`` those in its memory, ``failing`` those it cannot load;
    ``refused`` has, by batch id, why shards of batches went back. ``tokens_per_second`` counts new
    tokens of the last second, ``speeds`` those of each second of the last minute, and ``occupancy`` (0..1) is how full
    the batch was. ``cached_share`` (0..1) is the part of the last minute's prompt tokens that came from the prefix
    cache. ``lines_done``, ``prompt_tokens``, ``cached_tokens``, ``completion_tokens`` and
    ``scored_tokens`` (of texts that were there) are totals since ``started_at`` (seconds since the epoch), and
    ``scored_per_second`` is of the last minute; ``lines_in_flight`` counts those beyond what ``in_flight`` lists too.
    """

    name: str
    state: str
    model: str | None = None
    models: tuple[str, ...] = ()
    queues: tuple[str, ...] = ()
    tokens_per_second: Number | None = None
    occupancy: Number | None = None
    memory_bytes: Count | None = None
    in_flight: tuple[LineInFlight, ...] = ()
    loaded: tuple[ModelInMemory, ...] = ()
    failing: tuple[FailingModel, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    memory_limit_bytes: Count | None = None
    paused: bool = False
    speeds: tuple[Number, ...] = ()
    cached_share: Number | None = None
    lines_per_second: Number | None = None
    lines_in_flight: Count = 0
    lines_done: Count = 0
    prompt_tokens: Count = 0
    cached_tokens: Count = 0
    completion_tokens: Count = 0
    scored_tokens: Count = 0
    scored_per_second: Number | None = None
    hostname: str | None = None
    version: str | None = None
    started_at: Moment | None = None

    @property
    def effective_state(self) -> str:
        """The state in one word: a worker that is paused and has nothing else to say is ``paused``."""
        return "paused" if self.paused and self.state in ("idle", "busy") else self.state

    def uptime(self, now: float) -> float | None:
        """Seconds since it was started, at ``now`` seconds since the epoch."""
        return None if self.started_at is None else max(now - self.started_at, 0.0)

    def as_dict(self) -> dict[str, Any]:
        """What ``status --json`` and ``workers --json`` print, but for the lines in flight."""
        return {
            "name": self.name,
            "state": self.effective_state,
            "loading": self.model,
            "models": list(self.models),
            "loaded": [{"model": model.name, "bytes": model.size} for model in self.loaded],
            "failing": [
                {"model": model.name, "reason": model.reason, "retry_s": model.retry_s} for model in self.failing
            ],
            "refused": dict(self.refused),
            "paused": self.paused,
            "tokens_per_second": self.tokens_per_second,
            "lines_per_second": self.lines_per_second,
            "scored_per_second": self.scored_per_second,
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
                "scored_tokens": self.scored_tokens,
            },
            "started_at": None if self.started_at is None else timestamp(self.started_at),
            "hostname": self.hostname,
            "version": self.version,
        }

    def lines_of(self, batch_id: str) -> tuple[LineInFlight, ...]:
        """The lines of a batch that the worker lists as in flight."""
        return tuple(line for line in self.in_flight if line.batch_id == batch_id)


def parse_state(raw: bytes) -> WorkerState | None:
    """The state in a worker's JSON; None where it is none (not a worker's at all). What another version of promptmill
    leaves out has its default."""
    try:
        state = msgspec.convert(_as_fields(_cleaned(orjson.loads(raw))), WorkerState)
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        return None
    return replace(
        state,
        speeds=state.speeds[-MOST_SPEEDS:],
        occupancy=None if state.occupancy is None else min(state.occupancy, 1.0),
        cached_share=None if state.cached_share is None else min(state.cached_share, 1.0),
        lines_in_flight=max(state.lines_in_flight, len(state.in_flight)),
    )


def _cleaned(value: Any) -> Any:
    """JSON without its nulls, and without what could steer a terminal."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return [_cleaned(item) for item in value]
    if isinstance(value, dict):
        return {name: _cleaned(item) for name, item in value.items() if item is not None}
    return value


TOTALS = ("prompt_tokens", "cached_tokens", "completion_tokens", "scored_tokens")


def _as_fields(published: dict[str, Any]) -> dict[str, Any]:
    """A published state with the names that :class:`WorkerState` has for its fields."""
    totals = published.get("totals", {})
    return {
        **published,
        **{name: totals.get(name, 0) for name in TOTALS},
        "lines_done": totals.get("lines", 0),
        "loaded": [{"name": item["model"], "size": item["bytes"]} for item in published.get("loaded", ())],
        "failing": [{**item, "name": item["model"]} for item in published.get("failing", ())],
        "refused": {item["batch_id"]: item["reason"] for item in published.get("refused", ())},
        "paused": published.get("paused") is True,
    }
