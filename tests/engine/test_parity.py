"""Greedy tokens of the batch are those of mlx_lm.generate_step, prompt by prompt, in cases beyond those that
``test_families`` tries with every family: rows in the places of others, for each kind of cache."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import RotatingKVCache

from worker.engine.engine import Engine
from worker.engine.loading.model import LoadedModel


def prompts_of(lengths: list[int], seed: int = 5) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(1, 256) for _ in range(length)] for length in lengths]


def expected(model: LoadedModel, prompt: list[int], count: int, eos: int = 0) -> list[int]:
    """mlx-lm's greedy tokens, the ending EOS included."""
    tokens = []
    for token, _ in generate_step(mx.array(prompt), model.model, max_tokens=count, prompt_cache=model.new_cache()):
        tokens.append(int(token))
        if token == eos:
            break
    return tokens


def output(finished: Any) -> list[int]:
    assert finished.error is None
    return list(finished.sequences[0].tokens)


@pytest.mark.parametrize("kind", ["gemma3_text", "lfm2", "qwen3"])
def test_alone_is_mlx_lms(kind: str, tiny: Any, line_of: Any, run: Any) -> None:
    """One row at a time of a model that could batch gives mlx-lm's tokens too."""
    model = tiny(kind)
    (prompt,) = prompts_of([37])
    done = run(model, [line_of("x", prompt, max_tokens=25)], decode_concurrency=1)
    assert output(done["x"]) == expected(model, prompt, 25)


@pytest.mark.parametrize("window", [8, 24, 64])
@pytest.mark.parametrize("kind", ["gemma3_text", "lfm2", "qwen3"])
def test_rows_take_the_places_of_others(kind: str, window: int, tiny: Any, line_of: Any, run: Any) -> None:
    """Short rows end one by one while long ones go on, and prompts shorter and longer than what the batch holds come
    in their places; no row sees anything of the one before it."""
    model = tiny(kind, sliding_window=window) if kind == "gemma3_text" else tiny(kind)
    draw = random.Random(window)
    prompts = prompts_of([draw.randrange(1, 50) for _ in range(14)], seed=window)
    counts = [90, 70] + [draw.randrange(2, 9) for _ in range(12)]
    engine = Engine(model, decode_concurrency=4, prompt_concurrency=2)
    done: dict[Any, Any] = {}
    for index, (prompt, count) in enumerate(zip(prompts, counts, strict=True)):
        engine.add(line_of(index, prompt, max_tokens=count, eos=[]))
    done |= run(engine, [])
    for index, (prompt, count) in enumerate(zip(prompts, counts, strict=True)):
        assert output(done[index]) == expected(model, prompt, count, eos=-1), f"{kind}, prompt {index}"


@pytest.mark.parametrize("kind", ["gemma3_text", "llama", "lfm2", "qwen3", "mamba2"])
def test_wide_rows_come_into_a_narrow_batch(kind: str, tiny: Any, line_of: Any, run: Any) -> None:
    """A prompt longer than all that the batch holds takes the place of a row in it, unharmed."""
    model = tiny(kind, sliding_window=64) if kind == "gemma3_text" else tiny(kind)
    if kind == "llama":  # a model of nothing but windows
        model = replace(model, make_cache=lambda inner: [RotatingKVCache(64) for _ in inner.layers])
    prompts, counts = prompts_of([2, 1, 45, 90, 3]), [60, 9, 9, 20, 9]
    engine = Engine(model, decode_concurrency=2, prompt_concurrency=1)
    lines = [line_of(i, p, max_tokens=c, eos=[]) for i, (p, c) in enumerate(zip(prompts, counts, strict=True))]
    done = run(engine, lines)
    for index, (prompt, count) in enumerate(zip(prompts, counts, strict=True)):
        assert output(done[index]) == expected(model, prompt, count, eos=-1), f"{kind}, prompt {index}"


def test_places_are_taken_without_copying_the_batch(tiny: Any, line_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """While work waits a row's end seldom copies more than its successor's cache; and columns that all rows have left
    behind are given up, so that a long run does not grow without end."""
    from worker.engine.caches.buckets import Layout

    copies: list[int] = []
    widths: list[int] = []
    put, arrange = Layout.put, Layout.arrange
    monkeypatch.setattr(Layout, "put", lambda self, *rest: (widths.append(self.columns), put(self, *rest))[1])
    monkeypatch.setattr(Layout, "arrange", lambda self, *rest: (copies.append(self.slots), arrange(self, *rest))[1])
    engine = Engine(tiny("qwen3"), decode_concurrency=8, prompt_concurrency=4)
    for index in range(80):
        engine.add(line_of(index, range(1, 6), max_tokens=12 + index % 11, eos=[]))
    while engine.pending:
        engine.step()
    assert len(widths) > 40
    assert max(widths) < 8 * 2 * (5 + 22)
    assert len(copies) < 40
