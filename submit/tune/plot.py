"""A measurement as a picture: tokens per second by the number of rows, below what the machine allows."""

from __future__ import annotations

from pathlib import Path

from jobs.errors import RefusedError
from submit.tune.measurement import Measurement

MEASURED, LIMIT, CHOSEN, TEXT, FAINT = "#0f766e", "#1f2937", "#b45309", "#1f2937", "#6b7280"


def check_plot(path: Path) -> None:
    """See before anything is measured that a picture can be drawn and written.

    Raises:
        RefusedError: it cannot.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise RefusedError("--plot needs matplotlib: pip install 'promptmill[plot]'") from None
    if path.suffix.lower() != ".png":
        raise RefusedError(f"--plot writes PNG: name a file such as {path.with_suffix('.png')}")
    if not path.parent.is_dir():
        raise RefusedError(f"--plot: there is no folder {path.parent}")


def plot(found: Measurement, path: Path) -> None:
    """Write a PNG.

    Raises:
        RefusedError: the file cannot be written.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot, ticker

    rows = [speed.rows for speed in found.sizes]
    pyplot.rcParams.update({"font.family": "DejaVu Sans", "font.size": 10, "text.color": TEXT})
    figure, axis = pyplot.subplots(figsize=(7.2, 4.6))
    limits = [speed.limit for speed in found.sizes]
    axis.plot(rows, limits, color=LIMIT, linestyle=(0, (4, 3)), linewidth=1.2, label="limit of this machine")
    rates = [speed.tokens_per_s for speed in found.sizes]
    axis.plot(rows, rates, color=MEASURED, marker="o", markersize=4.5, linewidth=1.8, label="measured")
    chosen = next((speed for speed in found.sizes if speed.rows == found.choice), None)
    if chosen is not None:
        label = f"chosen: {chosen.rows} rows, {chosen.tokens_per_s:,.0f} tokens/s, {chosen.share:.2f} of the limit"
        axis.plot(chosen.rows, chosen.tokens_per_s, "o", color=CHOSEN, markersize=9, label=label, zorder=4)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks([size for size in rows if size & (size - 1) == 0] or rows)
    axis.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:.0f}"))
    axis.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,g}"))
    axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_minor_locator(ticker.NullLocator())
    axis.xaxis.set_minor_locator(ticker.NullLocator())
    axis.set_xlabel("rows decoded together", color=FAINT)
    axis.set_ylabel("tokens/s", color=FAINT)
    axis.tick_params(length=0, colors=TEXT, which="both")
    axis.grid(color="#e5e7eb", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.legend(frameon=False, loc="lower right", fontsize=9)
    for side in axis.spines.values():
        side.set_visible(False)
    axis.set_title("/".join(Path(found.model).parts[-2:]), loc="left", fontsize=13, fontweight="bold", pad=12)
    caption = f"{found.device or 'unknown device'}, rows of {found.prompt_tokens:,} tokens, {found.measured_on}"
    figure.text(0.015, 0.015, caption, fontsize=8, color=FAINT)
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    try:
        figure.savefig(path, dpi=160, facecolor="white")
    except OSError as error:
        raise RefusedError(f"--plot: {path} cannot be written: {error.strerror or error}") from None
    finally:
        pyplot.close(figure)
