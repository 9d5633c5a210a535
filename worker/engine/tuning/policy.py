"""How many rows to decode together: which numbers to measure, and which of them to choose. Policy only: no tensors."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
GOOD_ENOUGH = 0.97
"""A number of rows within this of the best is as good: the smaller one leaves memory, and rows end sooner."""
PATIENCE = 4
"""So many sizes in a row without a gain end the climb; fewer could end it in a dip, such as slow kernels at 9 to 16."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Tokens per second by number of rows decoded together, measured up to ``reach`` rows. None is any number: more
    rows bring nothing, cannot run, or take too long to measure."""

    rates: Mapping[int, float]
    reach: int | None

    def covers(self, most: int) -> bool:
        """Whether the curve says all that measuring up to ``most`` rows would."""
        return 1 in self.rates and (self.reach is None or most <= self.reach)

    def choose(self, most: int) -> int:
        """The smallest number of rows, up to ``most``, that is as good as the best of them."""
        rates = {rows: rate for rows, rate in self.rates.items() if rows <= most}
        best = max(rates.values(), default=0.0)
        return min((rows for rows, rate in rates.items() if rate >= best * GOOD_ENOUGH), default=1)

    def __str__(self) -> str:
        return ", ".join(f"{rows}: {rate:.{1 if rate < 10 else 0}f}" for rows, rate in self.rates.items())


def climb(
    measure: Callable[[int], float | None],
    most: int,
    *,
    within_s: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Curve:
    """Measure growing numbers of rows up to ``most``, until more rows bring nothing or the time is up.

    ``measure`` gives the tokens per second of a number of rows, None where so many cannot run. No measurement begins
    after ``within_s`` seconds.
    """
    rates: dict[int, float] = {}
    peak, fruitless, began = 0.0, 0, clock()
    for rows in (*(size for size in SIZES if size < most), most):
        if fruitless == PATIENCE or (rates and clock() - began > within_s):
            return Curve(rates, None)
        rate = measure(rows)
        if rate is None:
            return Curve(rates, None)
        rates[rows] = rate
        if rate * GOOD_ENOUGH > peak:
            peak, fruitless = rate, 0
        else:
            fruitless += 1
    return Curve(rates, None if fruitless == PATIENCE else most)
