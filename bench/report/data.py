"""The page of tables: rows per second and memory, and the goals."""

from __future__ import annotations

from bench.record import Run
from bench.report.table import table

FILE = "data.md"
RATES = {"submit": 30_000, "parquet": 50_000}
"""Goals, rows per second."""
PEAKS = {"submit": 300, "parquet": 400}
"""Goals, MB."""
WHAT = {
    "submit": "parquet, a template of three columns, submitted",
    "parquet": "results to parquet",
    "csv": "results to csv",
    "flat": "results to flat JSON lines",
}
NOTE = """\
Rows of five columns and about 420 bytes. Results have the rows' columns and an answer of a sentence. Each side ran in
a process of its own beside its server, which has its AOF on, as the embedded one. MB are the peak of the process, with
the interpreter and pyarrow; CPU is the process's time, of all threads and of imports too. `python -m bench.data`
measures it."""


def render_data(run: Run) -> str | None:
    """The whole page; None where nothing of it was measured."""
    latest = {item.side: item for item in run.measurements if item.bench == "data"}
    if not latest:
        return None
    rows = []
    for side, what in WHAT.items():
        if (item := latest.get(side)) is None:
            continue
        rate, peak = item.lines / item.seconds, item.extra["peak_bytes"] / 1e6
        cpu = f"{1e6 * item.extra['cpu_s'] / item.lines:.1f}"
        shown = [*_beside(rate, RATES.get(side), more=True), *_beside(peak, PEAKS.get(side))]
        rows.append([what, f"{item.lines:,}", *shown, cpu])
    head = ["what", "rows", "rows/s", "goal", "MB", "goal", "CPU, µs a row"]
    return f"# Tables\n\n{table(head, rows)}\n\n{NOTE}\n"


def _beside(measured: float, goal: float | None, *, more: bool = False) -> tuple[str, str]:
    if goal is None:
        return f"{measured:,.0f}", ""
    met = measured >= goal if more else measured < goal
    return f"{measured:,.0f}", f"{'≥' if more else '<'} {goal:,} {'met' if met else '**missed**'}"
