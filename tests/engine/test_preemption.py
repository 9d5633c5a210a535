"""Rows that must make room and come back: they have the texts they have alone, and the memory is never exceeded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from mlx_lm.models.cache import BatchKVCache, BatchRotatingKVCache

from worker.engine.caches import prompt_cache
from worker.engine.engine import Engine
from worker.engine.room import GROWTH, CacheBytes
from worker.engine.sequence import Finished, PreparedLine

KINDS = ["qwen3", "gemma3_text", "qwen3_next"]
"""With keys and values alone, with sliding windows, and with states."""
STEP = 8
SAMPLINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0, "seed": 5},
    {"temperature": 0.8, "seed": 6, "top_p": 0.9, "top_k": 30, "logprobs": True, "top_logprobs": 2},
    {"repetition_penalty": 1.3, "presence_penalty": 0.4, "frequency_penalty": 0.3, "logprobs": True},
    {"temperature": 1.2, "seed": 7, "min_p": 0.02, "n": 3},
    {"seed": 8, "temperature": 1.0, "stop": (chr(0x100 + 77), chr(0x100 + 9) + chr(0x100 + 12))},
]


def prompt_of(seed: int, length: int) -> list[int]:
    return [(seed * 37 + i * i * 11 + i * 5) % 255 + 1 for i in range(length)]


def lines_of(line_of: Callable[..., PreparedLine], count: int = 30) -> list[PreparedLine]:
    return [
        line_of(index, prompt_of(index, 3 + 9 * (index % 5)), max_tokens=count + 5 * (index % 3), eos=[], **given)
        for index, given in enumerate([*SAMPLINGS, *SAMPLINGS[:3]])
    ]


def held(engine: Engine) -> int:
    """Bytes that the caches of rows and prompts really take."""
    batches = (*engine._staging._prefilling, *engine._staging._ready)
    return sum(
        prompt_cache.size(caches) for caches in (engine._decode_batch._caches.caches, *(b._caches for b in batches))
    )


def steps(engine: Engine, lines: list[PreparedLine]) -> Iterator[list[Finished]]:
    """What ends in each step, until nothing is left."""
    for line in lines:
        engine.add(line)
    for _ in range(20_000):
        if not engine.has_work:
            return
        yield engine.step()
    raise AssertionError("the engine does not come to an end")


def told(finished: Finished) -> list[Any]:
    """What must be as it is alone: of log-probabilities the tokens they are of."""
    return [
        (row.tokens, row.stop_reason, row.stop_string, [[token for token, _ in best] for best in row.top_logprobs])
        for row in finished.sequences
    ]


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches grow by a few columns, and little is expected of texts: memory runs out within short ones."""
    for cache in (BatchKVCache, BatchRotatingKVCache):
        monkeypatch.setattr(cache, "step", STEP)
    monkeypatch.setattr("worker.engine.caches.growing.COLUMNS", STEP)
    monkeypatch.setattr("worker.engine.engine.CacheBytes", partial(CacheBytes, growth=STEP))
    monkeypatch.setattr("worker.engine.text_lengths.FIRST_GUESS", 8)


@pytest.mark.parametrize("kind", KINDS)
def test_as_alone(kind: str, narrow: None, tiny: Any, line_of: Any, run: Any) -> None:
    """Whatever the parameters: rows that were taken out in the middle of their texts have the tokens, stop strings and
    best tokens that their lines have alone; all of them come to their end, and at no step do the caches take more than
    they may."""
    model = tiny(kind)
    alone = {key: told(line) for key, line in run(model, lines_of(line_of), decode_concurrency=1).items()}
    limit = 8 * model.cache_cost(70)
    engine = Engine(model, decode_concurrency=8, prompt_concurrency=3, memory_limit=limit, prefix_memory=0)
    ended: dict[Any, Finished] = {}
    for step, finished in enumerate(steps(engine, lines_of(line_of))):
        ended |= {line.key: line for line in finished}
        assert held(engine) <= limit
        engine._scheduler.room.memory = limit // 6 if step % 20 == 10 else limit
    assert engine.stats.recoveries == 0
    assert engine.stats.preempted_rows > 1
    assert {key: told(line) for key, line in ended.items()} == alone
    for line in ended.values():
        for row in line.sequences:
            assert len(row.token_logprobs) == (len(row.tokens) if row.sampling.logprobs else 0)


def test_many_rows_where_max_tokens_would_allow_few(tiny: Any, line_of: Any) -> None:
    """In memory for 16 texts of max_tokens more than a hundred short ones decode together; and the caches never take
    more than that memory."""
    model, most = tiny("qwen3"), 2000
    limit = 16 * model.cache_cost(most + 5 + GROWTH)
    engine = Engine(model, decode_concurrency=128, memory_limit=limit, prefix_memory=0, max_context=4096)
    lines = [
        line_of(index, prompt_of(index, 5), max_tokens=most, temperature=1.0, seed=index, eos=range(0, 256, 16))
        for index in range(250)
    ]
    together, taken = 0, 0
    for finished in steps(engine, lines):
        assert all(line.sequences[0].stop_reason == "eos" for line in finished)
        together, taken = max(together, engine._scheduler.running), max(taken, held(engine))
    assert together >= 100
    assert 0.4 * limit < taken <= limit


def test_less_memory_from_one_step_to_the_next(tiny: Any, line_of: Any, run: Any) -> None:
    """Another model was loaded beside this one: the rows that began last make room at once, and come back."""
    model = tiny("qwen3")
    lines = [line_of(index, prompt_of(index, 9), max_tokens=30, eos=[]) for index in range(6)]
    alone = {key: told(line) for key, line in run(model, lines, decode_concurrency=1).items()}
    engine = Engine(model, decode_concurrency=6, prefix_memory=0)
    ended: dict[Any, Finished] = {}
    for step, finished in enumerate(steps(engine, lines)):
        ended |= {line.key: line for line in finished}
        if step == 9:
            limit = 4 * model.cache_cost(40 + GROWTH)
            engine.set_memory(limit)
        if step > 9:
            assert held(engine) <= limit
            assert engine._scheduler.running <= 4
    assert engine.stats.preempted_rows == 2
    assert {key: told(line) for key, line in ended.items()} == alone


def test_idle_places_count_too(tiny: Any, line_of: Any) -> None:
    """Places of rows that ended take memory until they are given back: neither rows that join beside them nor caches
    that grow by their next columns take more than there may be."""
    model = tiny("qwen3")
    limit = 7700 * model.cache_cost(1)
    engine = Engine(model, decode_concurrency=8, prompt_concurrency=8, memory_limit=limit, prefix_memory=0)
    lines = [line_of(key, prompt_of(key, 20), max_tokens=874 if key < 2 else 950, eos=[]) for key in range(8)]
    for _ in steps(engine, lines):
        assert held(engine) <= limit
    limit = 9_500_000
    engine = Engine(model, decode_concurrency=8, prompt_concurrency=8, memory_limit=limit, prefix_memory=0)
    lines = [line_of(key, prompt_of(key, 1500), max_tokens=40 if key else 60, eos=[]) for key in range(8)]
    lines.append(line_of("choices", prompt_of(9, 1000), max_tokens=30, n=7, temperature=1.0, eos=[]))
    for _ in steps(engine, lines):
        assert held(engine) <= limit
