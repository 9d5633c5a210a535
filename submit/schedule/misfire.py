"""Since when a scheduler has looked at the schedules without a break, whether Redis answered or not."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["Attendance"]

BREAK_S = 60.0
"""A process that did not even try for so long slept, or its machine did."""


class Attendance:
    """What a process knows of the time behind it: a run that was due in it was not missed for want of a scheduler.

    One that stands by attends too: another was active then. ``clock`` is one that goes on while the machine sleeps.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._tried_at = float("-inf")
        self._since: float | None = None

    def trying(self) -> None:
        """The schedules are looked at now, or Redis is asked for them."""
        now = self._clock()
        if not 0 <= now - self._tried_at <= BREAK_S:
            self._since = None
        self._tried_at = now

    def reached(self, server_time: float) -> None:
        """Redis answered, at this time by its clock."""
        if self._since is None:
            self._since = server_time

    def covers(self, due: float) -> bool:
        """Whether the process was there at this time of the server's clock, and has been since."""
        return self._since is not None and self._since <= due
