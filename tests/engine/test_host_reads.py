"""How often a step waits for the device, and that rows in buckets have the tokens they have alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from bench.realtext.reads import counted
from worker.engine.caches.decode_caches import DecodeCaches
from worker.engine.engine import Engine


def lines_of(line_of: Callable[..., Any], count: int) -> list[Any]:
    """Prompts and texts of many lengths, half of them with draws, filters and penalties."""
    draw = random.Random(count)
    given = [{}, {"temperature": 0.9, "top_p": 0.8, "seed": 3, "repetition_penalty": 1.1}]
    return [
        line_of(
            index,
            [draw.randrange(1, 250) for _ in range(draw.choice([2, 9, 30, 70, 120]))],
            max_tokens=draw.randint(4, 30),
            eos=[],
            **given[index % 2],
        )
        for index in range(count)
    ]


@pytest.mark.parametrize("kind", ["qwen3", "gemma3_text", "qwen3_next"])
def test_a_step_reads_once(kind: str, tiny: Any, line_of: Any) -> None:
    """Growing caches, sliding windows and recurrent states: while rows come and go, a step waits for the tokens of the
    step before and for nothing else."""
    engine = Engine(tiny(kind), decode_concurrency=6, prompt_concurrency=3, compile=False)
    for line in lines_of(line_of, 40):
        engine.add(line)
    while engine.stats.decode_steps < 5:
        engine.step()
    before, finished = engine.stats.decode_steps, 0
    with counted() as reads:
        while engine.pending > 4:
            finished += len(engine.step())
    assert finished > 10
    assert reads.kinds == {"step": engine.stats.decode_steps - before}


@pytest.mark.parametrize("columns", [0, 40])
def test_rows_in_many_buckets_as_alone(
    columns: int, tiny: Any, line_of: Any, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever buckets rows lie in, and however often they are copied into others, they have the tokens that they have
    alone; and there really are several buckets."""
    model, lines = tiny("qwen3"), lines_of(line_of, 30)
    assert model.bucketed
    alone = {key: done.sequences[0].tokens for key, done in run(model, lines, decode_concurrency=1).items()}
    monkeypatch.setattr("worker.engine.decode.bucket_columns", lambda: columns)
    buckets: list[int] = []
    grow = DecodeCaches.grow
    monkeypatch.setattr(DecodeCaches, "grow", lambda self: (buckets.append(len(self.layout.buckets)), grow(self))[1])
    engine = Engine(model, decode_concurrency=8, prompt_concurrency=3)
    together = {key: done.sequences[0].tokens for key, done in run(engine, lines).items()}
    assert together == alone
    assert max(buckets) > 2
    assert engine.stats.decode_columns < 1.6 * engine.stats.needed_columns
