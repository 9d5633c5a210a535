"""Rates of the recent past."""

from __future__ import annotations

import pytest

from submit.status.rates import BatchRates, Window
from tests.unit.submit.test_progress import batch


def test_rates_are_of_the_recent_past() -> None:
    """A slow start is forgotten after a minute."""
    window = Window()
    for second in range(0, 100, 10):
        window.add(float(second), batch(0, total=10_000))
    for second in range(100, 200, 10):
        rates = window.add(float(second), batch((second - 90) * 2, total=10_000))
    assert rates == BatchRates(2.0, 20.0, 100.0, 0.0)
    assert rates.eta(batch(200, total=10_000)) == pytest.approx(4900)


def test_lines_done_before_do_not_count_as_speed() -> None:
    """A batch that is gone on with starts from its own present."""
    window = Window()
    assert window.add(0.0, batch(90)) == BatchRates()
    assert window.add(10.0, batch(95)) == BatchRates(0.5, 5.0, 25.0, 0.0)


def test_long_lines_keep_a_rate() -> None:
    """A minute without a finished line falls back on the whole time."""
    window = Window()
    window.add(0.0, batch(0))
    window.add(10.0, batch(10))
    for second in range(20, 110, 10):
        rates = window.add(float(second), batch(10))
    assert rates == BatchRates(0.1, 1.0, 5.0, 0.0)
