"""What the full-screen views are made of: bars, sparklines, and lines of columns that fit, as rich text.

Nothing here reads markup: what users and workers named stands in :class:`rich.text.Text`, letter by letter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.text import Text

from submit.text import printable

__all__ = ["Column", "bar", "beside", "columns", "more", "sparkline", "text", "wrapped"]

BLOCKS, ASCII_BLOCKS = ("█", "░"), ("#", "-")
STEPS, ASCII_STEPS = "▁▂▃▄▅▆▇█", "_.-=+*#@"
GAP = 2


def text(shown: str, style: str = "") -> Text:
    """``shown`` without what could steer a terminal."""
    return Text(printable(shown), style=style, no_wrap=True, end="")


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
    """A column of a table. Where there is too little room the one of the highest ``rank`` goes first (0: never), and
    then those with a ``least`` width are cut down to it."""

    title: str
    cells: Sequence[Text]
    right: bool = False
    rank: int = 0
    least: int | None = None

    @property
    def width(self) -> int:
        return max(len(self.title), *(cell.cell_len for cell in self.cells), 0)


def columns(given: Sequence[Column], width: int) -> list[Text]:
    """A header and a line for each row, in at most ``width`` columns of a terminal."""
    kept = list(given)
    while _total(column.width for column in kept) > width and any(column.rank for column in kept):
        kept.remove(max(kept, key=lambda column: column.rank))
    widths = [column.width for column in kept]
    for place, column in enumerate(kept):
        if column.least is not None:
            excess = max(_total(widths) - width, 0)
            widths[place] = max(min(column.least, widths[place]), widths[place] - excess)
    header = [text(column.title, "bright_black") for column in kept]
    rows = [header, *([column.cells[row] for column in kept] for row in range(len(kept[0].cells)))]
    flush = [column.right for column in kept]
    return [_line(row, widths, flush, width) for row in rows]


def _total(widths: Iterable[int]) -> int:
    sizes = list(widths)
    return sum(sizes) + GAP * (len(sizes) - 1)


def _line(row: Sequence[Text], widths: Sequence[int], flush: Sequence[bool], width: int) -> Text:
    line = text("")
    for place, (cell, size, right) in enumerate(zip(row, widths, flush, strict=True)):
        shown = cell.copy()
        shown.truncate(size, overflow="ellipsis")
        space = " " * (size - shown.cell_len)
        line.append(" " * GAP if place else "")
        line = line.append(space).append_text(shown) if right else line.append_text(shown).append(space)
    line.rstrip()
    line.truncate(width, overflow="ellipsis")
    return line


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
