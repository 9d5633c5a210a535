"""Durations as people write them."""

from __future__ import annotations

import re

from jobs.errors import RefusedError

__all__ = ["parse_duration"]

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)")


def parse_duration(text: str) -> float:
    """Seconds of ``90``, ``90s``, ``1.5h``, ``14d`` or ``1h30m``.

    Raises:
        RefusedError: it is not a duration.
    """
    compact = text.strip().lower()
    parts = _PART.findall(compact)
    if not parts or "".join(number + unit for number, unit in parts) != compact:
        raise RefusedError(f"'{text:.40}' is not a duration; write 90s, 15m, 2h, 14d or 1h30m")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)
