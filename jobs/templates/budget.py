"""What rendering one row may cost: steps, characters, values and seconds. A template that asks for more is refused."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

MOST_STEPS = 200_000
"""Turns of loops, calls and filters of one row."""
MOST_CHARACTERS = 16 << 20
"""Of one text, as long as a line may be."""
MOST_VALUES = 200_000
"""In one nested value, each counted as often as it would be written."""
MOST_WIDTH_BITS = 10_000
"""Of a number."""
MOST_SECONDS = 10.0
"""A backstop, far above what the steps take."""


class BudgetError(Exception):
    """A template asks for more than a row may cost; the message says of what."""


class Budget:
    """What is left for the row at hand."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._steps = 0
        self._written = 0
        self._end = 0.0

    def begin(self) -> None:
        """Begin a row."""
        self._steps, self._written = 0, 0
        self._end = self._clock() + MOST_SECONDS

    def step(self) -> None:
        """Count a turn of a loop, a call or a filter.

        Raises:
            BudgetError: they are too many, or take too long.
        """
        self._steps += 1
        if self._steps > MOST_STEPS:
            raise BudgetError(f"takes more than {MOST_STEPS:,} steps for one row: is there a loop without an end?")
        if self._clock() > self._end:
            raise BudgetError(f"takes more than {MOST_SECONDS:.0f} seconds for one row")

    def wrote(self, text: str) -> str:
        """Count a text that is written out."""
        self._written += len(text)
        if self._written > MOST_CHARACTERS:
            fits(self._written)
        return text


def fits(characters: int) -> None:
    """See that a text of so many characters may be made.

    Raises:
        BudgetError: it may not.
    """
    if characters > MOST_CHARACTERS:
        raise BudgetError(f"makes a text of more than {MOST_CHARACTERS >> 20} MiB")


def measured(value: Any) -> Any:
    """The value, if it is not too large when it is written out: what it holds twice counts twice.

    Raises:
        BudgetError: it is.
    """
    if isinstance(value, list | tuple | dict):
        _measure(value)
    return value


def _measure(value: Any) -> None:
    values = characters = 0
    waiting = [value]
    while waiting:
        part = waiting.pop()
        values += 1
        if isinstance(part, str):
            characters += len(part)
        elif isinstance(part, dict):
            values += len(part)
            waiting.extend(part.values())
        elif isinstance(part, list | tuple):
            waiting.extend(part)
        if values > MOST_VALUES or len(waiting) > MOST_VALUES:
            raise BudgetError(f"makes a value of more than {MOST_VALUES:,} parts")
        fits(characters)
