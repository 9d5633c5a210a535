"""What rows take of the memory for caches, now and by the time their texts end. Policy only: no tensors."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence as Items
from dataclasses import dataclass

from worker.engine.sequence import WITHOUT_CONTEXT, PreparedLine, Sequence
from worker.engine.text_lengths import TextLengths

GROWTH = 256
"""Spare columns that a cache may have. A long one may have more: a quarter of this and an eighth of its columns."""
ROWS = 2
"""A cache has places for a multiple of so many rows."""


@dataclass(frozen=True, slots=True)
class CacheBytes:
    """Bytes that caches of rows take, at most, given the tokens that each row holds.

    ``row`` and ``prompt_row`` give those of one row with a number of columns: of one that decodes, and of one whose
    prompt is being computed, for which sliding windows are wider by a chunk.
    """

    row: Callable[[int], int] = lambda columns: 0
    prompt_row: Callable[[int], int] = lambda columns: 0
    growth: int = GROWTH

    def decoding(self, lengths: Items[int]) -> int:
        """Of rows that decode together: one rectangle at most, as wide as the longest."""
        longest, rows = max(lengths, default=0), len(lengths)
        if not self.growth:
            return rows * self.row(longest)
        places = -(-rows // ROWS) * ROWS if rows > 1 else rows
        return places * self.row(longest + max(self.growth, self.growth // 4 + longest // 8))

    def prompts(self, lengths: Items[int]) -> int:
        """Of prompts that are computed together, from when that begins until the last row has started."""
        return len(lengths) * self.prompt_row(max(lengths) + self.growth) if lengths else 0


class Room:
    """The memory for caches, and what rows are expected to take of it.

    What is reserved for a row is not what ``max_tokens`` allows, but what texts have needed so far: with that rows are
    let in. Where the expectation was too low the memory runs out, and the youngest rows must go and come back.
    """

    def __init__(self, sizes: CacheBytes) -> None:
        self.memory: int | None = None
        """Bytes for caches; None: no limit."""
        self.most: int | None = None
        """What one row may take when it runs alone, where that is more than ``memory``."""
        self.decoding = 0
        """Bytes that the caches of the rows that decode really take, the next step included; idle slots and unused
        columns may make it more than the rows themselves need."""
        self.lent = 0
        """Bytes that others than rows take of the memory: prompts that are scored."""
        self.cramped = False
        """Whether something did not fit since this was last reset."""
        self.texts = TextLengths()
        self.sizes = sizes

    def too_large(self, end: int) -> str | None:
        """Why a row of ``end`` tokens can never run, even alone; None when it can."""
        most = self.memory if self.most is None else self.most
        if most is None or (needed := self._alone(end)) <= most:
            return None
        return (
            f"a row of {end} tokens (prompt and max_tokens) needs {needed} bytes of cache, "
            f"and the memory limit leaves {most}"
        )

    def context_of(self, line: PreparedLine, context: int | None) -> int | None:
        """The most tokens that a row of the line may come to hold: the model's ``context``, and for a text that goes to
        its end also no more than the memory has room for. None: no limit is known."""
        most = self.memory if self.most is None else self.most
        least = len(line.prompt) + 1
        end = least + WITHOUT_CONTEXT if context is None else context
        if line.sampling.max_tokens is not None or most is None or self._alone(end) <= most:
            return context
        return max(least, least + bisect_right(range(least, end), most, key=self._alone) - 1)

    def ends(self, rows: Iterable[Sequence], running: Iterable[Sequence]) -> list[int]:
        """The tokens that rows are expected to hold at their end, given those that are ``running``."""
        if self.memory is None:
            return []
        usual = self.texts.usual(len(row.tokens) for row in running)
        return [len(row.prompt) + self.texts.expected(len(row.tokens), row.limit, usual) for row in rows]

    def needed(self, rows: Iterable[Sequence]) -> int:
        """Bytes of rows that decode, the next step included, without idle slots and unused columns."""
        return self.sizes.decoding([len(row.prompt) + len(row.tokens) + 1 for row in rows])

    def has(self, *needs: int) -> bool:
        """Whether there are so many bytes."""
        return self.memory is None or sum(needs) + self.lent <= self.memory

    def has_now(self, *needs: int) -> bool:
        """The same for what is about to be taken: where there are not, it is ``cramped`` from now on."""
        fits = self.has(*needs)
        self.cramped = self.cramped or not fits
        return fits

    def _alone(self, end: int) -> int:
        return self.sizes.decoding([end])
