"""A worker's attempt at a shard: its fence, what befell the lines before, and how it stands."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

__all__ = ["Attempt", "Standing", "Verdict"]


@dataclass(frozen=True, slots=True)
class Attempt:
    """A claim on a shard: the fence all its writes carry, the lines already finished, and what befell the others.

    ``tries`` counts the failed attempts at a line, ``deaths`` those of them in which its worker died, and ``forgiven``
    those before the batch was retried. ``suspects`` are others that run alone.
    """

    batch_id: str
    number: int
    fence: int
    finished: frozenset[int] = frozenset()
    tries: dict[int, int] = field(default_factory=dict)
    deaths: dict[int, int] = field(default_factory=dict)
    forgiven: dict[int, int] = field(default_factory=dict)
    suspects: frozenset[int] = frozenset()

    def failures(self, index: int) -> int:
        """Attempts that speak against a line."""
        return self.tries.get(index, 0) - self.forgiven.get(index, 0)


class Verdict(enum.IntEnum):
    """What the end of an attempt says of its lines that were under way."""

    INNOCENT = 0
    """Nothing."""
    SUSPECT = 1
    """They run alone from now on."""
    GUILTY = 2
    """They have had an attempt, which failed."""


class Standing(enum.Enum):
    """What Redis says of an attempt that a worker thinks is its own."""

    OURS = "ours"
    PAUSED = "paused"
    """Ours, but its batch is held back: lines that have not begun shall not."""
    LOST = "lost"
    """Its lease was taken over, or its batch has ended."""
