"""Moments as people write them."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from jobs.app.units import parse_moment
from jobs.errors import RefusedError

BERLIN = ZoneInfo("Europe/Berlin")
NOW = datetime(2026, 11, 21, 17, 30, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("19:00", "2026-11-21T19:00+01:00"),
        ("18:30", "2026-11-22T18:30+01:00"),  # now, by the clock there
        ("2:05", "2026-11-22T02:05+01:00"),
        ("18:30:01", "2026-11-21T18:30:01+01:00"),
        ("2026-11-22 02:00", "2026-11-22T02:00+01:00"),
        ("2027-07-01T02:00", "2027-07-01T02:00+02:00"),
        ("2026-11-21T17:31Z", "2026-11-21T18:31+01:00"),
        (" 2026-11-22T02:00-05:00 ", "2026-11-22T08:00+01:00"),
        ("2026-11-22", "2026-11-22T00:00+01:00"),
    ],
)
def test_moments(text: str, wanted: str) -> None:
    """Times of day are the next ones; zones are those given, else the local one."""
    assert parse_moment(text, NOW, BERLIN) == datetime.fromisoformat(wanted).timestamp()


def test_a_time_of_day_tomorrow_is_the_same_on_the_clock() -> None:
    """Also where the clocks change in between."""
    saturday = datetime(2026, 10, 24, 12, 0, tzinfo=BERLIN).timestamp()
    assert parse_moment("11:00", saturday, BERLIN) - saturday == 24 * 3600


@pytest.mark.parametrize("text", ["25:00", "02:60", "soon", "", "2026-13-01", "9999999-01-01", "12", "\x00"])
def test_what_is_no_moment_is_refused(text: str) -> None:
    """With examples of what is."""
    with pytest.raises(RefusedError, match="is no moment; write 02:00, 2026-11-22 02:00"):
        parse_moment(text, NOW, BERLIN)


@pytest.mark.parametrize("text", ["2026-11-21 18:30", "2020-01-01", "2026-11-21T17:29:59Z"])
def test_the_past_is_refused(text: str) -> None:
    """Now is past as well."""
    with pytest.raises(RefusedError, match="has passed already"):
        parse_moment(text, NOW, BERLIN)
