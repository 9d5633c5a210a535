"""One side of the benchmark of tables, run in a process of its own.

    python -m bench.data.sides SIDE < TASK

reads a task as JSON and prints what was measured, as one line of JSON.
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

from bench.data.work import DEFAULTS, TEMPLATE, DataTask
from bench.sides import measured_by, print_measured
from bench.task import Measured
from jobs.redis.connect import connect
from jobs.store.store import Store

SIDES = ("submit", "parquet", "csv", "flat")


def run_side(side: str, task: DataTask) -> Measured:
    """Run a side in a process of its own.

    Raises:
        RuntimeError: with the end of what the process said.
    """
    (measured,) = measured_by("bench.data.sides", side, given=task.to_json())
    return measured


def submitted(task: DataTask) -> list[Measured]:
    """The rows of a table through a template of three columns. ``extra`` has the batch's id, ``peak_bytes``, and
    ``cpu_s``, the process's own time, imports and all threads included."""
    from submit.data.open import open_input
    from submit.data.order import TableOrder
    from submit.upload.submitter import Order, submit

    store = Store(connect(task.url))
    begun = time.perf_counter()
    with open_input(task.path, TableOrder(template=TEMPLATE)) as lines:
        done = submit(store, lines, Order(DEFAULTS))
    seconds = time.perf_counter() - begun
    return [_measured("submit", done.total, seconds, {"batch_id": done.batch_id})]


def parquet(task: DataTask) -> list[Measured]:
    return _written("parquet", task)


def csv(task: DataTask) -> list[Measured]:
    return _written("csv", task)


def flat(task: DataTask) -> list[Measured]:
    return _written("flat", task)


def _written(fmt: str, task: DataTask) -> list[Measured]:
    """The results of a batch as a table, in the order of its rows."""
    from submit.results.destination import Destination
    from submit.results.follow import write_results

    out = Path(task.path)
    store = Store(connect(task.url))
    begun = time.perf_counter()
    _, tally = write_results(store, task.batch_id, Destination(out, fmt=fmt))
    seconds = time.perf_counter() - begun
    return [_measured(fmt, tally.lines, seconds, {"file_bytes": out.stat().st_size})]


def _measured(side: str, rows: int, seconds: float, extra: dict[str, str | int]) -> Measured:
    return Measured(side, rows, seconds, rows, extra={**extra, "peak_bytes": _peak(), "cpu_s": time.process_time()})


def _peak() -> int:
    """Most bytes that this process had in memory. On Linux ``getrusage`` counts those of the process that began it."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    name = sys.argv[1]
    print_measured(
        ("bench.data.sides", "submitted" if name == "submit" else name), DataTask.from_json(sys.stdin.read())
    )
