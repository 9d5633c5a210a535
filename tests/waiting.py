"""Waiting in tests: polling with a deadline, never a sleep and a hope."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

POLL_S = 0.02


def until(condition: Callable[[], T], what: str = "it was so", *, seconds: float = 60.0) -> T:
    """Poll ``condition`` until it holds; its value. Fails when it does not within ``seconds``."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited too long until {what}"
        time.sleep(POLL_S)
    return found
