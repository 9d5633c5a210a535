"""A worker's attempt at a shard: its fence, and how often each line failed or lost its worker before."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Attempt:
    """A claim on a shard: the fence all its writes carry, the lines already finished, and what befell the others.

    ``tries`` counts the failed attempts at a line, ``deaths`` those of them in which its worker died, and ``forgiven``
    those before the batch was retried. ``suspicions`` counts the attempts that a model ended, with others beside the
    line: they are not charged. ``alone`` are the lines whose last failed attempt had nothing beside it.
    """

    batch_id: str
    number: int
    fence: int
    finished: frozenset[int] = frozenset()
    tries: dict[int, int] = field(default_factory=dict)
    deaths: dict[int, int] = field(default_factory=dict)
    forgiven: dict[int, int] = field(default_factory=dict)
    suspicions: dict[int, int] = field(default_factory=dict)
    alone: frozenset[int] = frozenset()

    def failures(self, index: int) -> int:
        """Failed attempts at a line, since its batch was retried."""
        return self.tries.get(index, 0) - self.forgiven.get(index, 0)

    def own_failures(self, index: int) -> int:
        """Those of them that failed by themselves: their worker went on."""
        return self.failures(index) - self.deaths.get(index, 0)


class Verdict(enum.IntEnum):
    """What the end of an attempt says of its lines that were under way."""

    INNOCENT = 0
    """Nothing."""
    SUSPECT = 1
    """One of them may have been the cause: they are tried alone, and nobody is charged."""
    GUILTY = 2
    """They have had an attempt, which failed."""


class Standing(enum.Enum):
    """What Redis says of an attempt that a worker thinks is its own."""

    OURS = "ours"
    PAUSED = "paused"
    """Ours, but its batch is held back: lines that have not begun shall not."""
    LOST = "lost"
    """Its lease was taken over, or its batch has ended."""
