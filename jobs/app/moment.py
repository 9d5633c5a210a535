"""Moments as people write them."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, tzinfo

from jobs.errors import RefusedError

__all__ = ["parse_moment"]

_TIME = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2}))?")


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
