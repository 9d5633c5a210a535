"""The page and the plot, written into the folder of the results."""

from __future__ import annotations

from pathlib import Path

from bench.record import Run
from bench.report.page import render
from bench.report.plot import plot


def write(run: Run, folder: Path) -> None:
    """``README.md``, and ``engine.png`` where there is something to plot."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(render(run), encoding="utf-8")
    if any(item.bench == "engine" and item.side == "limit" for item in run.measurements):
        plot(run, folder / "engine.png")
