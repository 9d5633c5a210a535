"""What is to be scored of a prompt, and what came of it. No tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

LEAST_LOGPROB = -9999.0
"""What stands for the log-probability of what cannot come, as in OpenAI's API: JSON has no infinity."""


@dataclass(frozen=True, slots=True)
class ScoringTask:
    """The tokens of a prompt from ``first`` (>= 1) on get log-probabilities, each with its ``top`` best alternatives.
    From ``border`` on they are a continuation, whose sum is wanted; None: there is none. ``listed`` is how many
    alternatives the list of all tokens has; None: it is not wanted. ``generates`` says that texts follow."""

    first: int
    top: int = 0
    border: int | None = None
    listed: int | None = None
    generates: bool = False


@dataclass(frozen=True, slots=True)
class Scores:
    """Of the tokens from ``first`` on, one entry each: log-probabilities (float32), ranks (1 is the likeliest), and
    whether greedy decoding would have taken them; and of the best alternatives, best first, ids and log-probabilities.
    """

    first: int
    logprobs: list[float] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)
    greedy: list[bool] = field(default_factory=list)
    top_ids: list[list[int]] = field(default_factory=list)
    top_logprobs: list[list[float]] = field(default_factory=list)

    def total(self, border: int) -> float:
        """The sum of the log-probabilities of the tokens from ``border`` on, without an error that grows."""
        return math.fsum(max(LEAST_LOGPROB, logprob) for logprob in self.logprobs[border - self.first :])

    def is_greedy(self, border: int) -> bool:
        """Whether greedy decoding would have written all tokens from ``border`` on."""
        return all(self.greedy[border - self.first :])
