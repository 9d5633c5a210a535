"""Sizes of a batch's arrays that seldom change, so that few graphs are compiled. No tensors."""

from __future__ import annotations

LINGER = 512
"""Steps for which a size stays after it was last needed."""


def power_of_two(number: int) -> int:
    """The least power of two that is not below ``number``."""
    return 1 << max(0, number - 1).bit_length()


def rounded_rows(rows: int) -> int:
    """The least of 1, 2, 3, 4, 6, 8, 12, 16, 24, 32... that is not below ``rows``: at most half as much again."""
    above = power_of_two(rows)
    return above * 3 // 4 if above > 2 and rows <= above * 3 // 4 else above


class GrownSizes:
    """Sizes by name: one grows as soon as more is needed, and shrinks to what is needed only after ``linger`` steps in
    which that much was not. ``step`` is the number of the step that what follows is for."""

    def __init__(self, linger: int = LINGER) -> None:
        self.step = 0
        self._linger = linger
        self._kept: dict[str, tuple[int, int, int]] = {}
        self._members: frozenset[str] = frozenset()

    def grown(self, name: str, needed: int) -> int:
        """The size of this name now; the need stands until the next call."""
        size, before, used = self._kept.get(name, (0, 0, self.step))
        if before == size:
            used = self.step
        if needed >= size or self.step - used > self._linger:
            size, used = needed, self.step
        self._kept[name] = size, needed, used
        return size

    def grown_set(self, needed: frozenset[str]) -> frozenset[str]:
        """``needed`` and the names that were needed not long ago."""
        self._members |= needed
        return frozenset(name for name in self._members if self.grown(name, int(name in needed)))
