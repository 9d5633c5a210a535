"""When schedules run: expressions, time zones, and the two nights of the year on which clocks are moved."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings, strategies as st

from jobs.errors import RefusedError
from submit.schedule.cron import MOST_COUNTED, Cron, local_zone, time_zone
from submit.schedule.table import missed_runs

BERLIN = "Europe/Berlin"


def at(wall: str, zone: str) -> float:
    return datetime.fromisoformat(wall).replace(tzinfo=ZoneInfo(zone)).timestamp()


def times(expression: str, zone: str, start: str, count: int) -> list[str]:
    """The next times after ``start``, with their offsets from UTC."""
    cron, moment, found = Cron(expression, zone), at(start, zone), []
    for _ in range(count):
        moment = cron.after(moment)
        found.append(datetime.fromtimestamp(moment, ZoneInfo(zone)).strftime("%m-%d %H:%M%z"))
    return found


def test_times_are_of_the_zone() -> None:
    """Two at night is two at night there, in summer and in winter."""
    assert times("0 2 * * *", BERLIN, "2026-07-01T12:00", 1) == ["07-02 02:00+0200"]
    assert times("0 2 * * *", BERLIN, "2026-12-01T12:00", 1) == ["12-02 02:00+0100"]
    assert times("30 5 * * *", "Asia/Kolkata", "2026-12-01T12:00", 1) == ["12-02 05:30+0530"]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("@daily", ["11-22 00:00+0000", "11-23 00:00+0000"]),
        ("0 6 * * mon-fri", ["11-23 06:00+0000", "11-24 06:00+0000"]),
        ("0 0 l * *", ["11-30 00:00+0000", "12-31 00:00+0000"]),
        ("0 0 * * fri#1", ["12-04 00:00+0000", "01-01 00:00+0000"]),
        ("15,45 */12 * * *", ["11-22 00:15+0000", "11-22 00:45+0000"]),
        (" 0  12 24 DEC * ", ["12-24 12:00+0000", "12-24 12:00+0000"]),
    ],
)
def test_expressions_as_cron_has_them(expression: str, expected: list[str]) -> None:
    """Names, steps, lists, the last day, the first Friday."""
    assert times(expression, "UTC", "2026-11-21T17:00", 2) == expected


def test_a_time_that_is_skipped_comes_after_the_gap() -> None:
    """On the night on which 02:30 does not exist the run is at 03:00, once, and the next night at 02:30 again."""
    assert times("30 2 * * *", BERLIN, "2026-03-28T12:00", 2) == ["03-29 03:00+0200", "03-30 02:30+0200"]
    assert times("0,30 2,3 * * *", BERLIN, "2026-03-28T12:00", 3) == [
        "03-29 03:00+0200", "03-29 03:30+0200", "03-30 02:00+0200",
    ]  # fmt: skip
    assert times("10 2 * * *", "Australia/Lord_Howe", "2026-10-03T12:00", 1) == ["10-04 02:30+1100"]
    assert times("0 0 * * *", "America/Sao_Paulo", "2018-11-03T12:00", 2) == ["11-04 01:00-0200", "11-05 00:00-0200"]


def test_a_time_that_comes_twice_runs_once() -> None:
    """On the night with two of 02:30 the run is at the first; seen from between the two, the next is a day later."""
    assert times("30 2 * * *", BERLIN, "2026-10-24T12:00", 2) == ["10-25 02:30+0200", "10-26 02:30+0100"]
    between = at("2026-10-25T02:30", BERLIN) + 900
    assert Cron("30 2 * * *", BERLIN).after(between) == at("2026-10-26T02:30", BERLIN)


def test_all_hours_go_by_the_time_that_passes() -> None:
    """Every half hour is every half hour, in both of the equal hours; nothing is made up for the hour that was not."""
    assert times("*/30 * * * *", BERLIN, "2026-10-25T01:40", 5) == [
        "10-25 02:00+0200", "10-25 02:30+0200", "10-25 02:00+0100", "10-25 02:30+0100", "10-25 03:00+0100",
    ]  # fmt: skip
    assert times("*/30 * * * *", BERLIN, "2026-03-29T01:40", 2) == ["03-29 03:00+0200", "03-29 03:30+0200"]


@settings(deadline=None, max_examples=60)
@given(
    moment=st.integers(1_500_000_000, 2_000_000_000),
    expression=st.sampled_from(["* * * * *", "*/7 * * * *", "30 2 * * *", "0 */3 * * *", "5 0 1 * *", "0 1-3 * * sun"]),
    zone=st.sampled_from([BERLIN, "America/New_York", "Australia/Lord_Howe", "Africa/Casablanca", "UTC"]),
)
def test_times_only_go_forward(moment: int, expression: str, zone: str) -> None:
    """The next time is later, and no time lies between the two: from a moment before it, it is still the next."""
    cron = Cron(expression, zone)
    following = cron.after(moment)
    assert following > moment
    assert cron.after((moment + following) / 2) == following
    assert cron.after(following) > following


def test_what_was_missed_is_counted() -> None:
    """From the first to the last that is not after a moment; many are not counted one by one, but the last is right."""
    cron = Cron("0 2 * * *", "UTC")
    first = int(at("2026-11-01T02:00", "UTC"))
    assert cron.latest(first, first) == (first, 1)
    assert cron.latest(first, at("2026-11-04T01:59", "UTC")) == (int(at("2026-11-03T02:00", "UTC")), 3)
    now = at("2026-11-01T02:00:30", "UTC") + 366 * 86400
    assert Cron("* * * * *", "UTC").latest(first, now) == (int(now) - 30, MOST_COUNTED)


def test_missed_runs_are_said_as_far_as_they_are_counted() -> None:
    """A thousand, or more."""
    assert MOST_COUNTED == 1000
    assert (missed_runs(1), missed_runs(999), missed_runs(1000)) == ("1 run", "999 runs", "1,000 or more runs")


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("0 25 * * *", "field 'hour': 25 is out of range 0-23"),
        ("60 * * * *", "field 'minute': 60 is out of range 0-59"),
        ("0 0 0 * *", "field 'day of month': 0 is out of range 1-31"),
        ("0 0 * foo *", "field 'month': 'foo' is not understood; it may be jan, "),
        ("0 0 * * 8", "field 'day of week': 8 is out of range 0-7"),
        ("0 0 * * mon#6", "field 'day of week': #6 is out of range 1-5"),
        ("*/0 * * * *", "field 'minute': a step of 0 is out of range 1-59"),
        ("*-5 * * * *", "field 'minute': "),
        ("h r * * *", "field 'minute': 'h' is not understood"),
        ("0 0 ; * *", "field 'day of month': "),
        ("* * * *", "5 fields, not 4"),
        ("* * * * * *", "5 fields, not 6"),
        ("", "5 fields, not 0"),
        ("0 0 30 2 *", "never comes"),
        ("@reboot", "@daily"),
        ("0" * 300, "at most 256 characters"),
    ],
)
def test_bad_expressions_are_explained(expression: str, said: str) -> None:
    """The message names the field and what it may be."""
    with pytest.raises(RefusedError) as caught:
        Cron(expression, "UTC")
    assert said in str(caught.value)


@settings(deadline=None)
@given(st.text(max_size=40) | st.text("0123456789*/,-#? lLmon@", max_size=30))
def test_any_text_is_a_cron_expression_or_refused(text: str) -> None:
    """Nothing else is raised, and what is taken has a next time."""
    try:
        cron = Cron(text, "UTC")
    except RefusedError:
        return
    assert cron.after(1_790_000_000) > 1_790_000_000


@pytest.mark.parametrize(
    "name", ["Mars", "", "../etc/passwd", "/etc/localtime", "Europe", "x" * 100, "Europe/Ber\0lin"]
)
def test_names_that_are_no_zones_are_refused(name: str) -> None:
    """Nor do they lead out of the folder of zones."""
    with pytest.raises(RefusedError, match="time zone"):
        time_zone(name)


def test_the_local_zone_has_a_name(tmp_path: Path) -> None:
    """From TZ, else from where /etc/localtime leads; a machine that only says an offset needs --tz."""
    link, file = tmp_path / "localtime", tmp_path / "copy"
    link.symlink_to("/var/db/timezone/zoneinfo/America/New_York")
    file.write_bytes(b"TZif")
    assert local_zone({"TZ": "Asia/Tokyo"}, link) == "Asia/Tokyo"
    assert local_zone({"TZ": ":Etc/UTC"}, link) == "UTC"
    assert local_zone({}, link) == "America/New_York"
    assert local_zone({}, file, offset=0) == "UTC"
    with pytest.raises(RefusedError, match="--tz"):
        local_zone({}, file, offset=3600)
    with pytest.raises(RefusedError, match="--tz"):
        local_zone({"TZ": "XYZ-3"}, link, offset=10800)


def test_moments_are_whole_seconds_of_utc() -> None:
    """A time is the same whichever zone reads it."""
    assert (
        Cron("0 2 * * *", BERLIN).after(at("2026-07-01T12:00", "UTC")) == datetime(2026, 7, 2, tzinfo=UTC).timestamp()
    )
