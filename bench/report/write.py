"""The page and the plot, written into the folder of the results."""

from __future__ import annotations

from pathlib import Path

from bench.record import Run
from bench.report.guided import FILE, render_guided
from bench.report.page import render
from bench.report.plot import plot, plot_text


def write(run: Run, folder: Path) -> None:
    """``README.md``, and the page of guided lines, ``engine.png`` and ``realtext.png`` where there is something for
    them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(render(run), encoding="utf-8")
    guided = render_guided(run)
    if guided is not None:
        (folder / FILE).write_text(guided, encoding="utf-8")
    limits = {item.bench for item in run.measurements if item.side == "limit"}
    if "engine" in limits:
        plot(run, folder / "engine.png")
    if "realtext" in limits:
        plot_text(run, folder / "realtext.png")
