"""How many rows are decoded together, chosen from measurements that are made up."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from worker.engine.loading.config import Experts
from worker.engine.tuning.limit import Limit
from worker.engine.tuning.policy import SIZES, Curve, climb, kernel_sizes


class Speed:
    """A made-up device: ``seconds(rows)`` of a step, an own clock, and the sizes that were tried on it."""

    def __init__(self, seconds: Callable[[int], float], *, costs: float = 0.0) -> None:
        self.seconds, self.costs = seconds, costs
        self.tried: list[int] = []
        self.now = 0.0

    def climb(self, most: int = 256, within_s: float = 10.0, experts: Experts | None = None) -> Curve:
        always = kernel_sizes(experts)
        return climb(self._measure, most, within_s=within_s, always=always, clock=lambda: self.now)

    def _measure(self, rows: int) -> float | None:
        self.tried.append(rows)
        self.now += self.costs
        return rows / self.seconds(rows)


def weights_bound(rows: int) -> float:
    """A step reads the weights, and from some 100 rows on it computes."""
    return max(0.02, 0.0002 * rows)


def test_more_rows_are_taken_while_they_bring_something() -> None:
    """Throughput grows up to 100 rows and then no more: the smallest size at the top is chosen."""
    speed = Speed(weights_bound)
    curve = speed.climb()
    assert curve.choose(256) == 128
    assert curve.rates[1] == pytest.approx(50)


def test_a_size_within_three_percent_of_the_best_is_good_enough() -> None:
    """Twice the rows for a hundredth more are not worth their memory."""
    rates = {16: 300.0, 24: 500.0, 32: 505.0, 48: 506.0}
    assert Curve(rates, 48).choose(48) == 24


def test_a_dip_of_slow_kernels_is_climbed_through() -> None:
    """9 to 16 rows run slower than 8, as on some chips, and 32 much faster: 32 it is, not 8."""
    speed = Speed(
        lambda rows: weights_bound(rows) * (3 if 9 <= rows <= 16 else 1.3 if rows < 32 else 1.0 if rows == 32 else 4)
    )
    curve = speed.climb()
    assert curve.rates[8] > curve.rates[12]
    assert curve.choose(256) == 32


def test_falling_throughput_ends_the_climb_early() -> None:
    """Where every row costs a step of its own, batches bring nothing: one row, and few sizes tried, but for those at
    which faster kernels begin."""
    speed = Speed(lambda rows: 0.01 * rows**1.1)
    assert speed.climb().choose(256) == 1
    assert speed.tried == [1, 2, 4, 8, 12, 32, 64]


def test_a_plateau_before_faster_kernels_is_climbed_over() -> None:
    """Nothing is gained from 4 rows on, until at 64 rows a step costs what it cost with 8: the climb goes on there."""
    speed = Speed(lambda rows: 0.01 * max(rows, 4) if rows < 64 else max(0.08, 0.0008 * rows))
    curve = speed.climb()
    assert speed.tried == [1, 2, 4, 8, 12, 16, 24, 32, 64, 96, 128, 192, 256]
    assert curve.choose(256) == 128


@pytest.mark.parametrize(
    ("experts", "expected"),
    [
        (None, (32, 64)),
        (Experts(128, 8), (32, 64, 128)),
        (Experts(256, 8), (32, 64, 128, 256)),
        (Experts(32, 4), (32, 64)),
        (Experts(60, 4), (32, 60, 64, 120)),
        (Experts(512, 10), (32, 64, 205, 410)),
    ],
)
def test_faster_kernels_begin_at_known_sizes(experts: Experts | None, expected: tuple[int, ...]) -> None:
    """At 32 and 64 rows for all models; for experts from four rows each, and at twice as many again."""
    assert kernel_sizes(experts) == expected


def test_experts_pay_only_from_their_kernel_on() -> None:
    """With 256 experts, 8 per token, each row reads its experts alone up to 128 rows: the sizes from there are tried
    after a plateau, and after the time is up."""
    experts = Experts(256, 8)
    seconds = lambda rows: 0.02 * rows if rows < 128 else 0.5  # noqa: E731
    curve = Speed(seconds).climb(experts=experts)
    assert curve.choose(256) == 256
    late = Speed(seconds, costs=3.0)
    assert late.climb(experts=experts, within_s=11.0).choose(256) == 256
    assert late.tried == [1, 2, 4, 8, 32, 64, 128, 256]


def test_a_plateau_below_the_experts_kernel_says_nothing_about_more_memory() -> None:
    """Where their kernel needs more rows than there is room for, more room is a reason to measure again."""
    experts = Experts(256, 8)
    curve = Speed(lambda rows: 0.02 * rows).climb(most=96, experts=experts)
    assert curve.covers(96)
    assert not curve.covers(128)
    assert Speed(lambda rows: 0.02 * rows).climb(most=256, experts=experts).covers(512)


def test_noise_neither_ends_the_climb_nor_wins() -> None:
    """Rates that are off by a hundredth up and down lead to the same size as exact ones."""
    exact = Speed(weights_bound).climb()
    noisy = Speed(lambda rows: weights_bound(rows) * (1.01 if SIZES.index(rows) % 2 else 0.99)).climb()
    assert noisy.choose(256) == exact.choose(256) == 128


def test_no_more_rows_are_tried_than_there_is_room_for() -> None:
    """The bound itself is tried, and nothing above it."""
    speed = Speed(weights_bound)
    curve = speed.climb(most=40)
    assert speed.tried == [1, 2, 4, 8, 12, 16, 24, 32, 40]
    assert curve.choose(40) == 40
    assert Speed(weights_bound).climb(most=1).choose(1) == 1


def test_the_time_is_limited() -> None:
    """A huge model is measured with few sizes: after the limit only those begin that are always tried, after twice the
    limit none, and the first always does."""
    speed = Speed(weights_bound, costs=4.0)
    assert speed.climb(within_s=10.0).choose(256) == 64
    assert speed.tried == [1, 2, 4, 32, 64]
    slow = Speed(weights_bound, costs=40.0)
    assert slow.climb(within_s=10.0).choose(256) == 1


def test_more_rows_than_can_run_end_the_climb() -> None:
    """What was measured before counts."""
    curve = climb(lambda rows: float(rows) if rows < 16 else None, 256, within_s=10.0)
    assert curve.choose(256) == 12
    assert curve.covers(256)


def test_a_curve_that_was_cut_by_its_bound_tells_nothing_beyond() -> None:
    """With more room there is something to measure; with less, or past the end of a climb, there is not."""
    bounded, whole = Speed(weights_bound).climb(most=16), Speed(lambda rows: 0.01 * rows).climb(most=256)
    assert bounded.covers(8)
    assert bounded.choose(8) == 8
    assert not bounded.covers(17)
    assert whole.covers(10_000)
    assert not Curve({}, None).covers(1)


def test_a_curve_is_shown_as_rates_by_rows() -> None:
    """Whole numbers, but for the slowest."""
    assert str(Curve({1: 4.125, 8: 31.9, 24: 610.2}, None)) == "1: 4.1, 8: 32, 24: 610"


def test_the_limit_has_two_sides() -> None:
    """Few rows are bound by what a step reads, at the speed of a copy; many by what a token costs in a prompt."""
    limit = Limit(bandwidth=100e9, prefill=1500.0, weights=2 * 10**9, row_bytes=10**8)
    assert limit.at(1) == pytest.approx(100 / 2.1)
    assert limit.at(20) == pytest.approx(500)
    assert limit.at(200) == pytest.approx(200 / 22 * 100)
    assert Limit(bandwidth=100e9, prefill=1500.0, weights=2 * 10**9, row_bytes=0).at(64) == 1500.0


def test_a_step_reads_the_experts_that_its_rows_go_through() -> None:
    """One row reads its own ones, many unlike rows come to read them all."""
    limit = Limit(1e9, 1e9, weights=100, row_bytes=0, expert_weights=3200, experts=Experts(32, 4))
    assert limit.step_bytes(1) == pytest.approx(100 + 400)
    assert limit.step_bytes(2) == pytest.approx(100 + 3200 * (1 - (28 / 32) ** 2))
    assert limit.step_bytes(256) == pytest.approx(3300)
