"""Prompts and decode steps share the device. Time is what the model says it takes."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from worker.engine.engine import Engine
from worker.engine.pacing import FILLING, LEAST_CHUNK, STEPS_PER_CHUNK

STEP_S, TOKEN_S = 0.1, 0.0005


class Timed:
    """A clock that a model's calls move on: by a tenth of a second for a decode step, and by half a millisecond for
    each token of a prompt."""

    def __init__(self, model: Any) -> None:
        self.now = 0.0
        self.chunks: list[int] = []
        self._model = model
        self.make_cache = model.make_cache

    def __call__(self, tokens: mx.array, cache: list[Any]) -> mx.array:
        rows, columns = tokens.shape
        if columns > 1:
            self.chunks.append(rows * columns)
        self.now += STEP_S if columns == 1 else rows * columns * TOKEN_S
        return self._model(tokens, cache)

    def clock(self) -> float:
        return self.now


def timed(markov: Any, **options: Any) -> tuple[Engine, Timed]:
    model = markov()
    object.__setattr__(model, "model", Timed(model.model))
    return Engine(model, clock=model.model.clock, **options), model.model


def test_a_long_prompt_among_chats(markov: Any, line_of: Any) -> None:
    """No row waits longer for a token than two chunks take, each of which lasts about as long as two steps; and the
    prompt of 4,000 tokens is done in as many chunks as that makes."""
    engine, model = timed(markov)
    for index in range(8):
        engine.add(line_of(index, [1 + index] * 9, max_tokens=200))
    for _ in range(20):
        engine.step()
    engine.add(line_of("long", [3] * 4001, max_tokens=5))
    model.chunks.clear()
    waits = []
    while engine.stats.prompt_tokens < 4000 or engine.snapshot()[-1].phase == "prefill":
        began, tokens = model.now, engine.stats.completion_tokens
        engine.step()
        assert engine.stats.completion_tokens >= tokens + 8
        waits.append(model.now - began - STEP_S)
    chunk_s = STEPS_PER_CHUNK * (1 + FILLING / 8) * STEP_S
    assert max(waits) <= 2 * chunk_s
    assert sum(model.chunks) == 4000
    assert len(model.chunks) <= 4000 / (chunk_s / TOKEN_S / 2) + 1


def test_several_batches_share_a_chunk(markov: Any, line_of: Any) -> None:
    """A wave of unlike prompts is several batches: between two steps there is no more of them together than of one."""
    engine, model = timed(markov, decode_concurrency=8)
    for index in range(8):
        engine.add(line_of(index, [1 + index] * 9, max_tokens=300))
    for _ in range(20):
        engine.step()
    for index, length in enumerate((50, 90, 300, 700, 1500, 20, 5)):
        engine.add(line_of(10 + index, [3] * length, max_tokens=2))
    most = []
    while engine.stats.finished_lines < 8:
        began = model.now
        engine.step()
        most.append(model.now - began - STEP_S)
    assert max(most) <= STEPS_PER_CHUNK * STEP_S + LEAST_CHUNK * TOKEN_S


def test_prompts_go_first_while_slots_are_free(markov: Any, line_of: Any) -> None:
    """Slots are filled within a few steps, not at the pace that suits a full batch."""
    engine, _ = timed(markov, decode_concurrency=32)
    for index in range(64):
        engine.add(line_of(index, [1 + index] * 120, max_tokens=100))
    steps = 0
    while engine._scheduler.running < 32:
        engine.step()
        steps += 1
    assert steps <= 8


def test_the_batch_stays_full_where_texts_are_unlike(markov: Any, line_of: Any) -> None:
    """Whatever the chunks are: a row that ends is followed in the next step."""
    engine, _ = timed(markov, decode_concurrency=16)
    for index in range(160):
        engine.add(line_of(index, [1 + index] * (40 + 37 * index % 120), max_tokens=30 + 61 * index % 100))
    while engine.stats.decode_rows < 1000:
        engine.step()
    rows, steps = engine.stats.decode_rows, engine.stats.decode_steps
    while engine.pending:
        engine.step()
    assert (engine.stats.decode_rows - rows) / (engine.stats.decode_steps - steps) > 0.98 * 16
