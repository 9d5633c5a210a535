"""Greedy tokens of the batch are those of mlx_lm.generate_step, prompt by prompt, for each kind of cache."""

from __future__ import annotations

import random
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.generate import generate_step

from worker.engine.engine import Engine
from worker.engine.model import LoadedModel

KINDS = ["qwen3", "llama", "gemma3_text", "qwen3_moe", "lfm2", "mamba2"]


def prompts_of(lengths: list[int], seed: int = 5) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(1, 256) for _ in range(length)] for length in lengths]


def expected(model: LoadedModel, prompt: list[int], count: int, eos: int = 0) -> list[int]:
    """mlx-lm's greedy tokens, the ending EOS included."""
    tokens = []
    for token, _ in generate_step(mx.array(prompt), model.model, max_tokens=count):
        tokens.append(int(token))
        if token == eos:
            break
    return tokens


def output(finished: Any) -> list[int]:
    assert finished.error is None
    return list(finished.sequences[0].tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_batched_greedy_is_mlx_lms(kind: str, tiny: Any, line_of: Any, run: Any) -> None:
    """Prompts of very different lengths, more of them than rows, each end with the tokens they have alone."""
    model = tiny(kind)
    prompts = prompts_of([1, 2, 3, 5, 8, 13, 14, 40, 41, 100, 1, 30])
    counts = [20, 7, 1, 33, 12, 25, 2, 18, 30, 9, 40, 15]
    lines = [line_of(i, p, max_tokens=c) for i, (p, c) in enumerate(zip(prompts, counts, strict=True))]
    done = run(model, lines, decode_concurrency=5, prompt_concurrency=3, prefill_step_size=32)
    for index, (prompt, count) in enumerate(zip(prompts, counts, strict=True)):
        assert output(done[index]) == expected(model, prompt, count), f"{kind}, prompt {index}"


@pytest.mark.parametrize("kind", KINDS)
def test_alone_is_mlx_lms(kind: str, tiny: Any, line_of: Any, run: Any) -> None:
    """One row at a time gives mlx-lm's tokens too."""
    model = tiny(kind)
    (prompt,) = prompts_of([37])
    done = run(model, [line_of("x", prompt, max_tokens=25)], decode_concurrency=1)
    assert output(done["x"]) == expected(model, prompt, 25)


@pytest.mark.parametrize("kind", KINDS)
def test_late_joiners_and_early_leavers(kind: str, tiny: Any, line_of: Any, run: Any) -> None:
    """Rows that come when others are in the middle, or go before them, change nothing for anyone."""
    model = tiny(kind)
    prompts = prompts_of([20, 6, 50, 3], seed=8)
    counts = [40, 30, 20, 5]
    engine = Engine(model, decode_concurrency=4)
    done: dict[Any, Any] = {}
    for index, (prompt, count) in enumerate(zip(prompts, counts, strict=True)):
        engine.add(line_of(index, prompt, max_tokens=count))
        for _ in range(6):
            done |= {finished.key: finished for finished in engine.step()}
    done |= run(engine, [])
    for index, (prompt, count) in enumerate(zip(prompts, counts, strict=True)):
        assert output(done[index]) == expected(model, prompt, count), f"{kind}, prompt {index}"
