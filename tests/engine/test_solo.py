"""Rows one at a time: caches in rings, quantised caches, and a draft model that changes no text."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import KVCache, QuantizedKVCache, RotatingKVCache

from jobs.errors import ModelLoadError
from worker.engine import lm
from worker.engine.caches import leaves
from worker.engine.engine import Engine
from worker.engine.lm import load_model, measure
from worker.engine.model import LoadedModel
from worker.engine.solo import SoloModes

Solo = Callable[..., LoadedModel]


def prompt_of(length: int, seed: int = 3) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(1, 256) for _ in range(length)]


def again(model: LoadedModel, draft: LoadedModel | None = None, **modes: Any) -> LoadedModel:
    """The same model, measured in other modes."""
    return measure(model.name, model.model, model.tokenizer, model.config, modes=SoloModes(**modes), draft=draft)


def mlx_lms(model: LoadedModel, prompt: list[int], count: int, **options: Any) -> list[int]:
    """The greedy tokens of ``mlx_lm.generate``, which knows no end here."""
    steps = generate_step(mx.array(prompt), model.model, max_tokens=count, **options)
    return [int(token) for token, _ in steps]


def rings(model: LoadedModel, size: int) -> list[Any]:
    """The caches of a model with rings in place of those that keep everything."""
    caches = model.model.make_cache()
    return [RotatingKVCache(size, keep=4) if type(cache) is KVCache else cache for cache in caches]


# -- caches of limited size ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["qwen3", "llama", "gemma3_text", "lfm2"])
def test_ring_gives_mlx_lms_tokens(kind: str, tiny: Any, line_of: Any, run: Any) -> None:
    """Rows longer than --max-kv-size get mlx-lm's tokens, also of models that make their caches themselves, for which
    mlx-lm ignores the flag."""
    plain = tiny(kind)
    model = again(plain, max_kv_size=16)
    lines = [line_of(length, prompt_of(length), max_tokens=40, eos=[]) for length in (1, 5, 16, 45)]
    done = run(model, lines, decode_concurrency=8)
    for line in lines:
        limit = {"prompt_cache": rings(plain, 16)} if hasattr(plain.model, "make_cache") else {"max_kv_size": 16}
        assert done[line.key].sequences[0].tokens == mlx_lms(plain, list(line.prompt), 40, **limit), line.key
    assert any(
        done[45].sequences[0].tokens != finished.sequences[0].tokens for finished in run(plain, lines[3:]).values()
    )


def test_ring_costs_the_same_at_any_length(tiny: Any, line_of: Any, run: Any) -> None:
    """A long row is admitted where only a short one would have room, and holds no more than the ring."""
    plain = tiny("llama")
    model = again(plain, max_kv_size=16)
    per_token = plain.cache_cost(1)
    assert model.cache_cost(4000) == model.cache_cost(16) == 16 * per_token
    limit = 20 * per_token
    engine = Engine(model, memory_limit=limit)
    engine.add(line_of("long", prompt_of(10), max_tokens=300, eos=[]))
    (done,) = run(engine, []).values()
    assert len(done.sequences[0].tokens) == 300
    (refused,) = run(plain, [line_of("long", prompt_of(10), max_tokens=300)], memory_limit=limit).values()
    assert refused.error.code == "context_length_exceeded"
    caches = model.new_cache()
    for token in range(100):
        model.forward(mx.array([[token]]), caches)
    assert max(cache.keys.shape[2] for cache in leaves(caches)) == 16


def test_ring_where_nothing_grows(tiny: Any) -> None:
    """A model of recurrent layers alone has nothing to limit, and goes on in batches."""
    assert again(tiny("mamba2"), max_kv_size=16).batchable


# -- quantised caches -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "start"), [(8, 0), (4, 0), (3, 0), (8, 20)])
def test_quantised_cache_gives_mlx_lms_tokens(bits: int, start: int, tiny: Any, line_of: Any, run: Any) -> None:
    """Rows with a quantised cache get the tokens that mlx-lm gives them; from another start on, others."""
    plain = tiny("qwen3", head_dim=64)
    modes = {"kv_bits": bits, "kv_group_size": 32, "quantized_kv_start": start}
    lines = [line_of(length, prompt_of(length), max_tokens=30, eos=[]) for length in (1, 7, 33)]
    done = run(again(plain, **modes), lines)
    for line in lines:
        assert done[line.key].sequences[0].tokens == mlx_lms(plain, list(line.prompt), 30, **modes), line.key


def test_quantised_caches_of_choices_and_windows(tiny: Any, line_of: Any, run: Any) -> None:
    """Choices of one prompt have a cache each; layers with a window keep it as it is."""
    plain = tiny("gemma3_text", head_dim=32)
    model = again(plain, kv_bits=8, kv_group_size=32)
    line = line_of("x", prompt_of(40), max_tokens=20, n=3, temperature=1.0, seed=4)
    choices = run(model, [line])["x"].sequences
    alone = [run(model, [line_of("y", prompt_of(40), max_tokens=20, temperature=1.0, seed=choices[2].seed)])["y"]]
    assert choices[2].tokens == alone[0].sequences[0].tokens
    caches = model.new_cache()
    model.forward(mx.array([[1, 2, 3]]), caches)
    assert {type(cache) for cache in caches} == {QuantizedKVCache, RotatingKVCache}


def test_cost_of_quantised_caches(tiny: Any) -> None:
    """Admission counts what the quantised cache takes; until it is quantised, a row takes what it takes without."""
    plain = tiny("qwen3", head_dim=64)
    now = again(plain, kv_bits=8, kv_group_size=32).cache_cost
    late = again(plain, kv_bits=8, kv_group_size=32, quantized_kv_start=100).cache_cost
    values = 2 * 2 * 2 * 64  # keys and values, layers, heads
    assert now(1000) == 1000 * (values + values // 32 * 2 * 4)  # a byte each, and scale and bias of each group
    assert late(100) == plain.cache_cost(100)
    assert late(1000) == plain.cache_cost(100) + 900 * now(1)


@pytest.mark.parametrize(
    ("kind", "modes", "part"),
    [
        ("qwen3", {"kv_bits": 8}, r"heads of 16 values.*--kv-group-size 64 does not divide: leave out --kv-bits 8"),
        ("mamba2", {"kv_bits": 4}, r"no KV cache that could be quantised: leave out --kv-bits 4"),
    ],
)
def test_models_that_cannot_be_quantised(kind: str, modes: dict[str, Any], part: str, tiny: Any) -> None:
    """A model that the flag does not fit is refused at load, with the flag."""
    with pytest.raises(ModelLoadError, match=part):
        again(tiny(kind), **modes)


def test_refusal_names_the_group_size_that_fits(pocket: LoadedModel) -> None:
    """Where another group size fits, it is said."""
    with pytest.raises(ModelLoadError, match=r"heads of 32 values.*64 does not divide: choose 32$"):
        load_model(pocket.name, modes=SoloModes(kv_bits=8))


def test_quantised_rings_are_refused() -> None:
    """mlx-lm has none."""
    with pytest.raises(ValueError, match="exclude each other"):
        SoloModes(max_kv_size=64, kv_bits=8)
