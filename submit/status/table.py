"""Tables in a terminal: a description of the columns and the rows yield lines, to be printed plain or drawn.

Nothing here reads markup: what users and workers named stands in :class:`rich.text.Text`, letter by letter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from rich.text import Text

from submit.status.text import printable

GAP, NARROW_GAP = 2, 1
HEAD = 6
"""Letters that stay before the cut of what is cut in the middle."""

Row = TypeVar("Row")


def text(shown: str, style: str = "") -> Text:
    """``shown`` without what could steer a terminal."""
    # The style is of these letters, not of what may be put behind them.
    return Text(no_wrap=True, end="").append(printable(shown), style)


@dataclass(frozen=True, slots=True)
class Column(Generic[Row]):
    """A column: its title, and its cell in a row. Where there is too little room, columns with a ``least`` width may be
    cut down to it (in the ``middle``, or at the end), and if that is not enough the one of the highest ``rank`` is left
    out (0: never)."""

    title: str
    cell: Callable[[Row], str | Text]
    right: bool = False
    rank: int = 0
    least: int | None = None
    middle: bool = False


def plain_table(columns: Sequence[Column[Row]], rows: Sequence[Row], width: int | None) -> list[str]:
    """A header and a line for each row. What has no room in ``width`` columns of a terminal (None: any) is left out by
    ``rank``; no cell is cut."""
    uncut = [replace(column, least=None) for column in columns]
    return [line.plain for line in table(uncut, rows, width)]


def table(
    columns: Sequence[Column[Row]], rows: Sequence[Row], width: int | None, *, least_gap: int = GAP
) -> list[Text]:
    """The same as styled lines, with cells cut where columns have a ``least`` width; where there is too little room
    columns stand ``least_gap`` apart."""
    filled = [_Filled.of(column, rows) for column in columns]
    gap = GAP if width is None or _total((one.width for one in filled), GAP) <= width else least_gap
    if width is not None:
        while _total((one.narrowest for one in filled), gap) > width and any(one.column.rank for one in filled):
            filled.remove(max(filled, key=lambda one: one.column.rank))
        for place, one in enumerate(filled):
            excess = max(_total((other.width for other in filled), gap) - width, 0)
            filled[place] = replace(one, width=max(one.narrowest, one.width - excess))
    lines = []
    for row in range(len(rows) + 1):
        line = text(" " * gap).join(one.cell(row) for one in filled)
        line.rstrip()
        lines.append(line)
    return lines


@dataclass(frozen=True, slots=True, eq=False)
class _Filled:
    """A column with its title and cells, to be shown ``width`` columns wide."""

    column: Column[Any]
    cells: Sequence[Text]
    width: int
    narrowest: int

    @classmethod
    def of(cls, column: Column[Row], rows: Iterable[Row]) -> _Filled:
        shown = [column.cell(row) for row in rows]
        cells = [
            text(column.title, "bright_black"),
            *(cell if isinstance(cell, Text) else text(cell) for cell in shown),
        ]
        width = max(cell.cell_len for cell in cells)
        return cls(column, cells, width, width if column.least is None else min(width, column.least))

    def cell(self, row: int) -> Text:
        """The title (row 0) or a cell, in exactly ``width`` columns."""
        shown = self.cells[row].copy()
        if self.column.middle and row > 0 and shown.cell_len > self.width > HEAD:
            shown = shown[:HEAD].append("…").append_text(shown[len(shown) - (self.width - HEAD - 1) :])
        shown.truncate(self.width, overflow="ellipsis")
        shown.align("right" if self.column.right else "left", self.width)
        return shown


def _total(widths: Iterable[int], gap: int) -> int:
    sizes = list(widths)
    return sum(sizes) + gap * (len(sizes) - 1)
