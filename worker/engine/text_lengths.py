"""How long texts get, by those that have ended and those under way. Policy only: no tensors, no clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

FIRST_GUESS = 256
"""Tokens that a text is expected to get while few have ended."""
ENOUGH = 8
"""After so many ended texts the first guess no longer counts."""
HISTORY = 256
"""Ended texts that are remembered, the latest ones."""
OF_TEN = 9
"""Nine of ten texts are no longer than what is expected of the next one."""
MORE_PARTS, LEAST_MORE = 4, 16
"""A text that is longer than most is expected to get a quarter longer still, and this many tokens at least."""


class TextLengths:
    """Tokens of texts, the ending EOS among them."""

    def __init__(self) -> None:
        self._ended: deque[int] = deque(maxlen=HISTORY)

    def add(self, tokens: int) -> None:
        """A text came to its end with so many tokens."""
        self._ended.append(tokens)

    def usual(self, running: Iterable[int] = ()) -> int:
        """What nine of ten texts do not exceed: of those that have ended, and of those ``running``, by the tokens that
        they have so far. The latter matter where short texts are the first to end."""
        ended = _most_of(self._ended) if len(self._ended) >= ENOUGH else max([FIRST_GUESS, *self._ended])
        return max(ended, _most_of(running))

    @staticmethod
    def expected(tokens: int, limit: int, usual: int) -> int:
        """How many tokens a text is expected to end with that has ``tokens`` and may get ``limit``."""
        return min(limit, usual if tokens < usual else tokens + max(LEAST_MORE, tokens // MORE_PARTS))


def _most_of(lengths: Iterable[int]) -> int:
    ordered = sorted(lengths)
    return ordered[(len(ordered) - 1) * OF_TEN // 10] if ordered else 0
