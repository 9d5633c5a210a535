"""How much of the prompts is computed between two decode steps. Policy only: no tensors, no clock of its own."""

from __future__ import annotations

from collections import deque
from statistics import median

STEPS_PER_CHUNK = 2
"""Decode steps that a chunk may take the time of, while all rows are busy."""
FILLING = 4
"""How much more that is for each row that is about to start, over the rows that wait for it."""
LEAST_CHUNK = 128
"""Tokens that a chunk has at least: with fewer each costs the more, since every chunk reads all weights."""
RECENT = 9
"""Measurements that count."""


class Pace:
    """Measures decode steps and prompts, and makes a chunk of prompts take about as long as a few steps.

    A chunk is queued between the draws of a step and the forward of the next one. So it delays the next step's tokens,
    not its own step's: what chunks cost is what steps with and just after them took in excess.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._steps: deque[float] = deque(maxlen=RECENT)
        self._guess: float | None = None
        self._rates: deque[float] = deque(maxlen=RECENT)
        self._seconds, self._count, self._tokens = 0.0, 0, 0

    def prompts(self, tokens: int, seconds: float) -> None:
        """So many tokens of prompts, padding included, were computed with nothing beside them."""
        if tokens:
            self._rates.append(seconds / tokens)

    def step(self, tokens: int, seconds: float) -> None:
        """A decode step took so long, with so many tokens of prompts queued behind it."""
        if not tokens and not self._count:
            self._steps.append(seconds)
            return
        self._seconds += seconds
        self._count += 1
        self._tokens += tokens
        if not tokens or self._count >= RECENT or not self._steps:
            self._settle()
            self._seconds, self._count, self._tokens = 0.0, 0, 0

    def stopped(self) -> None:
        """No row decodes any more: what is queued is not waited for by a step."""
        self._seconds, self._count, self._tokens = 0.0, 0, 0

    def chunk(self, running: int, coming: int) -> int:
        """Tokens of prompts to compute before the next step: all that a chunk may have while nothing is ``running``,
        else what takes about as long as a few steps. The more rows are ``coming`` to free slots the more: a step costs
        about the same with them."""
        if not running:
            return self._most
        step = median(self._steps) if self._steps else self._guess
        if step is None or not self._rates:
            return self._most if 2 * coming > running else min(LEAST_CHUNK, self._most)
        rate = median(self._rates)
        seconds = step * STEPS_PER_CHUNK * (1 + FILLING * coming / running)
        # Powers of two, so that noise in the measurements does not make ever new shapes.
        tokens = LEAST_CHUNK
        while tokens < self._most and 2 * tokens * rate <= seconds:
            tokens *= 2
        return min(tokens, self._most)

    def _settle(self) -> None:
        if self._steps:
            self._rates.append(max(0.0, self._seconds - self._count * median(self._steps)) / self._tokens)
        elif self._rates:
            self._guess = max(0.0, self._seconds - self._tokens * median(self._rates)) / self._count
