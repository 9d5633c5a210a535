"""Rows one at a time: caches in rings, quantised caches, and a draft model that changes no text."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import KVCache, QuantizedKVCache, RotatingKVCache

from jobs.errors import ModelLoadError
from tests.engine.conftest import build
from worker.engine.caches.prompt_cache import leaves
from worker.engine.engine import Engine
from worker.engine.loading.mlx_models import load_draft, load_model, measure
from worker.engine.loading.model import LoadedModel
from worker.engine.unbatched.modes import UnbatchedModes


def prompt_of(length: int, seed: int = 3) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(1, 256) for _ in range(length)]


def again(model: LoadedModel, draft: LoadedModel | None = None, **modes: Any) -> LoadedModel:
    """The same model, measured in other modes."""
    return measure(model.name, model.model, model.tokenizer, model.config, modes=UnbatchedModes(**modes), draft=draft)


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
        load_model(pocket.name, modes=UnbatchedModes(kv_bits=8))


def test_quantised_rings_are_refused() -> None:
    """mlx-lm has none."""
    with pytest.raises(ValueError, match="exclude each other"):
        UnbatchedModes(max_kv_size=64, kv_bits=8)


# -- a draft model ----------------------------------------------------------------------------------------------------


MIXED: list[dict[str, Any]] = [
    {},
    {"eos": range(0, 256, 9)},
    {"eos": range(0, 256, 5), "min_tokens": 15},
    {"temperature": 0.9, "top_p": 0.8, "seed": 7},
    {"temperature": 1.3, "seed": 8, "logprobs": True, "top_logprobs": 4},
    {"temperature": 0.7, "min_p": 0.05, "top_k": 40, "seed": 9, "n": 2},
    {"temperature": 1.0, "xtc_probability": 0.5, "xtc_threshold": 0.05, "seed": 10, "exempt": (0,)},
    {"repetition_penalty": 1.3, "repetition_context_size": 5, "logprobs": True},
    {"repetition_penalty": 1.2, "repetition_context_size": 0, "temperature": 0.8, "seed": 11},
    {"presence_penalty": 0.9, "frequency_penalty": 0.4, "temperature": 1.0, "seed": 12},
    {"frequency_penalty": -0.3, "frequency_context_size": 12, "presence_penalty": 0.5, "presence_context_size": 3},
    {"logit_bias": {5: 4.0, 6: -100.0}, "temperature": 1.0, "seed": 13, "ignore_eos": True},
    {"stop": tuple(chr(0x100 + token) for token in range(3, 256, 20)), "min_tokens": 3},
    {"max_tokens": 1},
    {"max_tokens": 2, "temperature": 1.0, "seed": 14},
]


@pytest.fixture
def mixed(line_of: Any) -> list[Any]:
    """Lines that use every parameter between them, with prompts of many lengths."""
    return [
        line_of(index, prompt_of(1 + 7 * (index % 5), seed=index), **{"max_tokens": 40, **given})
        for index, given in enumerate(MIXED)
    ]


@pytest.fixture(scope="module")
def target(tiny: Any) -> LoadedModel:
    return tiny("qwen3")


@pytest.fixture(scope="module")
def near(target: LoadedModel) -> LoadedModel:
    """A model that mostly, but not always, thinks as ``target`` does."""
    twin = build("qwen3")
    mx.random.seed(5)
    noisy = [
        (name, value + 0.03 * mx.std(value) * mx.random.normal(value.shape))
        for name, value in tree_flatten(twin.model.parameters())
    ]
    twin.model.load_weights(noisy)
    mx.eval(twin.model.parameters())
    return twin


def assert_same(done: dict[Any, Any], expected: dict[Any, Any]) -> None:
    """All that records are made of is the same."""
    assert set(done) == set(expected)
    for key, finished in done.items():
        assert finished.error is None
        for found, wanted in zip(finished.sequences, expected[key].sequences, strict=True):
            for name in ("tokens", "text", "stop_reason", "stop_string", "seed"):
                assert getattr(found, name) == getattr(wanted, name), (key, name)
            assert found.token_logprobs == pytest.approx(wanted.token_logprobs, abs=1e-3)
            for one, other in zip(found.top_logprobs, wanted.top_logprobs, strict=True):
                assert [token for token, _ in one] == [token for token, _ in other]


@pytest.mark.parametrize("count", [1, 4])
def test_draft_changes_no_text(count: int, target: LoadedModel, near: LoadedModel, mixed: Any, run: Any) -> None:
    """Whatever a line's parameters are, its tokens, ends and log-probabilities are those it has without a draft model,
    while a good part of what is proposed is accepted and another is not."""
    engine = Engine(again(target, near, num_draft_tokens=count), prefill_step_size=8)
    done = run(engine, mixed)
    assert_same(done, run(target, mixed))
    stats = engine.stats
    assert 0.2 * stats.drafted_tokens < stats.accepted_tokens < 0.97 * stats.drafted_tokens
    assert stats.completion_tokens == sum(seq.completion_tokens for item in done.values() for seq in item.sequences)
    assert stats.accepted_tokens == sum(seq.accepted_draft_tokens for item in done.values() for seq in item.sequences)


def test_own_draft_is_accepted(target: LoadedModel, mixed: Any, run: Any) -> None:
    """A model that drafts for itself proposes what it would say: nearly all of it is accepted, drawn or not."""
    engine = Engine(again(target, target, num_draft_tokens=3))
    done = run(engine, mixed)
    assert_same(done, run(target, mixed))
    long = [line for line in mixed if len(done[line.key].sequences[0].tokens) == 40]
    assert len(long) > 5
    engine = Engine(again(target, target, num_draft_tokens=3))
    run(engine, long)
    assert engine.stats.accepted_tokens > 0.9 * engine.stats.drafted_tokens
    assert engine.stats.decode_steps < 0.35 * engine.stats.completion_tokens


def test_draft_beyond_the_candidates(tiny: Any, line_of: Any, run: Any) -> None:
    """A row whose filters the best candidates do not cover goes on by the full path here too."""
    model = tiny("qwen3", vocab_size=8192)
    flat = {"temperature": 3.0, "top_p": 0.999, "max_tokens": 30}
    lines = [line_of(seed, prompt_of(9), seed=seed, logit_bias={5: -3.0}, **flat) for seed in range(3)]
    engine = Engine(again(model, model))
    assert_same(run(engine, lines), run(model, lines))
    assert engine.stats.repeated_rows == 3


def test_draft_and_quantised_cache(tiny: Any, near: LoadedModel, line_of: Any, run: Any) -> None:
    """Both together: the texts are those of the quantised cache."""
    plain = tiny("qwen3", head_dim=32)
    lines = [line_of(n, prompt_of(4 + n), max_tokens=30, temperature=n / 2, seed=n) for n in range(3)]
    done = run(again(plain, near, kv_bits=8, kv_group_size=32), lines)
    assert_same(done, run(again(plain, kv_bits=8, kv_group_size=32), lines))


@pytest.mark.parametrize("width", [192, 320])
def test_draft_of_another_width(width: int, target: LoadedModel, mixed: Any, run: Any, tiny: Any) -> None:
    """Families pad their vocabulary to different widths; what only one of the models has is never proposed."""
    lines = mixed[3:7]
    assert_same(run(again(target, tiny("qwen3", vocab_size=width)), lines), run(target, lines))


def test_cancel_with_a_draft(target: LoadedModel, line_of: Any, run: Any) -> None:
    """A line cancelled between a round and its reading ends with the text so far, and the next one runs."""
    engine = Engine(again(target, target))
    for key in "ab":
        engine.add(line_of(key, prompt_of(5), max_tokens=60, eos=[]))
    while engine.stats.completion_tokens < 9:
        engine.step()
    engine.cancel("a")
    done = run(engine, [])
    (expected,) = run(target, [line_of("b", prompt_of(5), max_tokens=60, eos=[])])["b"].sequences
    (cancelled,), (other,) = done["a"].sequences, done["b"].sequences
    assert cancelled.stop_reason == "cancelled"
    assert 9 <= len(cancelled.tokens) < 60
    assert cancelled.tokens == expected.tokens[: len(cancelled.tokens)]
    assert other.tokens == expected.tokens


class Measured:
    """A model that notes how many tokens its caches come to hold."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.layers, self.most = inner, inner.layers, 0

    def __call__(self, tokens: mx.array, cache: list[Any]) -> mx.array:
        logits = self.inner(tokens, cache=cache)
        self.most = max(self.most, cache[0].offset)
        return logits


def test_row_ends_at_its_context(target: LoadedModel, line_of: Any, run: Any) -> None:
    """No token is proposed beyond the context, wherever a round would end: positions may stop there."""
    for context in (20, 21, 22, 23):
        measured = Measured(target.model)
        model = replace(again(target, replace(target, model=measured)), model=measured)
        (done,) = run(model, [line_of("x", prompt_of(10), max_tokens=90, eos=[])], max_context=context).values()
        assert (done.sequences[0].stop_reason, len(done.sequences[0].tokens)) == ("context_length", context - 10)
        assert measured.most == context - 1


def test_penalties_see_all_of_a_growing_row(target: LoadedModel, line_of: Any, run: Any) -> None:
    """A token that nothing but a penalty on the far beginning of the text holds back is held back in every step."""
    prompt = [200, *prompt_of(6)]
    line = line_of("x", prompt, max_tokens=70, eos=[], logit_bias={200: 60.0}, repetition_penalty=100.0,
                   repetition_context_size=0, temperature=0.3)  # fmt: skip
    done = run(again(target, target), [line])
    assert_same(done, run(target, [line]))
    assert 200 not in done["x"].sequences[0].tokens[:50]


class Poisoned:
    """A model that fails when it reads a token."""

    def __init__(self, inner: Any, poison: int) -> None:
        self.inner, self.poison, self.layers = inner, poison, inner.layers

    def __call__(self, tokens: mx.array, cache: list[Any]) -> mx.array:
        if bool((tokens == self.poison).any().item()):
            raise RuntimeError("this token does not go down well")
        return self.inner(tokens, cache=cache)


def test_guilty_line_with_a_draft(target: LoadedModel, near: LoadedModel, line_of: Any, run: Any) -> None:
    """A line that breaks a round fails alone; the others give the texts they give without it."""
    poison = 77
    given = {"max_tokens": 25, "n": 2, "temperature": 1.0, "logit_bias": {poison: -100.0}}  # not proposed either
    lines = [line_of(n, [n + 1, n + 2], seed=n, eos=[], **given) for n in range(4)]
    expected = run(target, lines)
    model = replace(again(target, near), model=Poisoned(target.model, poison))
    guilty = line_of("guilty", [9, poison, 9], max_tokens=20)
    biased = line_of("biased", [9], max_tokens=20, min_tokens=3, logit_bias={poison: 60.0})
    engine = Engine(model)
    done = run(engine, [*lines[:2], guilty, biased, *lines[2:]], breaks=True)
    for key in ("guilty", "biased"):
        assert done.pop(key).error.code == "internal_error"
    assert_same(done, expected)
    assert engine.active == 0


@pytest.mark.parametrize(("kind", "role"), [("gemma3_text", "model"), ("lfm2", "--draft-model")])
def test_draft_needs_caches_that_forget(kind: str, role: str, target: LoadedModel, tiny: Any) -> None:
    """Windows and recurrent layers cannot take back what was refused: said at load, with whose fault it is."""
    pair = (tiny(kind), target) if role == "model" else (target, tiny(kind))
    with pytest.raises(ModelLoadError, match=f"^{role} '{kind}' cannot take back tokens"):
        again(*pair)


def test_draft_of_another_vocabulary(target: LoadedModel, near: LoadedModel) -> None:
    """Models of different vocabularies are refused, with both sizes."""
    other = replace(near, name="other", tokenizer=replace(near.tokenizer, vocab_size=300))
    with pytest.raises(ModelLoadError, match=r"'other' has a vocabulary of 300 tokens and model 'qwen3' one of 256"):
        again(target, other)


def test_missing_draft() -> None:
    """A draft model that is not there is named as such."""
    with pytest.raises(ModelLoadError, match=r"^--draft-model: no model at '/no/such'"):
        load_draft("/no/such")


def test_memory_of_a_draft(target: LoadedModel, near: LoadedModel) -> None:
    """A row costs what it takes in both models' caches."""
    assert again(target, near).cache_cost(100) == target.cache_cost(100) + near.cache_cost(100)


@pytest.mark.parametrize(
    ("modes", "part"),
    [
        ({"max_kv_size": 64}, "--max-kv-size keeps its caches in rings"),
        ({"kv_bits": 8, "kv_group_size": 32}, "--kv-bits quantises its KV cache"),
        ({"num_draft_tokens": 2}, "--draft-model .* proposes the tokens of one row only"),
    ],
)
def test_why_rows_run_one_at_a_time(
    modes: dict[str, Any], part: str, pocket: LoadedModel, caplog: pytest.LogCaptureFixture
) -> None:
    """Loading says once why the batch is 1."""
    draft = load_draft(pocket.name) if "num_draft_tokens" in modes else None
    model = load_model(pocket.name, modes=UnbatchedModes(**modes), draft=draft)
    assert Engine(model, decode_concurrency=32).capacity == 1
    said = [record.getMessage() for record in caplog.records]
    (line,) = [message for message in said if "one row at a time" in message]
    assert re.search(f"runs one row at a time: {part}", line)
