"""What the benchmark of tables writes and shows; nothing is timed here."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.record import Measurement, Run
from bench.report.data import WHAT, render_data
from tests.unit.bench.test_report import MACHINE, cells

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def test_the_page_says_which_goals_were_met() -> None:
    """The rate and the memory of each side beside its goal; nothing where nothing was measured."""
    assert render_data(Run(MACHINE, ())) is None
    extra = {"peak_bytes": 250_000_000, "cpu_s": 20.0}
    sides = {"submit": 20.0, "parquet": 40.0}
    items = [
        Measurement(MACHINE.run, "data", "none", side, 0, 1_000_000, 0, 1_000_000, seconds, extra=extra)
        for side, seconds in sides.items()
    ]
    page = render_data(Run(MACHINE, tuple(items)))
    assert page is not None
    assert cells(page, WHAT["submit"])[1:] == ["1,000,000", "50,000", "≥ 30,000 met", "250", "< 300 met", "20.0"]
    assert cells(page, WHAT["parquet"])[1:] == [
        "1,000,000",
        "25,000",
        "≥ 50,000 **missed**",
        "250",
        "< 400 met",
        "20.0",
    ]


def test_results_are_compared_with_what_was_submitted(tmp_path: Path) -> None:
    """A table that lacks a row, or has another, ends the benchmark."""
    from bench.data.__main__ import compare
    from bench.data.work import ANSWER, write_table

    given, out = tmp_path / "given.parquet", tmp_path / "out.parquet"
    write_table(given, 20)
    rows = pq.read_table(given)
    rows = rows.append_column("completion", pa.array([ANSWER.format(number) for number in range(20)]))
    pq.write_table(rows, out)
    compare(given, out)
    for wrong in (rows.slice(1), pa.concat_tables([rows.slice(0, 19), rows.slice(0, 1)])):
        pq.write_table(wrong, out)
        with pytest.raises(RuntimeError):
            compare(given, out)
