"""Logits that are NaN or infinite: their line fails and may run again, no other suffers, and a sick model is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from jobs.errors import ModelLoadError, SickModelError
from tests.engine.conftest import build, successor
from worker.engine.engine import Engine
from worker.engine.loading.mlx_models import measure
from worker.engine.loading.model import LoadedModel
from worker.engine.sampling.draws import pick
from worker.engine.sampling.sampler import Features, Sampler
from worker.engine.sequence import NO_TOKEN, Finished
from worker.engine.unbatched.modes import UnbatchedModes

NAN = float("nan")
DAMAGED = 200
"""The token whose weights are NaN."""


@pytest.fixture(scope="module")
def damaged() -> Callable[[str], LoadedModel]:
    """``damaged(kind)``: a model of a kind, one row of whose embedding is NaN."""
    built: dict[str, LoadedModel] = {}

    def model_of(kind: str) -> LoadedModel:
        if kind not in built:
            built[kind] = build(kind)
            damage(built[kind], DAMAGED)
        return built[kind]

    return model_of


def damage(model: LoadedModel, token: int) -> None:
    """Make a token's row of a model's embedding NaN."""
    ((name, weight),) = ((name, value) for name, value in tree_flatten(model.model.parameters()) if "embed" in name)
    values = np.array(weight)
    values[token] = NAN
    model.model.load_weights([(name, mx.array(values))], strict=False)


def tokens_of(done: dict[Any, Finished]) -> dict[Any, list[list[int]]]:
    return {key: [seq.tokens for seq in finished.sequences] for key, finished in done.items()}


@pytest.mark.parametrize("kind", ["qwen3", "qwen3_moe", "olmo3", "mamba2"])
def test_a_line_without_finite_logits_fails_alone(kind: str, damaged: Any, line_of: Any, run: Any) -> None:
    """Lines whose prompts hold a damaged token fail, as ones that may pass, at their first token and with every way
    to draw; what decodes beside them and takes their places gives the text it gives without them."""
    model = damaged(kind)
    ban = {"logit_bias": {DAMAGED: -100.0}}
    ways: list[dict[str, Any]] = [
        {},
        {"temperature": 1.0},
        {"temperature": 0.8, "top_p": 0.9, "logprobs": True, "top_logprobs": 3},
        {"temperature": 1.0, "top_k": 4, "n": 3},
        {"min_tokens": 4, "repetition_penalty": 1.2},
    ]
    good = [
        line_of(f"good {i}", range(2, 5 + 3 * (i % 7)), seed=i, max_tokens=6 + i % 5, **ban, **ways[i % len(ways)])
        for i in range(20)
    ]
    bad = [line_of(f"bad {i}", [*range(1, 4 + 5 * i), DAMAGED, 3], seed=i, **way) for i, way in enumerate(ways)]
    mixed = [line for i in range(5) for line in (*good[4 * i : 4 * i + 3], bad[i], good[4 * i + 3])]
    engine = Engine(model, decode_concurrency=4, prompt_concurrency=3)
    done = run(engine, mixed)
    for line in bad:
        failure = done[line.key].error
        assert (failure.code, failure.passing) == ("internal_error", True)
        assert "logits are NaN or infinite" in failure.message
    assert tokens_of({line.key: done[line.key] for line in good}) == tokens_of(run(model, good, decode_concurrency=4))
    assert all(done[line.key].error is None for line in good)
    assert engine.active == 0


@pytest.mark.parametrize("kind", ["qwen3", "olmo3"])
def test_the_slot_of_a_failed_row_is_not_used_as_it_is(kind: str, damaged: Any, line_of: Any, run: Any) -> None:
    """A shorter row in the place of a longer one has the longer one's columns before it, which it does not see; yet
    nothing times NaN is NaN."""
    model = damaged(kind)
    given = {"max_tokens": 40, "eos": [], "logit_bias": {DAMAGED: -100.0}}
    lines = [line_of(i, range(1 + i, 30 + i), **given) for i in range(7)]
    short = [line_of(10 + i, [3 + i], **given) for i in range(3)]
    engine = Engine(model, decode_concurrency=8, prompt_concurrency=8)
    done = run(engine, [*lines, line_of("bad", [*range(1, 20), DAMAGED, *range(1, 10)], **given), *short])
    assert done.pop("bad").error is not None
    assert [finished.error for finished in done.values()] == [None] * 10
    assert tokens_of(done) == tokens_of(run(model, [*lines, *short], decode_concurrency=8))


def test_a_line_fails_in_the_middle_of_its_text(markov: Any, line_of: Any, run: Any) -> None:
    """Logits that turn NaN after some tokens, infinite, or -infinity for all, are found at that step."""
    for value in (NAN, float("inf"), -float("inf")):
        table = np.array(successor())
        table[40] = 0.0 if value != -float("inf") else value
        table[40, 77] = value
        lines = [line_of("bad", [35], max_tokens=20), line_of("good", [50], max_tokens=20)]
        done = run(markov(table), lines)
        assert done["bad"].error.passing
        assert tokens_of(done)["good"] == [list(range(51, 71))]


def test_tokens_that_cannot_come_are_in_order(markov: Any, line_of: Any, run: Any) -> None:
    """-infinity for some of the tokens is a model's way to exclude them."""
    table = np.array(successor())
    table[:, 200:] = -float("inf")
    done = run(markov(table), [line_of("a", [5], max_tokens=4, temperature=1.0, logprobs=True, top_logprobs=20)])
    assert tokens_of(done) == {"a": [[6, 7, 8, 9]]}


def test_a_prefix_of_nan_is_not_kept(damaged: Any, line_of: Any, run: Any) -> None:
    """What lines share is computed anew after one of them failed: it may have been the device, and then passes."""
    model = build("qwen3")
    weights = model.model.model.embed_tokens.weight
    shared = [*range(1, 60), *range(1, 60)]
    lines = [line_of(i, [*shared, 60 + i], max_tokens=4) for i in range(4)]
    expected = run(model, lines)
    engine = Engine(model, decode_concurrency=2, prompt_concurrency=2)
    damage(model, 30)
    done = run(engine, lines)
    assert all(finished.error is not None and finished.error.passing for finished in done.values())
    assert engine.stats.cached_tokens > 0
    model.model.model.embed_tokens.weight = weights
    assert tokens_of(run(engine, lines)) == tokens_of(expected)


@pytest.mark.parametrize("modes", [{"max_kv_size": 16}, {"kv_bits": 8, "kv_group_size": 32}, {"draft": True}])
def test_rows_one_at_a_time(modes: dict[str, Any], line_of: Any, run: Any) -> None:
    """Lines fail in the same way where rows run by themselves, and the next ones begin with clean caches."""
    model = build("qwen3", head_dim=32)
    damage(model, DAMAGED)
    draft = build("qwen3", head_dim=32) if modes.pop("draft", False) else None
    config = model.config
    alone = measure("alone", model.model, model.tokenizer, config, modes=UnbatchedModes(**modes), draft=draft)
    assert not alone.batchable
    given = {"max_tokens": 9, "logit_bias": {DAMAGED: -100.0}}
    lines = [line_of(0, [1, DAMAGED, 2], n=2), line_of(1, [5, 6], **given), line_of(2, [7], **given, temperature=1.0)]
    lines += [line_of(3, [DAMAGED], max_tokens=5), line_of(4, [9], **given)]
    done = run(alone, lines)
    assert [done[key].error is not None for key in range(5)] == [True, False, False, True, False]
    good = [line for line in lines if line.key in (1, 2, 4)]
    assert tokens_of(run(alone, good)) == {key: [done[key].sequences[0].tokens] for key in (1, 2, 4)}


def test_a_suspect_without_finite_logits_is_guilty(markov: Any, line_of: Any, run: Any) -> None:
    """Where lines are tried one by one after a step that failed, NaN is a failure too."""
    table = np.array(successor())
    table[40] = NAN
    model = markov(table, poison=60)
    lines = [line_of("nan", [38], max_tokens=9), line_of("breaks", [59], max_tokens=9), line_of("good", [70])]
    done = run(model, lines, breaks=True)
    assert {key: finished.error is None for key, finished in done.items()} == {
        "nan": False,
        "breaks": False,
        "good": True,
    }


def test_a_model_that_gives_nan_to_anything_is_sick(markov: Any, line_of: Any, run: Any) -> None:
    """No line is to blame for a model that fails at the simplest prompt: the lines stay, the model is named sick."""
    model = markov()
    engine = Engine(model)
    for key in "ab":
        engine.add(line_of(key, [5], max_tokens=50))
    for _ in range(4):
        assert engine.step() == []
    model.model.table = model.model.table * NAN
    with pytest.raises(SickModelError, match=r"at the simplest prompt.*logits are NaN or infinite"):
        run(engine, [])
    assert all(key in engine for key in "ab")


def test_a_model_of_nan_is_not_loaded(markov: Any) -> None:
    """Loading says what is wrong, before any line could fail."""
    model = markov()
    model.model.table = model.model.table * NAN
    with pytest.raises(ModelLoadError, match=r"'m' gives NaN or infinite logits .* convert it again"):
        measure("m", model.model, model.tokenizer, {})


@pytest.mark.parametrize("kind", [mx.float32, mx.float16, mx.bfloat16])
def test_one_maximum_finds_them_all(kind: mx.Dtype) -> None:
    """The check leans on MLX's maximum, which a NaN anywhere makes NaN; other rows have their tokens."""
    logits = np.tile(np.arange(1001, dtype=np.float32) / 100, (8, 1))
    for row, (place, value) in enumerate([(0, NAN), (500, NAN), (1000, NAN), (3, np.inf), (4, -np.inf)]):
        logits[row, place] = value
    logits[5] = -np.inf
    logits[:, 1000] += 9  # the best in few bits, too
    arrays = {"generated": mx.zeros(8, dtype=mx.int32)}
    sampled = Sampler(None)(Features({"greedy"}), mx.array(logits).astype(kind), arrays, {})
    assert sampled.tokens.tolist() == [NO_TOKEN] * 4 + [1000, NO_TOKEN, 1000, 1000]
    assert min(sampled.inputs.tolist()) >= 0


@pytest.mark.parametrize("weight", [0.0, NAN, float("inf")])
def test_weights_that_say_nothing_give_a_position(weight: float) -> None:
    """Whatever is drawn from, positions lie within it: the arrays behind them are read there."""
    for count in (7, 64, 1000):
        weights = mx.full((2, count), weight)
        positions = pick(weights, mx.array([[0.0, 0.0], [0.99, 0.99]]))
        assert all(0 <= place < count for (place,) in positions.tolist())
