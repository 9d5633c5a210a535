"""Numbers, durations and names as people read them in a terminal."""

from __future__ import annotations


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
    """A rate: ``0``, ``0.25``, ``7.5``, ``1,234``; ``-`` when unknown."""
    if not per_second:
        return "-" if per_second is None else "0"
    if per_second >= 100:
        return f"{per_second:,.0f}"
    return f"{per_second:.1f}" if per_second >= 1 else f"{per_second:.2f}"


def printable(text: str) -> str:
    """``text`` with a question mark for each character that could steer a terminal."""
    return text if text.isprintable() else "".join(letter if letter.isprintable() else "?" for letter in text)


def cells(text: str) -> int:
    """How many columns of a terminal ``text`` takes: wide characters two, combining ones none."""
    from rich.cells import cell_len

    return cell_len(text)


def clip(text: str, width: int) -> str:
    """``text`` in at most ``width`` columns; control characters, which could steer the terminal, become ``?``."""
    from rich.cells import set_cell_size

    shown = printable(text)
    if cells(shown) <= width:
        return shown
    return f"{set_cell_size(shown, width - 1).rstrip()}…" if width > 0 else ""


def short_name(model: str) -> str:
    """A model without the folders or the organisation before its name; an adapter's is kept behind a plus."""
    parts = (part.rstrip("/").rpartition("/")[2] or part for part in model.split("+"))
    return "+".join(parts)
