"""What the full-screen views are made of: bars, sparklines, and lines of columns that fit, as rich text.

Nothing here reads markup: what users and workers named stands in :class:`rich.text.Text`, letter by letter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.text import Text

from submit.status.text import printable

__all__ = ["WIDE", "Column", "bar", "beside", "columns", "fit", "more", "sparkline", "text", "wrapped"]

BLOCKS, ASCII_BLOCKS = ("█", "░"), ("#", "-")
STEPS, ASCII_STEPS = "▁▂▃▄▅▆▇█", "_.-=+*#@"
GAP, NARROW_GAP = 2, 1
WIDE = 110
"""Columns of a terminal from which on bars and sparklines are longer."""
HEAD = 6
"""Letters that stay before the cut of what is cut in the middle."""


def text(shown: str, style: str = "") -> Text:
    """``shown`` without what could steer a terminal."""
    # The style is of these letters, not of what may be put behind them.
    return Text(no_wrap=True, end="").append(printable(shown), style)


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


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table. Where there is too little room, those with a ``least`` width may be cut down to it (in the
    ``middle``, or at the end), and if that is not enough the one of the highest ``rank`` is left out (0: never)."""

    title: str
    cells: Sequence[Text]
    right: bool = False
    rank: int = 0
    least: int | None = None
    middle: bool = False

    @property
    def width(self) -> int:
        return max(len(self.title), *(cell.cell_len for cell in self.cells), 0)

    @property
    def narrowest(self) -> int:
        return self.width if self.least is None else min(self.width, self.least)

    def cell(self, row: int, width: int) -> Text:
        """A cell, or for row -1 the title, in exactly ``width`` columns."""
        shown = text(self.title, "bright_black") if row < 0 else self.cells[row].copy()
        if self.middle and row >= 0 and shown.cell_len > width > HEAD:
            shown = shown[:HEAD].append("…").append_text(shown[len(shown) - (width - HEAD - 1) :])
        shown.truncate(width, overflow="ellipsis")
        space = " " * (width - shown.cell_len)
        return text(space).append_text(shown) if self.right else shown.append(space)


def columns(given: Sequence[Column], width: int) -> list[Text]:
    """A header and a line for each row, in at most ``width`` columns of a terminal."""
    kept = list(given)
    gap = GAP if _total((column.width for column in kept), GAP) <= width else NARROW_GAP
    while _total((column.narrowest for column in kept), gap) > width and any(column.rank for column in kept):
        kept.remove(max(kept, key=lambda column: column.rank))
    widths = [column.width for column in kept]
    for place, column in enumerate(kept):
        excess = max(_total(widths, gap) - width, 0)
        widths[place] = max(column.narrowest, widths[place] - excess)
    lines = []
    for row in range(-1, len(kept[0].cells)):
        cells = [column.cell(row, size) for column, size in zip(kept, widths, strict=True)]
        line = text(" " * gap).join(cells)
        line.rstrip()
        line.truncate(width, overflow="ellipsis")
        lines.append(line)
    return lines


def _total(widths: Iterable[int], gap: int) -> int:
    sizes = list(widths)
    return sum(sizes) + gap * (len(sizes) - 1)


def beside(left: Text, right: Text, width: int) -> Text:
    """Two texts at the two ends of a line; of the left one is cut what has no room."""
    room = max(width - right.cell_len - 1, 0)
    shown = left.copy()
    shown.truncate(room, overflow="ellipsis")
    return shown.append(" " * (width - shown.cell_len - right.cell_len)).append_text(right)


def wrapped(parts: Sequence[Text], width: int) -> list[Text]:
    """Facts one after the other, on as many lines as they need."""
    lines: list[Text] = []
    for part in parts:
        if lines and lines[-1].cell_len + GAP + 1 + part.cell_len <= width:
            lines[-1].append(" " * (GAP + 1)).append_text(part)
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
