"""The peers on real text: bare forwards of the same tokens, and mlx-lm's own ways to answer the questions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map
from mlx_lm import load, stream_generate
from mlx_lm.generate import BatchGenerator
from mlx_lm.models.cache import make_prompt_cache

from bench.peers import PREFILL_ROWS, samplers
from bench.realtext.task import TextTask
from bench.task import Measured
from bench.work import CONCURRENCY, Row

WARM_LINES = 2
WARM_TOKENS = 4


def limit(task: TextTask) -> list[Measured]:
    """Forwards of as many prompt and output tokens as the engine had, and nothing else.

    Prompts go by eights of similar length. Then all steps have a full batch, whose rows are all as wide as the
    engine's rows were on average: no step has an idle row, nor a column of padding.
    """
    model = _loaded(task)[0]
    outputs = [output for _, output in task.lengths]
    tokens = sum(outputs)
    steps = -(-tokens // CONCURRENCY)
    # The token k of an answer (from 1) is drawn from a forward with k - 1 columns more than the prompt has.
    columns = sum(output * prompt + output * (output - 1) // 2 for prompt, output in task.lengths)
    width, turn = round(columns / tokens), min(steps, max(1, round(tokens / len(outputs))))
    _decode(model, width, 2)
    prefill_s = _prefill(model, sorted(prompt for prompt, _ in task.lengths))
    times = [_decode(model, width - (turn - 1) // 2, min(turn, steps - done)) for done in range(0, steps, turn)]
    extra = {"prefill_s": prefill_s, "decode_s": sum(times), "steps": steps, "width": width}
    return [Measured("limit", tokens, prefill_s + sum(times), len(task.lengths), extra=extra)]


def _prefill(model: Any, lengths: Sequence[int]) -> float:
    """Seconds of the prompts of these lengths, all but their last tokens."""
    vocab = _vocab(model)
    eights = [lengths[first : first + PREFILL_ROWS] for first in range(0, len(lengths), PREFILL_ROWS)]
    work = [mx.random.randint(1, vocab, (len(some), max(some) - 1)) for some in eights]
    mx.eval(work)
    began = time.perf_counter()
    for prompts in work:
        if prompts.shape[1]:
            cache = make_prompt_cache(model)
            model(prompts, cache=cache)
            mx.eval([layer.state for layer in cache])
    return time.perf_counter() - began


def _decode(model: Any, width: int, steps: int) -> float:
    """Seconds of ``steps`` steps of a full batch, the first of which gives rows their ``width``-th column."""
    row = make_prompt_cache(model)
    model(mx.ones((1, max(1, width - 1)), dtype=mx.int32), cache=row)
    cache = make_prompt_cache(model)
    for layer, one in zip(cache, row, strict=True):
        layer.state = tree_map(_repeated, one.state)
    tokens = mx.random.randint(1, _vocab(model), (CONCURRENCY,))
    mx.eval(tokens, [layer.state for layer in cache])
    began = time.perf_counter()
    for _ in range(steps):
        before, tokens = tokens, mx.argmax(model(tokens[:, None], cache=cache)[:, -1], axis=-1)
        mx.async_eval(tokens)  # type: ignore[no-untyped-call]
        mx.eval(before)
    mx.eval(tokens)
    return time.perf_counter() - began


def _repeated(part: Any) -> Any:
    """A part of the state of one row's cache for a full batch."""
    return mx.repeat(part, CONCURRENCY, axis=0) if isinstance(part, mx.array) else part


def _vocab(model: Any) -> int:
    return int(model.args.vocab_size)


def batch_generator(task: TextTask) -> list[Measured]:
    """mlx-lm's ``BatchGenerator``, rows with their own samplers and processors, none of whose values was seen before:
    what a program of one's own on top of mlx-lm does."""
    model, tokenizer = _loaded(task)
    _batch(model, tokenizer, task.warm_up(WARM_LINES, WARM_TOKENS))
    return [_batch(model, tokenizer, task)]


def _batch(model: Any, tokenizer: Any, task: TextTask) -> Measured:
    rows = _rows(task, tokenizer)
    began = time.perf_counter()
    generator = BatchGenerator(
        model,
        max_tokens=task.new_tokens,
        stop_tokens=[[token] for token in tokenizer.eos_token_ids],
        completion_batch_size=CONCURRENCY,
        prefill_batch_size=PREFILL_ROWS,
    )
    made = [samplers(row) for row in rows]
    prompts = [list(row.prompt) for row in rows]
    generator.insert(prompts, samplers=[one[0] for one in made], logits_processors=[one[1] for one in made])
    tokens = 0
    while responses := generator.next_generated():
        tokens += len(responses)
    seconds = time.perf_counter() - began
    generator.close()
    return Measured("mlx_lm_batch", tokens, seconds, len(rows), extra=_extra(rows))


def one_at_a_time(task: TextTask) -> list[Measured]:
    """``stream_generate`` line by line, rows' own parameters, compiled before: what a loop over a file does."""
    model, tokenizer = _loaded(task)
    rows = _rows(task, tokenizer)
    for row in rows:
        _stream(model, tokenizer, row, WARM_TOKENS)
    began = time.perf_counter()
    tokens = sum(_stream(model, tokenizer, row, task.new_tokens) for row in rows)
    return [Measured("mlx_lm_one", tokens, time.perf_counter() - began, len(rows), extra=_extra(rows))]


def _stream(model: Any, tokenizer: Any, row: Row, new_tokens: int) -> int:
    sampler, processors = samplers(row)
    *_, last = stream_generate(
        model, tokenizer, list(row.prompt), new_tokens, sampler=sampler, logits_processors=processors
    )
    return int(last.generation_tokens)


def _loaded(task: TextTask) -> tuple[Any, Any]:
    model, tokenizer, *_ = load(task.folder)
    mx.eval(model.parameters())
    return model, tokenizer


def _rows(task: TextTask, tokenizer: Any) -> list[Row]:
    return task.rows([tokenizer.apply_chat_template(chat, add_generation_prompt=True) for chat in task.chats])


def _extra(rows: Sequence[Row]) -> dict[str, Any]:
    return {"prompt_tokens": sum(len(row.prompt) for row in rows)}
