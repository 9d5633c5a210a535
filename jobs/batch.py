"""A batch: its id and name, its status, its counts."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import orjson

from jobs.delivery import Delivery, delivery_of
from jobs.errors import RefusedError

STATUSES = (
    "validating",
    "failed",
    "in_progress",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
)
DONE = frozenset({"failed", "completed", "expired", "cancelled"})
ENDED = frozenset({"cancelled", "expired"})
PRIORITIES = ("high", "normal", "low")

ID_CUT = "..."
"""Stands for the middle of an id where it is shown short."""

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_BATCH_ID = re.compile(f"b_[{_CROCKFORD}]{{26}}")
_YEAR_9999 = 253_402_300_799


def new_batch_id(now: Callable[[], float] = time.time, entropy: Callable[[int], bytes] = os.urandom) -> str:
    """A fresh batch id: ``b_`` and a ULID, so that ids sort by the time of submission."""
    value = int(now() * 1000) << 80 | int.from_bytes(entropy(10), "big")
    return "b_" + "".join(_CROCKFORD[value >> shift & 31] for shift in range(125, -1, -5))


def is_batch_id(text: str) -> bool:
    """Whether ``text`` may be what :func:`new_batch_id` made."""
    return _BATCH_ID.fullmatch(text) is not None


def timestamp(seconds: float) -> str:
    """Seconds since the epoch as records write time: UTC, milliseconds, ``Z``."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def queue_name(group_key: str, priority: str, pool: str | None = None) -> str:
    """The RQ queue of a model: ``promptmill:normal:MODEL``; a private pool's name comes before the model."""
    return ":".join(part for part in ("promptmill", priority, pool, group_key) if part)


@dataclass(frozen=True, slots=True)
class Usage:
    """Token totals of a batch. ``scored_tokens`` are those of texts that were there and got log-probabilities."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    scored_tokens: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch as Redis knows it at one moment; times are seconds since the epoch."""

    id: str
    status: str
    name: str | None = None
    source: str = ""
    priority: str = "normal"
    models: tuple[str, ...] = ()
    times: Mapping[str, float] = field(default_factory=dict)
    total: int = 0
    completed: int = 0
    failed: int = 0
    rejected: int = 0
    """Lines of ``failed`` that were refused at submission and never queued."""
    usage: Usage = Usage()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    pool: str | None = None
    schedule: str | None = None
    """The schedule that submitted it."""
    webhook: str | None = None
    """The URL to which its end is delivered."""
    delivery: Delivery | None = None
    """What became of that, where there is such a URL."""
    keep_s: float | None = None
    """Seconds for which it is kept once it is done; None: until it is purged."""
    answers: str | None = None
    """Who waits for its records, where somebody does."""
    unrun: int = 0
    """Lines of ``failed`` that were not finished when the batch was cancelled or expired: none has a stored record."""
    carried: int = 0
    """Lines of ``completed`` that were so before the batch was last retried."""
    carried_tokens: int = 0
    """Tokens generated before that."""
    twins: int = 0
    """Lines that are not run because earlier ones are equal, whose records they get: ``total`` and the other counts are
    of those that run."""
    dataset: Mapping[str, Any] = field(default_factory=dict)
    """What is remembered of the table that its lines were made of."""

    @property
    def ended(self) -> bool:
        """Whether it was cancelled or expired: every line without a record failed by that."""
        return self.status in ENDED

    @property
    def fate(self) -> str:
        """How it ended before its time, in words."""
        return "has expired" if self.status == "expired" else f"was {self.status}"

    @property
    def ended_at(self) -> float | None:
        """When it was completed, cancelled or expired; None while it runs."""
        return self.times.get(self.status) if self.done else None

    @property
    def finished(self) -> int:
        """Lines with a record, good or bad."""
        return self.completed + self.failed

    @property
    def ran(self) -> int:
        """Lines that were run to their end, well or badly."""
        return self.finished - self.unrun

    @property
    def failed_running(self) -> int:
        """Lines of ``failed`` that were not failed by the end of the batch alone."""
        return self.failed - self.unrun

    @property
    def done(self) -> bool:
        return self.status in DONE

    @property
    def paused(self) -> bool:
        """Whether it was held back by its owner; lines that were begun are finished."""
        return "paused" in self.times and not self.done

    def elapsed(self, now: float) -> float:
        """Seconds from the first line's start to the end, or to ``now`` while it runs."""
        start = self.times.get("started")
        end = now if self.ended_at is None else self.ended_at
        return 0.0 if start is None else max(end - start, 0.0)

    def rates(self, now: float) -> dict[str, float | None]:
        """Lines and tokens per second since the batch (or its retry) began, and the seconds left at that rate."""
        elapsed = self.elapsed(now)
        worked = self.finished - self.rejected - self.unrun - self.carried
        if elapsed <= 0 or worked <= 0:
            names = ("lines_per_second", "completion_tokens_per_second", "scored_tokens_per_second", "eta_s")
            return dict.fromkeys(names)
        rate = worked / elapsed
        eta = None if self.done else round((self.total - self.finished) / rate, 1)
        return {
            "lines_per_second": round(rate, 3),
            "completion_tokens_per_second": round((self.usage.completion_tokens - self.carried_tokens) / elapsed, 3),
            # What was scored before a retry is not counted apart.
            "scored_tokens_per_second": None if self.carried else round(self.usage.scored_tokens / elapsed, 3),
            "eta_s": eta,
        }

    def as_dict(self, now: float) -> dict[str, Any]:
        """What ``status --json`` prints: OpenAI's names where it has one."""
        shown = {f"{key}_at": timestamp(at) for key, at in self.times.items()}
        return {
            "id": self.id,
            "name": self.name,
            "status": self.status,
            "source": self.source,
            "models": list(self.models),
            "priority": self.priority,
            "schedule": self.schedule,
            "paused": self.paused,
            "webhook": self.delivery.as_dict(self.webhook) if self.webhook and self.delivery else None,
            **shown,
            "request_counts": {"total": self.total, "completed": self.completed, "failed": self.failed},
            "twins": self.twins,
            "usage": {**self.usage.as_dict(), "scored_tokens": self.usage.scored_tokens},
            "rates": self.rates(now),
            "defaults": dict(self.defaults),
            "metadata": dict(self.metadata),
        }


def parse_batch(batch_id: str, stored: Mapping[bytes, bytes]) -> Batch:
    """The batch of a Redis hash, as :mod:`jobs.store.store` writes it.

    Raises:
        RefusedError: the hash is not one that it wrote.
    """
    try:
        return _parsed(batch_id, stored)
    except (KeyError, TypeError, ValueError) as error:
        raise RefusedError(f"what Redis keeps of batch '{batch_id}' is damaged: {error}") from None


def _parsed(batch_id: str, stored: Mapping[bytes, bytes]) -> Batch:
    import msgspec  # takes a while, and `--help` reads no batch

    text = {key.decode(): value.decode() for key, value in stored.items()}
    times = {key.removesuffix("_at"): float(value) for key, value in text.items() if key.endswith("_at")}
    if text["status"] not in STATUSES or not all(0 <= at <= _YEAR_9999 for at in times.values()):
        raise ValueError("a status or a time that cannot be")
    fields: dict[str, Any] = {name: value for name, value in text.items() if value}  # what is empty was not given
    fields |= {
        name: orjson.loads(fields[name]) for name in ("models", "defaults", "metadata", "dataset") if name in fields
    }
    # Not strict: Redis keeps numbers as text.
    batch = msgspec.convert({**fields, "id": batch_id, "times": times, "usage": fields}, Batch, strict=False)
    return replace(batch, delivery=delivery_of(batch_id, text) if batch.webhook else None)
