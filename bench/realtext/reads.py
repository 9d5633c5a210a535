"""How often a process waits for values of arrays: each time the device has to be done with all that was asked of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from worker.engine.decode import StepResult

READS = ("tolist", "item", "__bool__", "__int__", "__float__")
"""What turns an array of MLX into values of Python."""


@dataclass(slots=True)
class HostReads:
    """Reads so far, by kind. Those of one step's tokens, which come in several arrays, are one: ``step``."""

    kinds: dict[str, int] = field(default_factory=dict)
    _within: bool = False

    @property
    def total(self) -> int:
        return sum(self.kinds.values())

    def wrapped(self, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, counted; reads that it makes itself are not."""

        def counting(*arguments: Any, **options: Any) -> Any:
            if self._within:
                return function(*arguments, **options)
            self.kinds[kind] = self.kinds.get(kind, 0) + 1
            self._within = True
            try:
                return function(*arguments, **options)
            finally:
                self._within = False

        return counting


@contextmanager
def counted() -> Iterator[HostReads]:
    """Count the reads of this process while the block runs."""
    reads = HostReads()
    owners: list[tuple[Any, str, str]] = [(mx.array, name, name.strip("_")) for name in READS]
    owners += [(mx, "eval", "eval"), (mx, "synchronize", "synchronize"), (StepResult, "read", "step")]
    kept = [getattr(owner, name) for owner, name, _ in owners]
    for (owner, name, kind), function in zip(owners, kept, strict=True):
        setattr(owner, name, reads.wrapped(kind, function))
    try:
        yield reads
    finally:
        for (owner, name, _), function in zip(owners, kept, strict=True):
            setattr(owner, name, function)
