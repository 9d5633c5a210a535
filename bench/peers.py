"""The peers in memory: the bare loop that nothing can beat, and mlx-lm's own ways to do the work."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import mlx.core as mx
from mlx_lm import stream_generate
from mlx_lm.generate import BatchGenerator
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.sample_utils import make_logits_processors, make_sampler

from bench.models import SHAPES, build
from bench.task import Measured, Task
from bench.work import CONCURRENCY, PENALTY_CONTEXT, PROMPT_TOKENS, Row, make_work

WARM_TOKENS = 4
WARM_LINES = 2
"""For sides that compile values: enough for the code and the model's kernels, and little to wait for."""
PREFILL_ROWS = 8


def limit(task: Task) -> list[Measured]:
    """``argmax(model(y))`` on a full batch, no bookkeeping at all: as many tokens as the engines make.

    The time is that of the steps alone; ``prompt_s`` is what the prompts' forwards took besides, which the others'
    times contain.
    """
    model, _ = build(task.model)
    _bare(model, task.vocab, WARM_TOKENS)
    times = [_bare(model, task.vocab, task.new_tokens) for _ in range(task.waves)]
    tokens = task.waves * CONCURRENCY * task.new_tokens
    extra = {"prompt_s": sum(prompt for prompt, _ in times)}
    return [Measured("limit", tokens, sum(steps for _, steps in times), lines=task.waves * CONCURRENCY, extra=extra)]


def _bare(model: Any, vocab: int, new_tokens: int) -> tuple[float, float]:
    """Seconds of the prompts and of the steps of one full batch of prompts of mean length."""
    length = sum(PROMPT_TOKENS) // 2
    prompts = mx.random.randint(1, vocab, (CONCURRENCY, length))
    cache = make_prompt_cache(model)
    mx.eval(prompts)
    began = time.perf_counter()
    model(prompts[:, :-1], cache=cache)
    mx.eval([layer.state for layer in cache])
    prompted = time.perf_counter()
    tokens = prompts[:, -1]
    for _ in range(new_tokens):
        before, tokens = tokens, mx.argmax(model(tokens[:, None], cache=cache)[:, -1], axis=-1)
        mx.async_eval(tokens)  # type: ignore[no-untyped-call]
        mx.eval(before)
    mx.eval(tokens)
    return prompted - began, time.perf_counter() - prompted


def greedy(task: Task) -> list[Measured]:
    """mlx-lm's ``BatchGenerator``, all rows greedy."""
    model, _ = build(task.model)
    _batch(model, _other(task, CONCURRENCY), WARM_TOKENS, sampled=False)
    return [_batch(model, task.rows, task.new_tokens, sampled=False, name="mlx_lm_greedy")]


def own(task: Task) -> list[Measured]:
    """mlx-lm's ``BatchGenerator``, rows with their own samplers and processors: the same work twice.

    At first no row's values were seen before; the second time all are compiled.
    """
    model, _ = build(task.model)
    _batch(model, _other(task, WARM_LINES), WARM_TOKENS, sampled=True)
    return [
        _batch(model, task.rows, task.new_tokens, sampled=True, name=name) for name in ("mlx_lm_cold", "mlx_lm_warm")
    ]


def one_at_a_time(task: Task) -> list[Measured]:
    """``stream_generate`` line by line, rows' own parameters, compiled before: what a loop over a file does."""
    model, tokenizer = build(task.model)
    _one_by_one(model, tokenizer, _other(task, WARM_LINES), WARM_TOKENS)
    _one_by_one(model, tokenizer, task.rows, WARM_TOKENS)
    return [_one_by_one(model, tokenizer, task.rows, task.new_tokens)]


def _other(task: Task, lines: int) -> list[Row]:
    """Work that shares no values with the task's."""
    return make_work(lines, SHAPES[task.model].vocab, -1 - task.seed)


def _samplers(row: Row) -> tuple[Any, Any]:
    sampler = make_sampler(temp=row.temperature, top_p=row.top_p, top_k=row.top_k, min_p=row.min_p)
    processors = make_logits_processors(
        repetition_penalty=row.repetition_penalty,
        repetition_context_size=PENALTY_CONTEXT,
        presence_penalty=row.presence_penalty,
        presence_context_size=PENALTY_CONTEXT,
    )
    return sampler, processors


def _batch(model: Any, rows: Sequence[Row], new_tokens: int, *, sampled: bool, name: str = "") -> Measured:
    began = time.perf_counter()
    generator = BatchGenerator(
        model, max_tokens=new_tokens, completion_batch_size=CONCURRENCY, prefill_batch_size=PREFILL_ROWS
    )
    options: dict[str, Any] = {}
    if sampled:
        made = [_samplers(row) for row in rows]
        options = {"samplers": [one[0] for one in made], "logits_processors": [one[1] for one in made]}
    generator.insert([list(row.prompt) for row in rows], **options)
    tokens = steps = waiting_rows = waiting_steps = 0
    begun: set[int] = set()
    while responses := generator.next_generated():
        tokens += len(responses)
        steps += 1
        if len(begun) < len(rows):
            waiting_rows, waiting_steps = tokens, steps
            begun.update(response.uid for response in responses)
    seconds = time.perf_counter() - began
    generator.close()
    _check(tokens, len(rows) * new_tokens)
    occupancy = waiting_rows / (waiting_steps * CONCURRENCY) if len(rows) > CONCURRENCY else None
    return Measured(name, tokens, seconds, len(rows), occupancy)


def _one_by_one(model: Any, tokenizer: Any, rows: Iterable[Row], new_tokens: int) -> Measured:
    began = time.perf_counter()
    lines = tokens = 0
    for row in rows:
        sampler, processors = _samplers(row)
        answer = stream_generate(
            model, tokenizer, list(row.prompt), new_tokens, sampler=sampler, logits_processors=processors
        )
        *_, last = answer
        tokens += last.generation_tokens
        lines += 1
    seconds = time.perf_counter() - began
    _check(tokens, lines * new_tokens)
    return Measured("mlx_lm_one", tokens, seconds, lines)


def _check(tokens: int, wanted: int) -> None:
    if tokens != wanted:
        raise RuntimeError(f"{tokens} tokens instead of {wanted}: the sides did not do the same work")
