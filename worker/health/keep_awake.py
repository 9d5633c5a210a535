"""The sleep assertion: a Mac does not fall asleep by itself while lines are under way, as under ``caffeinate -i``.

It prevents idle sleep alone: a closed lid and the menu's Sleep still put a Mac to sleep. macOS drops the assertions of
a process that ended, however it did.
"""

from __future__ import annotations

import ctypes
import logging
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["SleepAssertion", "Take", "prevent_idle_sleep", "way_to_stay_awake"]

log = logging.getLogger("promptmill.worker")

Release = Callable[[], None]
Take = Callable[[], Release]
"""Keeps the machine awake until what it returns is called; raises OSError where that cannot be."""

REASON = "promptmill: lines are under way"
"""What ``pmset -g assertions`` shows."""
KIND = "PreventUserIdleSystemSleep"
_FRAMEWORK = "/System/Library/Frameworks/{0}.framework/{0}"
_UTF_8 = 0x08000100
_LEVEL_ON = 255


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
            except (OSError, AttributeError) as error:  # AttributeError: a system library without the function
                self._take = None
                message = "the machine cannot be kept awake (%s): see that it does not sleep by itself"
                log.warning(message, error, extra={"action": "no_sleep_assertion"})
        elif not busy and self._release is not None:
            release, self._release = self._release, None
            release()


def way_to_stay_awake() -> Take | None:
    """How this machine is kept awake; None where that is not ours to do: only Macs sleep when nobody uses them."""
    return prevent_idle_sleep if sys.platform == "darwin" else None


def prevent_idle_sleep(load: Callable[[str], Any] = ctypes.CDLL) -> Release:
    """Take an assertion of macOS' power management; see ``IOPMAssertionCreateWithName``."""
    power, core = (load(_FRAMEWORK.format(name)) for name in ("IOKit", "CoreFoundation"))
    core.CFStringCreateWithCString.restype = ctypes.c_void_p
    core.CFStringCreateWithCString.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint32)
    core.CFRelease.argtypes = (ctypes.c_void_p,)
    create, release = power.IOPMAssertionCreateWithName, power.IOPMAssertionRelease
    create.argtypes = (ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint32))
    release.argtypes = (ctypes.c_uint32,)
    kind, reason = (core.CFStringCreateWithCString(None, text.encode(), _UTF_8) for text in (KIND, REASON))
    number = ctypes.c_uint32()
    status = create(kind, _LEVEL_ON, reason, ctypes.byref(number))
    core.CFRelease(kind)
    core.CFRelease(reason)
    if status:
        raise OSError(f"macOS refuses a sleep assertion: status {status & 0xFFFFFFFF:#010x}")
    return lambda: release(number)
