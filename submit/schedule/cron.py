"""When a schedule runs: a cron expression in a time zone.

The expression is of times on the wall. Where clocks are put forward or back, each of the times of day that it names
comes once a day: one that is skipped comes at the first moment after the gap, one that comes twice the first time.
An expression for all hours (``*`` in the second field) goes by the time that passes: it comes in both of two equal
hours, and nothing is made up for one that there was not.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from jobs.errors import RefusedError

MAX_LENGTH = 256
MOST_COUNTED = 1000
"""So many missed runs or more are the same to whoever reads of them; each costs most of a millisecond."""
NAMED = ("@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly")
MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
DAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
FIELDS: tuple[tuple[str, int, int, tuple[str, ...]], ...] = (
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of month", 1, 31, ("l",)),
    ("month", 1, 12, tuple(MONTHS)),
    ("day of week", 0, 7, ("l", *DAYS)),
)
"""Of each field its name, its least and greatest number, and the words that may stand for one."""
_PART = re.compile(r"[\w*?#-]+(/\w+)?", re.ASCII)
_TOKEN = re.compile(r"([/#]?)(\d+|[a-z]+)")
_ZONE = re.compile(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*")
EXAMPLE = "write 'MINUTE HOUR DAY MONTH WEEKDAY', such as '0 2 * * *' for each night at two, or @daily"


@dataclass(frozen=True)
class Cron:
    """A cron expression and the IANA name of a time zone, both checked when it is made.

    Raises:
        RefusedError: one of them is none; the message names the field.
    """

    expression: str
    zone: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "expression", _checked(self.expression))
        time_zone(self.zone)

    def after(self, moment: float) -> int:
        """The first time after ``moment``, both in seconds since the epoch."""
        from croniter import croniter  # type: ignore[import-untyped]

        times = croniter(self.expression, datetime.fromtimestamp(moment, self._zone))
        while True:
            found: datetime = times.get_next(datetime)
            comes_again = found.fold == 1 and found.utcoffset() != found.replace(fold=0).utcoffset()
            if not (comes_again and self._names_hours):
                return int(found.timestamp())

    def latest(self, first: int, moment: float) -> tuple[int, int]:
        """The last time that is not after ``moment``, and how many there are from ``first``, which is one, to it; no
        more than MOST_COUNTED are counted."""
        last, count = first, 1
        while (following := self.after(last)) <= moment:
            last, count = following, count + 1
            if count == MOST_COUNTED:
                return self._last_before(moment), count
        return last, count

    def _last_before(self, moment: float) -> int:
        """The last time that is not after ``moment``, found by looking back further and further."""
        span = 60.0
        while (found := self.after(moment - span)) > moment:
            span *= 2
        while (following := self.after(found)) <= moment:
            found = following
        return found

    @cached_property
    def _zone(self) -> ZoneInfo:
        return time_zone(self.zone)

    @cached_property
    def _names_hours(self) -> bool:
        from croniter import croniter

        return bool(croniter.expand(self.expression)[0][1] != ["*"])


def time_zone(name: str) -> ZoneInfo:
    """The time zone of this IANA name.

    Raises:
        RefusedError: there is none, here.
    """
    # A name may come from Redis: it must not become a path out of the zones' folder.
    if len(name) <= 64 and _ZONE.fullmatch(name):
        try:
            return ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            pass
    raise RefusedError(f"{name!r:.70} is no time zone here: write one such as Europe/Berlin, America/New_York or UTC")


def local_zone(
    environ: Mapping[str, str] = os.environ, localtime: Path = Path("/etc/localtime"), *, offset: float | None = None
) -> str:
    """The IANA name of this machine's time zone; ``offset`` is that of its clock from UTC in seconds, if known.

    Raises:
        RefusedError: the machine does not say.
    """
    given = environ.get("TZ", "").removeprefix(":")
    linked = str(localtime.readlink()) if localtime.is_symlink() else ""
    for name in (given, "" if given else linked.rpartition("zoneinfo/")[2]):
        try:
            key = time_zone(name).key
            return "UTC" if key == "Etc/UTC" else key
        except RefusedError:
            continue
    if offset is None:
        offset = (datetime.now().astimezone().utcoffset() or timedelta(0)).total_seconds()
    if offset == 0:
        return "UTC"
    raise RefusedError("this machine does not say the name of its time zone: give one with --tz, such as Europe/Berlin")


def _checked(expression: str) -> str:
    """The expression with single spaces, in lower case.

    Raises:
        RefusedError: it is none, or never comes true.
    """
    from croniter import croniter
    from croniter.croniter import CroniterBadDateError, CroniterError  # type: ignore[import-untyped]

    if len(expression) > MAX_LENGTH:
        raise RefusedError(f"a cron expression has at most {MAX_LENGTH} characters")
    text = " ".join(expression.lower().split())
    if text.startswith("@"):
        if text not in NAMED:
            raise RefusedError(f"'{text:.40}' is no time that cron knows; there are {', '.join(NAMED)}")
        return text
    fields = text.split()
    if len(fields) != len(FIELDS):
        raise RefusedError(f"a cron expression has 5 fields, not {len(fields)}: {EXAMPLE}")
    for place, field in enumerate(fields):
        _check_field(field, place)
    try:
        croniter(text, datetime(2000, 1, 1)).get_next(datetime)
    except CroniterBadDateError:
        raise RefusedError(f"'{text}' never comes: no month has such a day") from None
    except (CroniterError, ValueError) as error:
        raise RefusedError(f"'{text}' is no cron expression: {error}; {EXAMPLE}") from None
    return text


def _check_field(field: str, place: int) -> None:
    from croniter import croniter
    from croniter.croniter import CroniterError

    name, least, most, words = FIELDS[place]
    where = f"field '{name}': "
    for part in field.split(","):
        if not _PART.fullmatch(part):
            raise RefusedError(f"{where}'{part:.40}' is not understood; {EXAMPLE}")
        for mark, token in _TOKEN.findall(part):
            if not token.isdecimal():
                if token not in words and not re.fullmatch(r"l\d?", token):
                    known = f"; it may be {', '.join(words)}" if len(words) > 1 else ""
                    raise RefusedError(f"{where}'{token:.40}' is not understood{known}")
            elif mark == "/" and not 1 <= int(token[:9]) <= most:
                raise RefusedError(f"{where}a step of {token:.20} is out of range 1-{most}")
            elif mark == "#" and not 1 <= int(token[:9]) <= 5:
                raise RefusedError(f"{where}#{token:.20} is out of range 1-5")
            elif not mark and not least <= int(token[:9]) <= most:
                raise RefusedError(f"{where}{token:.20} is out of range {least}-{most}")
    alone = " ".join(field if number == place else "*" for number in range(len(FIELDS)))
    try:
        croniter.expand(alone)
    except (CroniterError, ValueError):
        raise RefusedError(f"{where}'{field:.40}' is not understood; {EXAMPLE}") from None
