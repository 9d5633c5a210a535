"""The sleep assertion: a Mac does not fall asleep by itself while lines are under way, as under ``caffeinate -i``.

It prevents idle sleep alone: a closed lid and the menu's Sleep still put a Mac to sleep.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable

log = logging.getLogger("promptmill.worker")

Release = Callable[[], object]
Take = Callable[[], Release]
"""Keeps the machine awake until what it returns is called; raises OSError where that cannot be."""

CAFFEINATE = "/usr/bin/caffeinate"


class SleepAssertion:
    """Taken while there is something to do; with ``take`` None never. Thread: heartbeat."""

    def __init__(self, take: Take | None) -> None:
        self._take = take
        self._release: Release | None = None

    def keep(self, busy: bool) -> None:
        """Take the assertion when lines are under way, release it when none is."""
        if busy and self._release is None and self._take is not None:
            try:
                self._release = self._take()
            except OSError as error:
                self._take = None
                message = "the machine cannot be kept awake (%s): see that it does not sleep by itself"
                log.warning(message, error, extra={"action": "no_sleep_assertion"})
        elif not busy and self._release is not None:
            release, self._release = self._release, None
            release()


def way_to_stay_awake() -> Take | None:
    """How this machine is kept awake; None where that is not ours to do: only Macs sleep when nobody uses them."""
    return caffeinate if sys.platform == "darwin" else None


def caffeinate(program: str = CAFFEINATE) -> Release:
    """Have macOS' own program hold the assertion; it ends with this process, however that ends."""
    # An absolute path and close_fds=False: Python spawns it then, and a process that uses Metal must not be forked.
    held = subprocess.Popen([program, "-i", "-w", str(os.getpid())], stdin=subprocess.DEVNULL, close_fds=False)

    def release() -> None:
        held.kill()  # SIGTERM is held back in the heartbeat's thread, and so in what it starts
        held.wait()

    return release
