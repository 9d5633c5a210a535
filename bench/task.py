"""The task that a side gets and what it measured: plain values that travel between processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bench.models import SHAPES
from bench.work import CONCURRENCY, Row, make_work


@dataclass(frozen=True, slots=True)
class Task:
    """Lines of work on one model; ``seed`` is the round's, so that each round has prompts and values of its own."""

    model: str
    lines: int
    new_tokens: int
    seed: int

    @property
    def vocab(self) -> int:
        return SHAPES[self.model].vocab

    @property
    def rows(self) -> list[Row]:
        return make_work(self.lines, self.vocab, self.seed)

    @property
    def waves(self) -> int:
        """How many full batches the lines are."""
        return -(-self.lines // CONCURRENCY)


@dataclass(frozen=True, slots=True)
class Measured:
    """New tokens and the seconds they took, with those of their prompts."""

    side: str
    tokens: int
    seconds: float
    lines: int
    occupancy: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
