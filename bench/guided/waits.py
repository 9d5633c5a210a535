"""How long the first token of a line waits for a schema that was never seen, and what other rows notice of it.

A batch of free rows decodes. Beside it, on a thread as the worker's preparer, lines are checked and prepared in turns,
one without and one with a new schema, and join the batch. Schemas are those of MaskBench that the check takes.
"""

from __future__ import annotations

import queue
import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from bench.guided.task import GuidedTask, rows_of
from bench.guided.texts import job_of
from bench.task import Measured
from jobs.errors import LineError
from jobs.guided.check import Checker
from worker.engine.engine import Engine
from worker.engine.loading.mlx_models import load_model
from worker.engine.prompts.prepare import Preparer
from worker.engine.sequence import PreparedLine

BUSY_ROWS = 16
"""Rows that decode all the time."""
FIRST_TOKENS = 2
"""Tokens of the lines whose first is waited for."""
WARM_PAIRS = 2
MOST_S = 120.0
"""After that no more lines are begun."""
DEADLINE_S = 180.0


@dataclass(frozen=True, slots=True)
class Wait:
    """A line's times: its preparation ``began`` and was ``done``, and its ``first`` token came."""

    guided: bool
    began: float
    done: float
    first: float


@dataclass(slots=True)
class Bench:
    """What the two threads share."""

    ready: queue.SimpleQueue[PreparedLine | None] = field(default_factory=queue.SimpleQueue)
    ended: queue.SimpleQueue[float] = field(default_factory=queue.SimpleQueue)
    waits: list[Wait] = field(default_factory=list)
    refused: int = 0
    error: BaseException | None = None


def side(task: GuidedTask) -> list[Measured]:
    """``extra`` has milliseconds: ``prepare_`` and ``first_`` are the medians of lines without and with a schema,
    ``added_prepare`` what a schema adds to the preparation (the median of the pairs, with ``added_p90`` and
    ``added_most``), ``added_first`` what it adds to the wait for the first token; ``step_`` the median and
    ``longest_`` the longest of steps during the preparation of lines without and with one."""
    model = load_model(task.folder)
    preparer, engine = Preparer(model), Engine(model)
    shared = Bench()
    for number in range(BUSY_ROWS):
        engine.add(preparer.prepare(_busy(number)))
    thread = threading.Thread(target=_prepare, args=(task, preparer, shared), name="preparer", daemon=True)
    thread.start()
    steps = _run(engine, shared)
    thread.join()
    if shared.error is not None:
        raise shared.error
    waits = shared.waits[2 * WARM_PAIRS :]
    seconds = sum(end - began for began, end in steps)
    tokens = BUSY_ROWS * len(steps)
    extra = {"pairs": len(waits) // 2, "refused": shared.refused, "rows": BUSY_ROWS, **_summed(waits, steps)}
    return [Measured("waits", tokens, seconds, len(waits), extra=extra)]


def _busy(number: int) -> Any:
    row = {"name": f"story {number}", "schema": {}}
    return job_of(row, f"busy-{number}", schema=None, seed=number, max_tokens=8000, ignore_eos=True)


def _run(engine: Engine, shared: Bench) -> list[tuple[float, float]]:
    """Steps until no more lines come: their times."""
    steps: list[tuple[float, float]] = []
    give_up = time.perf_counter() + DEADLINE_S
    while time.perf_counter() < give_up:
        try:
            while True:
                line = shared.ready.get_nowait()
                if line is None:
                    return steps
                engine.add(line)
        except queue.Empty:
            pass
        began = time.perf_counter()
        finished = engine.step()
        steps.append((began, time.perf_counter()))
        for one in finished:
            if one.error is not None:
                raise RuntimeError(f"line {one.key} failed: {one.error}")
            first = one.sequences[0].first_token_at
            if not str(one.key).startswith("busy") and first is not None:
                shared.ended.put(first)
    raise RuntimeError(f"not done after {DEADLINE_S:.0f} s")


def _prepare(task: GuidedTask, preparer: Preparer, shared: Bench) -> None:
    try:
        shared.waits += _waits(task, preparer, shared)
    except BaseException as error:
        shared.error = error
    finally:
        shared.ready.put(None)


def _waits(task: GuidedTask, preparer: Preparer, shared: Bench) -> Iterator[Wait]:
    checker = Checker()
    rows = islice(rows_of(Path(task.schemas)), task.skip, None)
    pairs, enough = 0, time.perf_counter() + MOST_S
    while pairs < task.lines + WARM_PAIRS and time.perf_counter() < enough and (row := next(rows, None)) is not None:
        try:
            guided = _wait(row, checker, preparer, shared, guided=True)
        except LineError:
            shared.refused += 1
            continue
        yield guided
        yield _wait(row, checker, preparer, shared, guided=False)
        pairs += 1


def _wait(row: dict[str, Any], checker: Checker, preparer: Preparer, shared: Bench, *, guided: bool) -> Wait:
    schema = row["schema"] if guided else None
    job = job_of(row, f"{row['name']}/{guided}", schema=schema, seed=0, max_tokens=FIRST_TOKENS, ignore_eos=True)
    began = time.perf_counter()
    if job.constraint is not None:
        checker.check(job.constraint)
    line = preparer.prepare(job)
    done = time.perf_counter()
    shared.ready.put(line)
    return Wait(guided, began, done, shared.ended.get(timeout=DEADLINE_S))


def _summed(waits: list[Wait], steps: list[tuple[float, float]]) -> dict[str, float]:
    pairs = list(zip(waits[::2], waits[1::2], strict=True))
    added = sorted(1000 * ((one.done - one.began) - (free.done - free.began)) for one, free in pairs)
    found = {
        "added_prepare": statistics.median(added),
        "added_p90": added[int(0.9 * (len(added) - 1))],
        "added_most": added[-1],
    }
    for name, guided in (("free", False), ("guided", True)):
        chosen = [wait for wait in waits if wait.guided is guided]
        found[f"prepare_{name}"] = statistics.median(1000 * (wait.done - wait.began) for wait in chosen)
        found[f"first_{name}"] = statistics.median(1000 * (wait.first - wait.began) for wait in chosen)
        during = [
            1000 * (end - began)
            for began, end in steps
            if any(wait.began < end and began < wait.done for wait in chosen)
        ]
        found[f"step_{name}"] = statistics.median(during)
        found[f"longest_{name}"] = max(during)
    return found | {"added_first": found["first_guided"] - found["first_free"]}
