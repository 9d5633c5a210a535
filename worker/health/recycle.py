"""Starting a worker afresh in place: same process id, interpreter, flags and environment, and all memory given back.

No supervisor is needed, and none notices: the process never ends. A SIGTERM on the way is not lost: the worker holds it
back once it has decided, no other thread ever takes one, and the new program ends with status 0 when it listens.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from typing import Any, NoReturn

log = logging.getLogger("promptmill.worker")

RECYCLE = -1
"""What a worker returns, in place of an exit status, that has closed everything and wants to start afresh."""
HELD_BACK = frozenset({signal.SIGTERM})


def listen() -> None:
    """First act of a worker's process: from now until it serves, and after, SIGTERM is a clean end."""
    signal.signal(signal.SIGTERM, _end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_BACK)


def start_afresh() -> int:
    """Replace this program by itself; returns, with an exit status, only where the interpreter cannot be started."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
    sys.stderr.flush()
    try:
        # Files and connections of this program are closed on the way, as Python opens none to be inherited.
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    except OSError as error:
        log.error("cannot start %s afresh: %s", sys.executable, error, extra={"action": "recycle_failed"})
        return 1


def _end(_number: int, _frame: Any) -> NoReturn:
    raise SystemExit(0)
