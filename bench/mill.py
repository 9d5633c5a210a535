"""Promptmill's engine alone, in memory: prepared lines in, tokens out."""

from __future__ import annotations

import time

from bench.models import SHAPES, build
from bench.task import Measured, Task
from bench.work import CONCURRENCY, Row, make_work
from jobs.params import Sampling
from worker.engine.engine import Engine
from worker.engine.lm import measure
from worker.engine.sequence import PreparedLine

__all__ = ["greedy", "own"]

WARM_TOKENS = 4


def greedy(task: Task) -> list[Measured]:
    """All rows greedy."""
    return [_measured("promptmill_greedy", task, sampled=False)]


def own(task: Task) -> list[Measured]:
    """Every row with its own parameters, none of whose values was seen before."""
    return [_measured("promptmill_own", task, sampled=True)]


def _measured(name: str, task: Task, *, sampled: bool) -> Measured:
    model, tokenizer = build(task.model)
    engine = Engine(
        measure(task.model, model, tokenizer, SHAPES[task.model].config), decode_concurrency=CONCURRENCY
    )  # fmt: skip
    _run(engine, make_work(CONCURRENCY, task.vocab, -1 - task.seed), WARM_TOKENS, sampled=sampled)
    return _run(engine, task.rows, task.new_tokens, sampled=sampled, name=name)


def _run(engine: Engine, rows: list[Row], new_tokens: int, *, sampled: bool, name: str = "") -> Measured:
    stats = engine.stats
    repeated = stats.repeated_rows
    lines = [_line(number, row, new_tokens, sampled) for number, row in enumerate(rows)]
    tokens = waiting_rows = waiting_steps = 0
    began = time.perf_counter()
    for line in lines:
        engine.add(line)
    while engine.has_work:
        waiting, decoded, steps = engine.pending > 0, stats.decode_rows, stats.decode_steps
        for finished in engine.step():
            if finished.error is not None:
                raise RuntimeError(f"line {finished.key} failed: {finished.error}")
            tokens += sum(len(sequence.tokens) for sequence in finished.sequences)
        if waiting:
            waiting_rows += stats.decode_rows - decoded
            waiting_steps += stats.decode_steps - steps
    seconds = time.perf_counter() - began
    if tokens != len(rows) * new_tokens:
        raise RuntimeError(f"{tokens} tokens instead of {len(rows) * new_tokens}: the sides did not do the same work")
    occupancy = waiting_rows / (waiting_steps * CONCURRENCY) if len(rows) > CONCURRENCY else None
    extra = {"repeated_rows": stats.repeated_rows - repeated}
    return Measured(name, tokens, seconds, len(rows), occupancy, extra)


def _line(number: int, row: Row, new_tokens: int, sampled: bool) -> PreparedLine:
    fields = row.fields if sampled else {}
    sampling = Sampling(max_tokens=new_tokens, ignore_eos=True, seed=row.seed, **fields)
    return PreparedLine(number, row.prompt, sampling, frozenset())
