"""What the full-screen views are made of beside tables: bars, sparklines, and lines that fit, as rich text."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from rich.text import Text

from submit.status.table import text

BLOCKS, ASCII_BLOCKS = ("█", "░"), ("#", "-")
STEPS, ASCII_STEPS = "▁▂▃▄▅▆▇█", "_.-=+*#@"
GAP = 3
WIDE = 110
"""Columns of a terminal from which on bars and sparklines are longer."""


def bar(share: float, width: int, style: str = "green", *, unicode: bool = True) -> Text:
    """A bar of ``width`` columns, filled to ``share`` (0..1)."""
    full, empty = BLOCKS if unicode else ASCII_BLOCKS
    done = int(min(max(share, 0.0), 1.0) * width)
    return text(full * done, style).append(empty * (width - done), "bright_black")


def sparkline(values: Sequence[float], width: int, style: str = "cyan", *, unicode: bool = True) -> Text:
    """``values``, the latest last, as columns of a height that goes by the highest of them; several share a column
    where there are more of them than columns."""
    steps = STEPS if unicode else ASCII_STEPS
    per = max(1, -(-len(values) // width))
    parts = [values[max(0, end - per) : end] for end in range(len(values), 0, -per)][::-1]
    heights = [sum(part) / len(part) for part in parts]
    top = max(heights, default=0.0)
    drawn = "".join(steps[min(int(height / top * len(steps)), len(steps) - 1) if top else 0] for height in heights)
    return text(drawn.rjust(width), style)


def title_line(title: Text, now: float, width: int) -> Text:
    """A title, cut where it has no room, and at the end of the line the time of day."""
    clock = text(datetime.fromtimestamp(now).strftime(" %H:%M:%S"), "bright_black")
    shown = title.copy()
    shown.truncate(max(width - clock.cell_len, 0), overflow="ellipsis", pad=True)
    return shown.append_text(clock)


def wrapped(parts: Sequence[Text], width: int) -> list[Text]:
    """Facts one after the other, on as many lines as they need."""
    lines: list[Text] = []
    for part in parts:
        if lines and lines[-1].cell_len + GAP + part.cell_len <= width:
            lines[-1].append(" " * (GAP)).append_text(part)
        else:
            lines.append(part.copy())
            lines[-1].truncate(width, overflow="ellipsis")
    return lines


def more(lines: list[Text], rows: int, count: int) -> list[Text]:
    """A table of ``count`` rows and a header in at most ``rows`` lines; the last says how many have no room."""
    if len(lines) <= rows:
        return lines
    shown = max(rows - 2, 0)
    return [*lines[: shown + 1], text(f"... and {count - shown:,} more", "bright_black")][: max(rows, 0)]


def fit(lines: Sequence[Text], width: int, height: int) -> list[Text]:
    """What of these lines has room on a screen; dots at its foot say that there is more."""
    shown = list(lines) if len(lines) <= height else [*lines[: height - 1], text("...", "bright_black")]
    for line in shown:
        line.truncate(width, overflow="ellipsis")
    return shown
