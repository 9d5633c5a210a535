"""Promptmill's engine alone, in memory: prepared lines in, tokens out."""

from __future__ import annotations

import hashlib
import random
import time
from dataclasses import replace
from typing import Any

from bench.models import FIRST_TOKEN, SHAPES, build
from bench.task import Measured, Task
from bench.work import CONCURRENCY, Row, make_work
from jobs.params import Sampling
from worker.engine.engine import Engine
from worker.engine.loading.mlx_models import measure
from worker.engine.sequence import PreparedLine

WARM_TOKENS = 4
SHARED_TOKENS = 1000


def greedy(task: Task) -> list[Measured]:
    """All rows greedy."""
    return [_measured("promptmill_greedy", task, sampled=False, compile=True)]


def own(task: Task) -> list[Measured]:
    """Every row with its own parameters, none of whose values was seen before. Sampling is compiled, as on a GPU."""
    return [_measured("promptmill_own", task, sampled=True, compile=True)]


def alone(task: Task) -> list[Measured]:
    """The same with the engine as a worker on this machine makes it."""
    return [_measured("promptmill_own", task, sampled=True, compile=None)]


def prefixes_off(task: Task) -> list[Measured]:
    """Greedy rows that begin with the same 1000 tokens, each computed in full."""
    return [_prefixed("prefixes_off", task, 0)]


def prefixes_on(task: Task) -> list[Measured]:
    """The same rows, what they share computed once."""
    return [_prefixed("prefixes_on", task, None)]


def _measured(name: str, task: Task, *, sampled: bool, compile: bool | None) -> Measured:
    engine = engine_of(task, compile=compile)
    _run(engine, make_work(CONCURRENCY, task.vocab, -1 - task.seed), WARM_TOKENS, sampled=sampled)
    return _run(engine, task.rows, task.new_tokens, sampled=sampled, name=name)


def _prefixed(name: str, task: Task, memory: int | None) -> Measured:
    """``extra`` has the share of prompt tokens that were cached, and a digest of all that was generated."""
    draw = random.Random(f"shared/{task.seed}")
    shared = tuple(draw.randrange(FIRST_TOKEN, task.vocab) for _ in range(SHARED_TOKENS))
    rows = [replace(row, prompt=(*shared, *row.prompt)) for row in task.rows]
    engine = engine_of(task, compile=None, prefix_memory=memory)
    _run(engine, make_work(CONCURRENCY, task.vocab, -1 - task.seed), WARM_TOKENS, sampled=False)
    prompts, cached = engine.stats.prompt_tokens, engine.stats.cached_tokens
    measured = _run(engine, rows, task.new_tokens, sampled=False, name=name)
    share = (engine.stats.cached_tokens - cached) / (engine.stats.prompt_tokens - prompts)
    return replace(measured, extra={**measured.extra, "cached": share})


def engine_of(task: Task, **options: Any) -> Engine:
    """An engine with the task's model."""
    model, tokenizer = build(task.model)
    loaded = measure(task.model, model, tokenizer, SHAPES[task.model].config)
    return Engine(loaded, decode_concurrency=CONCURRENCY, **options)


def _run(engine: Engine, rows: list[Row], new_tokens: int, *, sampled: bool, name: str = "") -> Measured:
    stats = engine.stats
    repeated = stats.repeated_rows
    lines = [line_of(number, row, new_tokens, sampled) for number, row in enumerate(rows)]
    tokens = waiting_rows = waiting_steps = 0
    texts: dict[Any, list[int]] = {}
    began = time.perf_counter()
    for line in lines:
        engine.add(line)
    while engine.has_work:
        waiting, decoded, steps = engine.pending > 0, stats.decode_rows, stats.decode_steps
        for finished in engine.step():
            if finished.error is not None:
                raise RuntimeError(f"line {finished.key} failed: {finished.error}")
            texts[finished.key] = finished.sequences[0].tokens
            tokens += len(finished.sequences[0].tokens)
        if waiting:
            waiting_rows += stats.decode_rows - decoded
            waiting_steps += stats.decode_steps - steps
    seconds = time.perf_counter() - began
    if tokens != len(rows) * new_tokens:
        raise RuntimeError(f"{tokens} tokens instead of {len(rows) * new_tokens}: the sides did not do the same work")
    occupancy = waiting_rows / (waiting_steps * CONCURRENCY) if len(rows) > CONCURRENCY else None
    digest = hashlib.sha256(repr(sorted(texts.items())).encode()).hexdigest()[:16]
    extra = {"repeated_rows": stats.repeated_rows - repeated, "digest": digest}
    return Measured(name, tokens, seconds, len(rows), occupancy, extra)


def line_of(number: int, row: Row, new_tokens: int, sampled: bool) -> PreparedLine:
    """A row of the work as the engine takes it."""
    fields = row.fields if sampled else {}
    sampling = Sampling(max_tokens=new_tokens, ignore_eos=True, seed=row.seed, **fields)
    return PreparedLine(number, row.prompt, sampling, frozenset())
