"""Scores of prompts are those of one forward of the model alone, whatever is beside them and whatever they share."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_map
from mlx_lm.tuner.utils import load_adapters
from mlx_lm.utils import load_model as load_with_mlx_lm

from tests.engine.conftest import POCKET, build
from tests.engine.families import FAMILIES
from tests.engine.scorer import EXAMPLES, Scorer, a_mixture, tokens_of
from tests.engine.test_adapters import save_adapter
from worker.engine.engine import Engine
from worker.engine.loading.mlx_models import load_model, measure
from worker.engine.loading.model import LoadedModel
from worker.engine.scoring import packed_unit
from worker.engine.scoring.head import SplitModel
from worker.engine.scoring.likelihoods import likelihoods
from worker.engine.scoring.task import ScoringTask
from worker.engine.unbatched.modes import UnbatchedModes


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_scores_as_alone(kind: str, tiny: Any, line_of: Any) -> None:
    """Questions, choices and texts of many lengths at once have, in every family, the scores they have alone."""
    scorer = Scorer(tiny(kind), line_of)
    a_mixture(scorer)
    scorer.finish()
    scorer.compare()
    assert SplitModel(scorer.model).split
    assert len(scorer.done["before"].sequences[0].tokens) == 12
    assert scorer.done[18].sequences[0].completion_tokens == 4
    assert scorer.engine._scheduler.room.lent == 0


def converted(model: LoadedModel, change: Any) -> LoadedModel:
    change(model.model)
    mx.eval(model.model.parameters())
    return measure(model.name, model.model, model.tokenizer, model.config)


@pytest.mark.parametrize("kind", ["qwen3", "gemma3_text", "qwen3_moe", "lfm2"])
def test_quantised_models_score_as_alone(kind: str, tiny: Any, line_of: Any) -> None:
    """Weights of four bits, those of the head among them, change nothing about it."""
    model = converted(tiny(kind, hidden_size=64), lambda inner: nn.quantize(inner, group_size=32, bits=4))
    scorer = Scorer(model, line_of)
    a_mixture(scorer)
    scorer.finish()
    scorer.compare(1e-3)


def test_experts_in_half_precision_score_as_alone(tiny: Any, line_of: Any) -> None:
    """Experts packed into four bits, all else in float16, as such models mostly are: as near to the same weights with
    all else in float32 as a forward of its own. Unpacked experts in float16 are nothing that MLX computes without a
    GPU."""
    half = tree_map(lambda array: array.astype(mx.float16), tiny("qwen3_moe").model.parameters())

    def change(inner: Any) -> None:
        inner.update(half)
        nn.quantize(inner, group_size=32, bits=4)

    def widen(inner: Any) -> None:
        change(inner)
        inner.update(tree_map(lambda a: a.astype(mx.float32) if a.dtype == mx.float16 else a, inner.parameters()))

    model, exact = (converted(tiny("qwen3_moe", rms_norm_eps=1e-5), how) for how in (change, widen))
    scorer = Scorer(model, line_of)
    a_mixture(scorer)
    scorer.finish()
    errors = scorer.errors(model, exact)
    assert errors[0].mean() <= 1.2 * errors[1].mean() + 1e-6
    assert errors[0].max() <= 2 * errors[1].max()


@pytest.mark.parametrize("kind", ["llama", "olmo3", "gemma3_text", "lfm2"])
def test_half_precision_scores_as_alone(kind: str, tiny: Any, line_of: Any) -> None:
    """A model in float16 is as near to the same weights in float32 as a forward of its own: what is rounded is its
    states and logits, and nothing after them."""
    half = tree_map(lambda array: array.astype(mx.float16), tiny(kind).model.parameters())
    wide = tree_map(lambda array: array.astype(mx.float32), half)
    model, exact = (
        converted(tiny(kind, rms_norm_eps=1e-5), lambda inner, weights=weights: inner.update(weights))
        for weights in (half, wide)
    )
    scorer = Scorer(model, line_of)
    a_mixture(scorer)
    scorer.finish()
    errors = scorer.errors(model, exact)
    assert errors[0].mean() <= 1.05 * errors[1].mean() + 1e-6
    assert errors[0].max() <= 2 * errors[1].max()


def test_what_texts_share_is_computed_once(tiny: Any, line_of: Any) -> None:
    """Of questions behind the same examples, with four choices each, only the first computes the examples, and each
    question is computed once: so little is left to compute."""
    scorer = Scorer(tiny("qwen3"), line_of)
    for question in range(8):
        asked = [*EXAMPLES, *tokens_of(20, 10 + question)]
        for choice in range(4):
            scorer.add([*asked, *tokens_of(3, 100 + 4 * question + choice)], len(asked))
    scorer.finish()
    scorer.compare()
    stats = scorer.engine.stats
    assert stats.prefilled_tokens == len(EXAMPLES) + 8 * 20 + 8 * 4 * 2
    assert stats.prompt_tokens == 8 * 4 * (len(EXAMPLES) + 20 + 3)
    assert stats.cached_tokens == stats.prompt_tokens - stats.prefilled_tokens - 8 * 4
    assert stats.scored_tokens == 8 * 4 * 3


def test_no_token_that_texts_share_is_computed_twice(tiny: Any, line_of: Any) -> None:
    """Questions that begin alike behind the examples, and choices that begin alike: beside a row that generates each
    beginning is computed once."""
    scorer = Scorer(tiny("qwen3"), line_of)
    scorer.generate("beside", tokens_of(9, 1), max_tokens=60, eos=[])
    texts = []
    for question in range(6):
        asked = [*EXAMPLES, *tokens_of(6, 5 + question % 2), *tokens_of(20, 10 + question)]
        for choice in range(4):
            texts.append([*asked, *tokens_of(2, 100 + choice % 2), *tokens_of(2, 120 + choice)])
            scorer.add(texts[-1], len(asked), top=2)
    scorer.finish()
    scorer.compare()
    distinct = {tuple(text[:end]) for text in texts for end in range(1, len(text))}
    assert scorer.engine.stats.prefilled_tokens == len(distinct) + 8


def test_texts_go_on_from_what_was_scored(tiny: Any, line_of: Any) -> None:
    """A prompt that is scored and then continued is computed once, whether others begin with it or not, and its text
    is the one it has without scores."""
    model = tiny("qwen3")
    scorer, plain = Scorer(model, line_of), Engine(model, decode_concurrency=3)
    prompts = [tokens_of(40, 7), [*tokens_of(40, 7), *tokens_of(9, 8)], [*tokens_of(40, 7), *tokens_of(4, 9)]]
    prompts += [tokens_of(length, length) for length in (2, 11, 60)]
    for key, prompt in enumerate(prompts):
        scorer.add(prompt, max_tokens=7, eos=[], n=2)
        plain.add(line_of(key, prompt, max_tokens=7, eos=[], n=2))
    scorer.finish()
    scorer.compare()
    texts = {}
    while plain.has_work:
        texts |= {finished.key: [row.tokens for row in finished.sequences] for finished in plain.step()}
    assert {key: [row.tokens for row in ended.sequences] for key, ended in scorer.done.items()} == texts
    assert scorer.engine.stats.prefilled_tokens < sum(map(len, prompts)) - 60
    assert scorer.engine.pending == scorer.engine.active == 0


def test_ties_are_broken_as_greedy_decoding_does(markov: Any, line_of: Any) -> None:
    """Of equal logits the first is the one that decoding takes, and the others are of the same rank."""
    table = mx.zeros((256, 256))
    table[:, 7] = 5.0
    table[:, 9] = 5.0
    scorer = Scorer(markov(table), line_of)
    for token in (7, 9, 3):
        scorer.add([4, token])
    scorer.finish()
    scores = [scorer.done[key].sequences[0].scores for key in range(3)]
    assert [one.greedy for one in scores] == [[True], [False], [False]]
    assert [one.ranks for one in scores] == [[1], [1], [3]]


def test_a_first_token_follows_nothing(tiny: Any, line_of: Any) -> None:
    """A prompt of one token has nothing that could be scored, and is done at once."""
    scorer = Scorer(tiny("qwen3"), line_of)
    scorer.add([5])
    scorer.add([6], max_tokens=3, eos=[])
    scorer.finish()
    assert scorer.done[0].sequences[0].scores.logprobs == []
    assert scorer.done[0].sequences[0].stop_reason == "scored"
    assert len(scorer.done[1].sequences[0].tokens) == 3


def test_logits_go_in_parts(tiny: Any) -> None:
    """Whatever the memory for logits, the likelihoods are the same."""
    split, tokens = SplitModel(tiny("qwen3")), tokens_of(30, 3)
    states = split.states(mx.array([tokens[:-1]]), split.new_cache())[0]
    whole, parts = (
        likelihoods(split, states, mx.array(tokens[1:]), 3, budget).read() for budget in (1 << 30, 7 * 4 * 256)
    )
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_sums_do_not_drift(markov: Any, line_of: Any) -> None:
    """The sum over 8,191 tokens is as near to that of float64 as its terms are; one in float32 is ten times as far."""
    draw = np.random.default_rng(3)
    table = draw.normal(size=(256, 256)).astype(np.float32) * 4
    scorer = Scorer(markov(mx.array(table)), line_of, prefill_step_size=2048)
    prompt = tokens_of(8192, 3)
    scorer.add(prompt)
    scorer.finish()
    scores = scorer.done[0].sequences[0].scores
    wide = table.astype(np.float64)
    exact = wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    terms = exact[prompt[:-1], prompt[1:]]
    assert scores.total(1) == math.fsum(scores.logprobs)
    assert abs(scores.total(1) - terms.sum()) < 3e-7 * len(terms)
    assert abs(float(np.cumsum(terms.astype(np.float32))[-1]) - terms.sum()) > 3e-6 * len(terms)


def test_memory_is_kept_to(tiny: Any, line_of: Any) -> None:
    """Under a tight limit texts are scored beside rows that decode, and one that never fits fails at once."""
    model = tiny("qwen3")
    limit = 3 * model.cache_cost(512)
    scorer = Scorer(model, line_of, memory_limit=limit, prefix_memory=0)
    room, most = scorer.engine._scheduler.room, 0
    scorer.generate("text", tokens_of(20, 1), max_tokens=60, eos=[])
    for length in (300, 40, 41, 310, 42):
        scorer.add(tokens_of(length, length))
    scorer.engine.add(replace(line_of("long", tokens_of(3000, 5), max_tokens=0), scoring=ScoringTask(1)))
    while scorer.engine.has_work:
        most = max(most, room.lent + room.decoding)
        scorer.done |= {finished.key: finished for finished in scorer.engine.step()}
    assert 0 < most <= limit
    assert scorer.done.pop("long").error.code == "context_length_exceeded"
    assert len(scorer.done["text"].sequences[0].tokens) == 60
    scorer.compare()


def test_what_is_too_much_for_a_packed_sequence_goes_in_rows(tiny: Any, line_of: Any) -> None:
    """Where all texts of a beginning do not fit into memory as one sequence, the beginning is computed once still, and
    a few texts at a time go on from it. Long texts are not packed, whatever the memory."""
    model = tiny("qwen3")
    scorer = Scorer(model, line_of, memory_limit=model.cache_cost(850), prefix_memory=0)
    for number in range(30):
        scorer.add([*tokens_of(120, 1), number + 1, *tokens_of(19, 2 + number)])
    scorer.finish()
    scorer.compare()
    assert scorer.engine.stats.prefilled_tokens == 120 + 30 * 19
    for length, packed in ((1900, True), (2100, False)):
        scorer = Scorer(model, line_of)
        for number in range(2):
            scorer.add([*tokens_of(60, 1), *tokens_of(length, 2 + number)])
        assert (scorer.engine._scoring._next(None).packed > 0) == packed


def test_memory_is_kept_to_where_texts_share(tiny: Any, line_of: Any) -> None:
    """Texts of one beginning that have no room together are scored in parts that do, and not one by one."""
    model = tiny("qwen3")
    scorer = Scorer(model, line_of, memory_limit=2 * model.cache_cost(512), prefix_memory=0)
    room, most, left = scorer.engine._scheduler.room, 0, set()
    for question in range(40):
        scorer.add([*EXAMPLES, *tokens_of(30, question)], max_tokens=1, temperature=0.0, eos=[])
    while scorer.engine.has_work:
        most = max(most, room.lent)
        left.add(len(scorer.engine._scoring))
        scorer.done |= {finished.key: finished for finished in scorer.engine.step()}
    scorer.compare()
    assert 0 < most <= room.memory
    assert 1 < len(left) < 20


def test_cancelled_texts_end(tiny: Any, line_of: Any) -> None:
    """A line that is cancelled while it waits, or while it is scored, ends so; its neighbours have their scores."""
    scorer = Scorer(tiny("qwen3"), line_of, prefill_step_size=32)
    for length in (50, 60, 70, 20):
        scorer.add(tokens_of(length, length))
    scorer.engine.step()
    scorer.engine.cancel(0)
    scorer.engine.cancel(3)
    scorer.finish()
    reasons = [scorer.done[key].sequences[0].stop_reason for key in range(4)]
    assert reasons == ["cancelled", "scored", "scored", "cancelled"]


def test_a_text_that_breaks_the_model_fails_alone(markov: Any, line_of: Any) -> None:
    """Where a text makes a step fail, it alone fails, and what was beside it is scored."""
    engine = Engine(markov(poison=66))
    for key, prompt in enumerate([[1, 2, 3], [1, 2, 66, 4], [5, 6, 7]]):
        engine.add(replace(line_of(key, prompt, max_tokens=0), scoring=ScoringTask(1)))
    done = {}
    while engine.has_work:
        done |= {finished.key: finished for finished in engine.step()}
    assert [done[key].error is None for key in range(3)] == [True, False, True]
    assert engine.stats.recoveries == 1


def test_prompts_whose_token_cannot_be_drawn_together_end_alone(
    tiny: Any, line_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where drawing with the scores fails, each line is tried by itself and has its token from there: once."""

    def broken(*args: Any) -> None:
        raise RuntimeError("no memory for this")

    monkeypatch.setattr(packed_unit, "next_tokens", broken)
    engine = Engine(tiny("qwen3"))
    for key in range(3):
        line = line_of(key, [*EXAMPLES, key + 1], max_tokens=1, eos=[])
        engine.add(replace(line, scoring=ScoringTask(1, generates=True)))
    done = {}
    while engine.has_work:
        done |= {finished.key: finished.sequences[0] for finished in engine.step()}
    assert [(len(row.tokens), len(row.scores.logprobs)) for row in done.values()] == [(1, len(EXAMPLES))] * 3
    assert engine.stats.recoveries == 1


def test_logits_that_are_no_numbers_are_found(markov: Any, line_of: Any) -> None:
    """NaN or infinite logits are no score: the line fails with a reason that may pass."""
    table = mx.zeros((256, 256))
    table[9] = mx.nan
    table[10, 5] = mx.inf
    engine = Engine(markov(table))
    for key, prompt in enumerate([[1, 2, 3], [9, 2], [10, 2], [4, 9]]):
        engine.add(replace(line_of(key, prompt, max_tokens=0), scoring=ScoringTask(1)))
    done = {}
    while engine.has_work:
        done |= {finished.key: finished for finished in engine.step()}
    assert [done[key].error is None for key in range(4)] == [True, False, False, True]
    assert done[1].error.passing


def test_packed_neighbours_of_what_is_no_number_are_scored(line_of: Any) -> None:
    """A token whose state is NaN fails its own line. Texts that were packed with it have their scores."""
    model = build("llama")
    model.model.model.embed_tokens.weight[99] = mx.nan
    scorer = Scorer(model, line_of)
    for rest in ([5, 6, 7], [9, 5, 6], [4, 4]):
        scorer.add([*tokens_of(40, 2), *rest], 40)
    failing = line_of("failing", [*tokens_of(40, 2), 8, 99, 7], max_tokens=0)
    scorer.engine.add(replace(failing, scoring=ScoringTask(40)))
    scorer.finish()
    assert scorer.done["failing"].error.passing
    scorer.compare()


def test_adapters_score_as_alone(pocket: LoadedModel, tmp_path: Path, line_of: Any) -> None:
    """Lines with an adapter have the scores of mlx-lm's model with it, which are not those of its base."""
    adapter = save_adapter(tmp_path / "adapter", POCKET, seed=1)
    models = [pocket, load_model(str(POCKET), adapter_path=str(adapter), share=pocket)]
    scorers = [Scorer(model, line_of) for model in models]
    prompts = [[*EXAMPLES[:20], *tokens_of(length, length)] for length in (3, 4, 20)]
    for scorer in scorers:
        for prompt in prompts:
            scorer.add(prompt)
        scorer.finish()
    adapted, _ = load_with_mlx_lm(POCKET)
    load_adapters(adapted, str(adapter))
    for key, prompt in enumerate(prompts):
        logits = adapted(mx.array([prompt]))[0].astype(mx.float32)
        wanted = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))[range(len(prompt) - 1), prompt[1:]]
        plain, own = (scorer.done[key].sequences[0].scores.logprobs for scorer in scorers)
        np.testing.assert_allclose(own, wanted, atol=1e-4, rtol=0)
        assert np.abs(np.array(plain) - wanted).max() > 0.1


@pytest.mark.parametrize("options", [{"max_kv_size": 64}, {"kv_bits": 8, "kv_group_size": 32}])
def test_modes_of_one_row_score_too(options: dict[str, int], line_of: Any) -> None:
    """Lines are scored one at a time where rows run so, with the caches of that mode."""
    made = build("qwen3", head_dim=32)
    model = measure("qwen3", made.model, made.tokenizer, made.config, modes=UnbatchedModes(**options))
    scorer = Scorer(model, line_of)
    for length in (12, 33):
        scorer.add(tokens_of(length, length), top=2)
    scorer.add(tokens_of(20, 4), max_tokens=3, eos=[])
    scorer.finish()
    scorer.compare()
    assert len(scorer.done[2].sequences[0].tokens) == 3


def test_a_draft_model_changes_no_score(tiny: Any, line_of: Any) -> None:
    """With a draft model lines are scored by the model itself, and those that generate too go on with both."""
    made, draft = build("qwen3"), tiny("llama")
    model = measure("qwen3", made.model, made.tokenizer, made.config, draft=draft)
    scorer = Scorer(model, line_of)
    scorer.add(tokens_of(30, 2), top=2)
    scorer.add(tokens_of(20, 4), max_tokens=5, eos=[])
    scorer.finish()
    scorer.compare()
    assert len(scorer.done[1].sequences[0].tokens) == 5


def test_several_prompts_of_one_line(tiny: Any, line_of: Any) -> None:
    """Prompts of one line are choices in their order, scored or not, whatever their lengths."""
    prompts = [tokens_of(length, length) for length in (30, 3, 17)]
    engine = Engine(tiny("qwen3"), decode_concurrency=2)
    for key, task in (("scored", ScoringTask(1, generates=True)), ("plain", None)):
        parts = [replace(line_of(key, prompt, max_tokens=4, eos=[], n=2), scoring=task) for prompt in prompts]
        engine.add(replace(parts[0], others=tuple(parts[1:])))
    done = {}
    while engine.has_work:
        done |= {finished.key: finished for finished in engine.step()}
    scored, plain = (done[key].sequences for key in ("scored", "plain"))
    assert [row.choice for row in scored] == list(range(6))
    assert [list(row.prompt) for row in scored] == [prompt for prompt in prompts for _ in range(2)]
    assert [row.tokens for row in scored] == [row.tokens for row in plain]
    assert [len(row.scores.logprobs) for row in scored] == [29, 29, 2, 2, 16, 16]


@pytest.mark.parametrize("kind", ["llama", "qwen3", "qwen3_moe", "gemma3_text", "lfm2", "olmo3"])
def test_one_token_comes_with_the_scores(kind: str, tiny: Any, line_of: Any) -> None:
    """A text of one token is the one that a prompt without scores has, whatever its parameters; also beside prompts
    that are only scored, that end where others go on, or that are there twice."""
    scorer, plain = Scorer(tiny(kind), line_of), Engine(tiny(kind), decode_concurrency=3)
    prompts = [[*EXAMPLES, *tokens_of(9 + choice % 3, 5 + choice // 3)] for choice in range(12)]
    prompts += [EXAMPLES, prompts[3], prompts[4][:-1], [*prompts[4], 7, 9]]
    forms = [
        {"temperature": 0.0, "logprobs": True, "top_logprobs": 2},
        {"temperature": 0.0, "logit_bias": {17: 1000.0}},
        {"temperature": 1.0, "seed": 3, "n": 3, "logprobs": True},
        {"temperature": 0.8, "top_p": 0.3, "seed": 4},
        {"temperature": 1.5, "xtc_probability": 1.0, "xtc_threshold": 0.01, "seed": 5},
        {"temperature": 0.0, "repetition_penalty": 1.9, "repetition_context_size": 20},
        {"temperature": 0.0, "eos": range(128)},
        {"temperature": 0.0, "eos": range(1, 200), "min_tokens": 1},
    ]
    for key, prompt in enumerate(prompts):
        given = {"max_tokens": 1, **forms[key % len(forms)]}
        scorer.add(prompt, 1 if key % 3 else len(prompt) - 2, top=key % 2, **given)
        plain.add(line_of(key, prompt, **given))
    scorer.add([*EXAMPLES, 5, 6])
    scorer.finish()
    scorer.compare()
    expected = {}
    while plain.has_work:
        expected |= {finished.key: finished for finished in plain.step()}
    for key, wanted in expected.items():
        for one, other in zip(scorer.done[key].sequences, wanted.sequences, strict=True):
            assert (one.tokens, one.stop_reason) == (other.tokens, other.stop_reason)
            np.testing.assert_allclose(one.token_logprobs, other.token_logprobs, atol=1e-4)
            assert [[token for token, _ in best] for best in one.top_logprobs] == [
                [token for token, _ in best] for best in other.top_logprobs
            ]
    assert bool(scorer.engine.stats.decode_steps) == (not scorer.engine._scoring._splitting.packs)
