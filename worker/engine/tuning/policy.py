"""How many rows to decode together: which numbers to measure, and which of them to choose. Policy only: no tensors."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from worker.engine.loading.config import Experts

SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
GOOD_ENOUGH = 0.97
"""A number of rows within this of the best is as good: the smaller one leaves memory, and rows end sooner."""
PATIENCE = 4
"""So many sizes in a row without a gain end the climb; fewer could end it in a dip, such as slow kernels at 9 to 16."""
DENSE_KERNEL_SIZES = (32, 64)
"""Matrix kernels take 32 rows at a time, on the newest chips 64."""
GROUPED = 4
"""MLX has a kernel that reads an expert once for all its rows, and takes it from so many rows per expert on."""


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


def kernel_sizes(experts: Experts | None) -> tuple[int, ...]:
    """The numbers of rows from which on faster kernels run, so that no plateau before them says anything; with experts
    also twice the number, by which their kernel has come to pay."""
    if experts is None:
        return DENSE_KERNEL_SIZES
    grouped = -(-GROUPED * experts.count // experts.per_token)
    return tuple(sorted({*DENSE_KERNEL_SIZES, grouped, 2 * grouped}))


def climb(
    measure: Callable[[int], float | None],
    most: int,
    *,
    within_s: float,
    always: tuple[int, ...] = DENSE_KERNEL_SIZES,
    clock: Callable[[], float] = time.perf_counter,
) -> Curve:
    """Measure growing numbers of rows up to ``most``, until more rows bring nothing or the time is up.

    ``measure`` gives the tokens per second of a number of rows, None where so many cannot run. After ``within_s``
    seconds, and after a plateau, only the numbers in ``always`` are tried; one that brings a gain lets the climb go on
    from there. No measurement begins after twice the time.
    """
    rates: dict[int, float] = {}
    peak, fruitless, began = 0.0, 0, clock()
    for rows in sorted({rows for rows in (*SIZES, *always, most) if rows <= most}):
        spent = clock() - began
        if rates and spent > 2 * within_s:
            return Curve(rates, None)
        if rows not in always and (fruitless >= PATIENCE or (rates and spent > within_s)):
            continue
        rate = measure(rows)
        if rate is None:
            return Curve(rates, None)
        rates[rows] = rate
        if rate * GOOD_ENOUGH > peak:
            peak, fruitless = rate, 0
        else:
            fruitless += 1
    whole = fruitless >= PATIENCE or clock() - began > within_s
    return Curve(rates, None if whole and max(always, default=0) <= most else most)
