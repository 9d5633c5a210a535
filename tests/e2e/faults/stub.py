"""A real worker process whose engine alone is a stub: ``python -m tests.e2e.faults.stub FLAGS WORKER-FLAGS``.

It can do itself harm at a named phase of a shard's way (``--fault PHASE=ACTION``), once.
"""

from __future__ import annotations

import argparse
import os
import resource
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.e2e.faults.engine import Log, install

PHASES = ("dequeued", "claimed", "begun", "mid_shard", "written", "compacting", "compacted")
"""After the shard's job was taken; after its claim; after lines began, before the first token; after some lines of it
ended; after a record was stored; before and after the shard is compacted, and not yet acknowledged."""
ACTIONS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "stop": signal.SIGSTOP}


class Faults:
    """The harm that this process will do to itself: at each phase at most once."""

    def __init__(self, log: Log, wanted: list[str], mid_shard: int) -> None:
        self._log = log
        self._wanted = dict(fault.split("=") for fault in wanted)
        self._visits_left = {"mid_shard": mid_shard - 1}
        self._lock = threading.Lock()
        if unknown := self._wanted.keys() - set(PHASES):
            raise SystemExit(f"no such phase: {', '.join(unknown)}")

    def reached(self, phase: str) -> None:
        with self._lock:
            if self._visits_left.get(phase, 0) > 0:
                self._visits_left[phase] -= 1
                return
            action = self._wanted.pop(phase, None)
        if action is not None:
            self._log.event("fault", phase=phase, action=action)
            os.kill(os.getpid(), ACTIONS[action])


def nothing(*_: Any) -> None:
    """What most phases do."""


def wrap(
    owner: type, name: str, *, before: Callable[[], None] = nothing, after: Callable[[Any], None] = nothing
) -> None:
    """Call ``before`` and ``after(result)`` around a method."""
    method = getattr(owner, name)

    def wrapped(self: Any, *arguments: Any, **named: Any) -> Any:
        before()
        result = method(self, *arguments, **named)
        after(result)
        return result

    setattr(owner, name, wrapped)


def set_everywhere(package: str, values: dict[str, Any]) -> None:
    """Give module-level names of a package other values, wherever they were imported to."""
    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] == package:
            for name, value in values.items():
                if hasattr(module, name):
                    setattr(module, name, value)


def inject(faults: Faults, log: Log) -> None:
    """Put the phases where they belong."""
    from jobs.store.store import Store
    from worker.rq.worker import ShardWorker

    def taken(shard: Any) -> None:
        if shard is not None:
            log.event("take", batch=shard.batch_id, shard=shard.number)
            faults.reached("dequeued")

    wrap(ShardWorker, "take", after=taken)
    wrap(Store, "claim", after=lambda attempt: faults.reached("claimed") if attempt is not None else None)
    wrap(Store, "write", after=lambda _: faults.reached("written"))
    wrap(
        Store,
        "finish",
        before=lambda: faults.reached("compacting"),
        after=lambda done: faults.reached("compacted") if done else None,
    )


def hurry(lease: int) -> None:
    """Shorten what recovery waits for, in the proportions of the real numbers."""
    values = {
        "LEASE_S": lease,
        "RENEW_S": lease / 3,
        "MAINTENANCE_S": lease / 6,
        "UNBEGUN_S": lease / 2,
        "UNWATCHED_S": lease / 2,
    }
    set_everywhere("worker", {**values, "RECOVERY_LOCK_MS": lease * 333})


def skew(seconds: float) -> None:
    """Let this process's clock be wrong by so much, for RQ as well."""
    import datetime

    import rq.utils

    real, real_now, real_stamp = time.time, rq.utils.now, rq.utils.current_timestamp
    time.time = lambda: real() + seconds
    off = datetime.timedelta(seconds=seconds)
    names = {"now": lambda: real_now() + off, "current_timestamp": lambda: real_stamp() + int(seconds)}
    set_everywhere("rq", names)


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--log", type=Path, required=True, help="generation log")
    parser.add_argument("--fault", action="append", default=[], metavar="PHASE=ACTION")
    parser.add_argument("--mid-shard", type=int, default=5, metavar="LINES", help="lines that end before mid_shard")
    parser.add_argument("--step-ms", type=float, default=2.0)
    parser.add_argument("--lease", type=int, metavar="SECONDS", help="instead of the real 30")
    parser.add_argument("--foreign", action="store_true", help="look like a worker of another host")
    parser.add_argument("--skew", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--file-limit", type=int, metavar="BYTES", help="no file may grow larger, as on a full disk")
    flags, rest = parser.parse_known_args()
    if flags.file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (flags.file_limit, flags.file_limit))
    log = Log(flags.log)
    faults = Faults(log, flags.fault, flags.mid_shard)
    install(sys.modules, log, faults.reached, flags.step_ms / 1000)
    if flags.skew:
        skew(flags.skew)
    import worker.rq.worker
    import worker.service

    inject(faults, log)
    if flags.lease is not None:
        hurry(flags.lease)
    if flags.foreign:
        worker.rq.worker.machine = lambda: f"another host {os.getpid()}"
    sys.argv = ["worker", *rest]
    runpy.run_module("worker", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
