"""Stop signals: what a handler may safely do, and a wait that a signal interrupts.

A handler runs in the main thread between any two steps of it, so it must take no lock: the step it came into may hold
that very lock, as those of ``threading.Event`` do. It counts, and writes to a pipe.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Iterator
from typing import Any


class Wakeup:
    """Lets one thread wait until any other, or a signal handler, has something for it."""

    def __init__(self) -> None:
        self._heard, self._rung = os.pipe()
        for end in (self._heard, self._rung):
            os.set_blocking(end, False)
        self._poll = select.poll()
        self._poll.register(self._heard, select.POLLIN)

    def __del__(self) -> None:
        os.close(self._heard)
        os.close(self._rung)

    def ring(self) -> None:
        """Wake the thread that waits, or keep it from waiting the next time."""
        with contextlib.suppress(BlockingIOError):  # full of rings that nobody has heard yet
            os.write(self._rung, b"!")

    def wait(self, seconds: float) -> None:
        """Wait for a ring, for so long at the most."""
        if self._poll.poll(seconds * 1000):
            os.read(self._heard, 1 << 16)


class StopSignals:
    """Counts how often a process was asked to stop: by SIGTERM and SIGINT while they are :meth:`heard`, or by
    :meth:`ask`. ``wakeup`` rings at each."""

    def __init__(self) -> None:
        self.count = 0
        self.wakeup = Wakeup()

    def ask(self) -> None:
        """Ask to stop, from any thread."""
        self.count += 1
        self.wakeup.ring()

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Have them counted as long as the block runs. Main thread only."""
        before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, _number: int, _frame: Any) -> None:
        self.ask()
