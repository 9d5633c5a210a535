"""A run's engine benchmark as a picture: each side's tokens per second as a share of the limit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bench.models import SHAPES
from bench.record import Run
from bench.report.summary import GOALS, LABELS, Summary, summarise

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OURS, THEIRS, GREEDY, LINE, TEXT = "#0f766e", "#b6bfca", "#7fbfb6", "#b45309", "#1f2937"
PLAIN = {"mlx_lm_warm": "mlx-lm, own params, compiled before", "mlx_lm_cold": "mlx-lm, own params, cold"}


def plot(run: Run, path: Path) -> None:
    """Write a PNG; models without a limit are left out."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    found = summarise(run.measurements, "engine")
    models = [model for model in SHAPES if (model, "limit") in found]
    sides = [side for side in LABELS if side != "limit" and any((model, side) in found for model in models)]
    pyplot.rcParams.update({"font.family": "DejaVu Sans", "font.size": 10, "text.color": TEXT})
    figure, axes = pyplot.subplots(
        1, len(models), figsize=(3.1 + 3.0 * len(models), 1.9 + 0.36 * len(sides)), sharey=True, squeeze=False
    )
    for axis, model in zip(axes[0], models, strict=True):
        _panel(axis, model, {side: found.get((model, side)) for side in sides}, found[model, "limit"])
    axes[0][0].set_yticks(range(len(sides)), [PLAIN.get(side, LABELS[side]) for side in sides])
    for label, side in zip(axes[0][0].get_yticklabels(), sides, strict=True):
        label.set_color(TEXT)
        label.set_fontweight("bold" if side == "promptmill_own" else "normal")
    axes[0][0].invert_yaxis()
    figure.suptitle(
        "Tokens per second, as a share of the bare decode loop", x=0.015, ha="left", fontsize=13, fontweight="bold"
    )
    caption = f"{run.machine.cpu}, {run.machine.cores} cores, float32, 32 rows; {run.machine.date}"
    caption += ". Numbers: tokens/s, median. Dashed: the goal."
    figure.text(0.015, 0.015, caption, ha="left", va="bottom", fontsize=8, color="#6b7280")
    figure.tight_layout(rect=(0, 0.05, 1, 1.02))
    figure.savefig(path, dpi=160, facecolor="white")
    pyplot.close(figure)


def _panel(axis: Axes, model: str, summaries: Mapping[str, Summary | None], limit: Summary) -> None:
    for place, (side, summary) in enumerate(summaries.items()):
        if summary is None:
            axis.text(0.015, place, "not measured", va="center", fontsize=8, color="#9ca3af", fontstyle="italic")
            continue
        share = summary.median / limit.median
        colour = {"promptmill_own": OURS, "promptmill_greedy": GREEDY}.get(side, THEIRS)
        axis.barh(place, share, height=0.68, color=colour, zorder=2)
        if summary.rounds > 1:
            error = summary.half_range / limit.median
            axis.errorbar(share, place, xerr=error, color=TEXT, elinewidth=0.9, capsize=2, zorder=3)
        _label(axis, place, share, summary, limit, colour=colour)
    axis.axvline(GOALS[model], color=LINE, linestyle=(0, (4, 3)), linewidth=1.2, zorder=3)
    axis.axvline(1.0, color=TEXT, linewidth=1.0, zorder=1)
    axis.set_xlim(0, max(1.12, *(item.median / limit.median + 0.1 for item in summaries.values() if item)))
    axis.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "¼", "½", "¾", "limit"])
    axis.set_title(f"{model}: limit {limit.median:,.0f} tokens/s", fontsize=10, loc="left", pad=8)
    axis.tick_params(axis="both", length=0, colors=TEXT)
    axis.grid(axis="x", color="#e5e7eb", linewidth=0.8, zorder=0)
    axis.set_axisbelow(True)
    for side in ("top", "right", "left", "bottom"):
        axis.spines[side].set_visible(False)


def _label(axis: Axes, place: int, share: float, summary: Summary, limit: Summary, *, colour: str) -> None:
    """The number: within a bar that is long enough, else behind it."""
    text = f"{summary.median:,.0f}"
    if share > 0.3:
        inner = "white" if colour == OURS else TEXT
        axis.text(0.02, place, text, va="center", fontsize=9, color=inner, fontweight="bold", zorder=4)
    else:
        behind = share + summary.half_range / limit.median + 0.02
        axis.text(behind, place, text, va="center", fontsize=9, color=TEXT, fontweight="bold", zorder=4)
