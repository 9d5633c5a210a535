"""Numbers, names and tables in the columns of a terminal."""

from __future__ import annotations

from submit.status.table import Column, plain_table
from submit.status.text import cells, clip, count, duration, rate


def test_numbers_are_short() -> None:
    """Durations in two units, counts and rates in a few digits."""
    assert [duration(s) for s in (None, 0.4, 59.4, 250, 7500, 273600)] == ["-", "0s", "59s", "4m10s", "2h05m", "3d04h"]
    assert [count(n) for n in (0, 9999, 95000, 1_200_000, 3 * 10**9)] == ["0", "9,999", "95.0k", "1.2M", "3.0G"]
    assert [rate(r) for r in (None, 0.25, 7.52, 1234.5)] == ["-", "0.25", "7.5", "1,234"]


def test_clipping_counts_columns_and_disarms_control_characters() -> None:
    """Wide characters take two columns; what could steer a terminal is shown as a question mark."""
    assert clip("abcdef", 4) == "abc…"
    assert clip("日本語", 5) == "日本…"
    assert cells(clip("日本語", 4)) <= 4
    assert clip("a\x1b[2Jb", 20) == "a?[2Jb"


def test_tables_line_up_by_columns_of_the_terminal() -> None:
    """Columns are as wide as their widest cell, also with wide characters; numbers end flush."""
    columns: list[Column[tuple[str, str]]] = [
        Column("name", lambda row: row[0]),
        Column("n", lambda row: row[1], right=True),
    ]
    lines = plain_table(columns, [("日本", "5"), ("a", "100")], None)
    assert lines == ["name    n", "日本    5", "a     100"]
