"""Every family of mlx-lm: its rows have together the tokens that they have alone, whatever the kinds of its caches."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm.models
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import ConcatenateKVCache, QuantizedKVCache, make_prompt_cache

from tests.engine.families import FAMILIES, new_model
from worker.engine.caches import prompt_cache
from worker.engine.engine import Engine
from worker.engine.loading.mlx_models import measure
from worker.engine.loading.model import LoadedModel

SHARED = [(7 * i * i + 31 * i) % 255 + 1 for i in range(70)]
PART = 40
"""Tokens that most prompts begin with, and how many of them some later ones have."""

FALLING_BACK = {
    "ConcatenateKVCache": ConcatenateKVCache,
    "QuantizedKVCache": lambda: QuantizedKVCache(group_size=32, bits=8),
}
"""Caches that no family makes for itself and that cannot be merged."""
NOT_OF_MODELS = {
    "_BaseCache": "the base of the others",
    "LRUPromptCache": "keeps whole caches, for mlx-lm's server",
}


def prompt_of(start: list[int], length: int, seed: int) -> list[int]:
    """``start`` and ``length`` tokens of its own behind it."""
    return [*start, *((seed * 37 + i * i * 11 + i * 5) % 255 + 1 for i in range(length))]


def alone(model: LoadedModel, prompt: list[int], count: int) -> list[int]:
    """mlx-lm's greedy tokens, the ending EOS (0) included."""
    tokens = []
    for token, _ in generate_step(mx.array(prompt), model.model, max_tokens=count, prompt_cache=model.new_cache()):
        tokens.append(int(token))
        if token == 0:
            break
    return tokens


class Mill:
    """An engine and the lines given to it, each of which must end with the tokens that it has alone."""

    def __init__(self, model: LoadedModel, line_of: Any) -> None:
        self.engine = Engine(model, decode_concurrency=4, prompt_concurrency=3, prefill_step_size=48)
        self._model, self._line_of = model, line_of
        self._given: list[tuple[list[int], int]] = []
        self._done: dict[int, Any] = {}

    def add(self, prompt: list[int], count: int) -> None:
        self.engine.add(self._line_of(len(self._given), prompt, max_tokens=count))
        self._given.append((prompt, count))

    def step(self, times: int) -> None:
        for _ in range(times):
            self._done |= {finished.key: finished for finished in self.engine.step()}

    def finish(self) -> None:
        while self.engine.has_work:
            self.step(1)
        assert self.engine.stats.recoveries == 0
        said = {token for finished in self._done.values() for token in finished.sequences[0].tokens}
        assert len(said) > 10, "a model that always says the same proves nothing"
        for key, (prompt, count) in enumerate(self._given):
            assert self._done[key].error is None
            found = self._done[key].sequences[0].tokens
            assert found == alone(self._model, prompt, count), f"line {key}: {len(prompt)} tokens and {count} more"


@pytest.mark.parametrize("kind", FAMILIES)
def test_together_as_alone(kind: str, tiny: Any, line_of: Any) -> None:
    """More prompts than rows, of 1 to 90 tokens, some with a beginning in common; rows that end early, and others that
    join when those are in the middle; then all rows but one must make room and go on later. Each has mlx-lm's tokens,
    and beginnings are computed as often as stated."""
    mill = Mill(tiny(kind), line_of)
    stats, prefixes = mill.engine.stats, FAMILIES[kind].prefixes
    for length, count in [(3, 12), (20, 3), (9, 20)]:
        mill.add(prompt_of(SHARED, length, length), count)
    for length, count in [(1, 16), (2, 2), (45, 8), (13, 25)]:
        mill.add(prompt_of([], length, length), count)
    mill.step(9)
    mill.add(prompt_of(SHARED, 1, 50), 10)
    mill.step(5)
    mill.add(prompt_of([], 33, 51), 6)
    mill.add(prompt_of(SHARED, 4, 52), 5)
    mill.finish()
    assert stats.cached_tokens == (0 if prefixes == "no" else 4 * len(SHARED))
    for length in (5, 6, 11):
        mill.add(prompt_of(SHARED[:PART], length, 60 + length), 14)
    mill.finish()
    reused = {"any part": 3, "exact": 2, "no": 0}[prefixes]
    assert stats.cached_tokens == (0 if prefixes == "no" else 4 * len(SHARED)) + reused * PART
    for length, count in [(7, 15), (30, 11), (2, 4), (12, 13), (18, 9)]:
        mill.add(prompt_of([], length, 70 + length), count)
    mill.step(7)
    mill.engine._scheduler.room.memory = 1
    mill.step(1)
    mill.engine._scheduler.room.memory = None
    assert mill.engine._scheduler.running <= 1
    assert (stats.preempted_rows > 0) == mill.engine.model.batchable
    mill.finish()


@pytest.mark.parametrize("kind", FAMILIES)
def test_found_out_at_load(kind: str, tiny: Any, caplog: pytest.LogCaptureFixture) -> None:
    """What is stated of a family is found out by trying, and whatever it cannot do is logged with the reason."""
    wanted, model = FAMILIES[kind], tiny(kind)
    caplog.clear()
    model = measure(kind, model.model, model.tokenizer, model.config)
    assert (model.padded_prefill, model.prefixes) == (wanted.padded, wanted.prefixes != "no")
    if wanted.batches is True:
        assert model.unbatchable is None
    else:
        assert wanted.batches in (model.unbatchable or "")
        assert f"{kind} runs one row at a time: {model.unbatchable}" in caplog.text
    assert ("only prompts of equal length are prefilled together" in caplog.text) == (
        model.batchable and not wanted.padded
    )
    assert ("computes every prompt in full" in caplog.text) == (model.batchable and not model.prefixes)


@pytest.mark.parametrize("name", FALLING_BACK)
def test_caches_without_a_batch_form(name: str, line_of: Any, tiny: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A model with caches that cannot be merged runs one row at a time, says why, and has the right tokens."""
    inner = tiny("qwen3", head_dim=32)
    inner.model.make_cache = lambda: [FALLING_BACK[name]() for _ in inner.model.layers]
    caplog.clear()
    model = measure(name, inner.model, inner.tokenizer, inner.config)
    assert f"{name} runs one row at a time: its caches cannot be batched" in caplog.text
    mill = Mill(model, line_of)
    for length in (5, 30, 1, 12):
        mill.add(prompt_of(SHARED, length, length), 8)
    mill.finish()
    assert mill.engine.stats.cached_tokens == 0


def test_every_cache_of_mlx_lm_is_covered() -> None:
    """Whatever mlx-lm calls a cache is made by a family of the table, or by merging what those make, or is named."""
    shipped: set[str] = set()
    for path in Path(mlx_lm.models.__path__[0]).glob("*.py"):
        for name, bases in re.findall(r"^class (\w+)(?:\((.*)\))?:", path.read_text(encoding="utf-8"), re.MULTILINE):
            if name.endswith("Cache") or "Cache" in bases:
                shipped.add(name)
    covered: set[str] = set()
    for kind, family in FAMILIES.items():
        singles = make_prompt_cache(new_model(kind))
        caches = [*singles, *prompt_cache.leaves(singles)]
        covered |= {type(cache).__name__ for cache in caches}
        if family.batches is True:
            covered |= {type(type(cache).merge([cache])).__name__ for cache in caches}
    assert {"KVCache", "BatchKVCache", "RotatingKVCache", "CacheList"} <= shipped
    assert shipped - covered == {*FALLING_BACK, *NOT_OF_MODELS}


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_passes_its_trial_at_load(kind: str, tiny: Any) -> None:
    """A worker sees at a model's load that it works, on a prompt of one token."""
    Engine(tiny(kind)).warm_up()
