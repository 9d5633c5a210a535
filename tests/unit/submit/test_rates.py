"""Rates of the recent past."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jobs.batch import Usage
from submit.status.progress import plain_text
from submit.status.rates import BatchRates, Window, scored_pace
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


def test_scored_tokens_have_a_rate_of_their_own() -> None:
    """Of the last minute while a batch runs, of all its time after; a batch that scores nothing says nothing of it."""
    first, later = (replace(batch(done), usage=Usage(done * 10, 0, 0, done * 9)) for done in (0, 20))
    window = Window()
    window.add(0.0, first)
    rates = window.add(10.0, later)
    assert rates == BatchRates(2.0, 20.0, 0.0, 18.0)
    assert scored_pace(later, 10.0, rates) == "18.0 scored tok/s"
    assert plain_text(later, rates, None).startswith(
        "20 of 100 lines done; prompt 20.0 tok/s, output 0 tok/s, scored 18.0"
    )
    done = replace(later, status="completed", total=20, times={"started": 5.0, "completed": 25.0})
    assert scored_pace(done, 99.0, None) == "9.0 scored tok/s"
    assert scored_pace(batch(20), 10.0, BatchRates(2.0, 20.0, 100.0, 0.0)) == ""
