"""Durations, moments and sizes of memory as people write them."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, tzinfo

from jobs.errors import RefusedError

_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)")
_TIME = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2}))?")
_BYTES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)I?B?")


def parse_duration(text: str) -> float:
    """Seconds of ``90``, ``90s``, ``1.5h``, ``14d`` or ``1h30m``.

    Raises:
        RefusedError: it is not a duration.
    """
    compact = text.strip().lower()
    parts = _PART.findall(compact)
    if not parts or "".join(number + unit for number, unit in parts) != compact:
        raise RefusedError(f"'{text:.40}' is not a duration; write 90s, 15m, 2h, 14d or 1h30m")
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def parse_moment(text: str, now: float, zone: tzinfo | None = None) -> float:
    """Seconds since the epoch of ``02:00`` (the next time it is that late), ``2026-11-22 02:00`` or
    ``2026-11-22T02:00+01:00``. What names no zone is in ``zone``, None for the local one.

    Raises:
        RefusedError: it is no moment, or has passed.
    """
    compact = text.strip()
    found = _TIME.fullmatch(compact)
    here = datetime.fromtimestamp(now, zone)
    try:
        if found is not None:
            hour, minute, second = (int(part or 0) for part in found.groups())
            moment = here.replace(hour=hour, minute=minute, second=second, microsecond=0)
            if moment.timestamp() <= now:
                moment += timedelta(days=1)
        else:
            moment = datetime.fromisoformat(compact)
            moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=zone)
        seconds = moment.timestamp()
    except (ValueError, OverflowError):
        raise RefusedError(
            f"'{text:.40}' is no moment; write 02:00, 2026-11-22 02:00 or 2026-11-22T02:00+01:00"
        ) from None
    if seconds <= now:
        raise RefusedError(f"'{text:.40}' has passed already")
    return seconds


def parse_size(text: str) -> int:
    """Bytes of ``48G``, ``512MB``, ``1.5 GiB``, or a plain number.

    Raises:
        RefusedError: it is not a size.
    """
    match = _SIZE.fullmatch(text.strip().upper())
    if match is None:
        raise RefusedError(f"'{text:.40}' is not a size: write 48G, 512M or a number of bytes")
    return int(float(match[1]) * _BYTES[match[2]])
