"""Numbers, durations and tables as people read them in a terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

__all__ = ["cells", "clip", "count", "duration", "memory_size", "plural", "rate", "size", "table"]


def duration(seconds: float | None) -> str:
    """Seconds in two units at most: ``8s``, ``4m10s``, ``2h05m``, ``3d04h``; ``-`` when unknown."""
    if seconds is None:
        return "-"
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"


def count(number: int) -> str:
    """A count in at most five characters or so: ``950``, ``9,500``, ``95.0k``, ``1.2M``."""
    if number < 10_000:
        return f"{number:,}"
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return str(number)


def size(number: int) -> str:
    """Bytes as ``3.0 GiB`` or ``12 MiB``."""
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"


def memory_size(number: int) -> str:
    """Bytes that may be few: ``950 B``, ``12 KiB``, ``3.4 MiB``."""
    for unit, least in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if number >= least:
            return f"{number / least:.1f} {unit}"
    return f"{number} B"


def plural(number: int, noun: str) -> str:
    """``1 line``, ``2 lines``, ``12,345 lines``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def rate(per_second: float | None) -> str:
    """A rate: ``0.25``, ``7.5``, ``1,234``; ``-`` when unknown."""
    if per_second is None:
        return "-"
    if per_second >= 100:
        return f"{per_second:,.0f}"
    return f"{per_second:.1f}" if per_second >= 1 else f"{per_second:.2f}"


def cells(text: str) -> int:
    """How many columns of a terminal ``text`` takes: wide characters two, combining ones none."""
    return sum(_cells(character) for character in text)


def _cells(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def clip(text: str, width: int) -> str:
    """``text`` in at most ``width`` columns; control characters, which could steer the terminal, become ``?``."""
    shown = "".join(character if character.isprintable() else "?" for character in text)
    if cells(shown) <= width:
        return shown
    taken, used = [], 0
    for character in shown:
        used += _cells(character)
        if used > width - 1:
            break
        taken.append(character)
    return "".join(taken) + ("…" if width > 0 else "")


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: frozenset[int] = frozenset()) -> list[str]:
    """Lines of a table whose columns are as wide as they need; columns in ``right`` end flush."""
    widths = [max(cells(row[column]) for row in (header, *rows)) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        shown = []
        for column, (text, width) in enumerate(zip(row, widths, strict=True)):
            space = " " * (width - cells(text))
            shown.append(space + text if column in right else text + space)
        return "  ".join(shown).rstrip()

    return [line(header), *(line(row) for row in rows)]
