"""The page and the plot, written into the folder of the results."""

from __future__ import annotations

from pathlib import Path

from bench.record import Run
from bench.report import data, guided
from bench.report.page import render
from bench.report.plot import plot, plot_text


def write(run: Run, folder: Path) -> None:
    """``README.md``, the pages of guided lines and of tables, ``engine.png`` and ``realtext.png``, each where there is
    something for it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(render(run), encoding="utf-8")
    for name, page in ((guided.FILE, guided.render_guided(run)), (data.FILE, data.render_data(run))):
        if page is not None:
            (folder / name).write_text(page, encoding="utf-8")
    limits = {item.bench for item in run.measurements if item.side == "limit"}
    if "engine" in limits:
        plot(run, folder / "engine.png")
    if "realtext" in limits:
        plot_text(run, folder / "realtext.png")
