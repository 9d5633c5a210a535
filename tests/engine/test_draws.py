"""Draws follow the distribution, depend on seed and position alone, and never on what shares the batch."""

from __future__ import annotations

import itertools
import math
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from jobs.params import Sampling
from worker.engine.loading.mlx_models import compiler_present
from worker.engine.sampling import row_params
from worker.engine.sampling.draws import pick
from worker.engine.sampling.filters import CANDIDATES
from worker.engine.sampling.sampler import Sampler, sample
from worker.engine.sequence import PreparedLine, Sequence

ROWS, STEPS = 64, 150
UNIFORMS_OF_0 = [0.5330528, 0.0628252, 0.1602231]


def row_of(seed: int, **given: Any) -> Sequence:
    sampling = Sampling(**{"seed": seed, "temperature": 1.0, **given})
    return Sequence(PreparedLine("x", (1,), sampling, frozenset(), xtc_exempt=(3,)), 0, seed, limit=10**6)


def draw(logits: np.ndarray, count: int = STEPS, *, full: bool = False, stride: int = 1, **given: Any) -> np.ndarray:
    """``[count, ROWS]`` tokens drawn from one distribution, with seeds 0, 1, 2... (times ``stride``) and positions 0,
    1, 2..."""
    batch = [row_of(seed * stride, **given) for seed in range(ROWS)]
    for row in batch:
        row.full = 10**6 if full else 0
    arrays = row_params.build(batch, len(logits))
    wide = mx.broadcast_to(mx.array(logits.astype(np.float32))[None], (ROWS, len(logits)))
    found = []
    for _ in range(count):
        step = sample(arrays.features, wide, arrays.state, arrays.params)
        arrays.state = {name: step[name] for name in arrays.state}
        found.append(step["tokens"])
    return np.array(mx.stack(found))


def softmax(logits: np.ndarray) -> np.ndarray:
    odds = np.exp(logits - logits.max())
    return odds / odds.sum()


def assert_distributed(tokens: np.ndarray, expected: np.ndarray) -> None:
    """Chi-square over the tokens that are expected at least 8 times, the others as one; 1 in 10,000 fails by chance,
    and the seeds are fixed."""
    total = tokens.size
    counts = np.bincount(tokens.ravel(), minlength=len(expected)).astype(float)
    assert counts[expected == 0].sum() == 0
    common = expected * total >= 8
    observed = np.append(counts[common], counts[~common].sum())
    wanted = np.append(expected[common], expected[~common].sum()) * total
    usable = wanted > 0
    statistic = ((observed - wanted)[usable] ** 2 / wanted[usable]).sum()
    freedom = int(usable.sum()) - 1
    # Wilson and Hilferty's approximation of the quantile.
    limit = freedom * (1 - 2 / (9 * freedom) + 3.72 * math.sqrt(2 / (9 * freedom))) ** 3
    assert statistic < limit


LOGITS = np.random.default_rng(3).normal(size=600) * 2.5


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_dense_draws_follow_the_softmax(temperature: float) -> None:
    """Without filters tokens come as often as softmax(logits / temperature) says."""
    assert_distributed(draw(LOGITS, temperature=temperature), softmax(LOGITS / temperature))


@pytest.mark.parametrize("full", [False, True])
def test_filtered_draws_follow_the_survivors(full: bool) -> None:
    """With filters the survivors come in proportion, at the temperature, and nothing else comes; by both paths."""
    shares = softmax(LOGITS)
    order = np.argsort(-shares)
    above = np.concatenate([[0.0], np.cumsum(shares[order])[:-1]])
    kept = order[(above < 0.8) & (np.arange(len(order)) < 30)]
    expected = np.zeros(len(shares))
    expected[kept] = softmax(LOGITS[kept] / 0.7)
    assert_distributed(draw(LOGITS, top_p=0.8, top_k=30, temperature=0.7, full=full), expected)


def test_xtc_comes_with_its_probability() -> None:
    """XTC cuts the tokens above its threshold, all but the last of them, in its share of the steps only."""
    logits = np.log(np.array([0.3, 0.25, 0.2, 0.15, 0.1] + [1e-12] * 10))
    shares = softmax(logits)
    cut = shares.copy()
    cut[[0, 1]] = 0  # 2 is the last above the threshold, 3 is exempt but below it
    expected = 0.4 * cut / cut.sum() + 0.6 * shares
    tokens = draw(logits, xtc_probability=0.4, xtc_threshold=0.18)
    assert_distributed(tokens, np.where(expected < 1e-9, 0, expected))


def test_tail_is_not_lost() -> None:
    """A hundred thousand tokens that share a hundredth of the mass get a hundredth of the draws."""
    weights = np.full(100_001, 0.01 / 100_000)
    weights[0] = 0.99
    repeated = mx.broadcast_to(mx.array(weights.astype(np.float32))[None], (8, len(weights)))
    hits = 0
    for step in range(250):
        uniforms = mx.random.uniform(shape=(8, 2), key=mx.random.key(step))
        hits += int((pick(repeated, uniforms) != 0).sum())
    assert 6 <= hits <= 36  # 20 of 2000 expected, 4.4 the deviation


def test_draws_do_not_depend_on_the_batch() -> None:
    """A row draws the same tokens alone, in another place, and among rows that need every other feature."""
    logits = np.random.default_rng(5).normal(size=(3000,)).astype(np.float32) * 3
    kinds: list[dict[str, Any]] = [
        {},
        {"top_p": 0.7},
        {"top_k": 40, "min_p": 0.02},
        {"temperature": 0.0},
        {"xtc_probability": 0.5, "top_k": 50},
        {"xtc_probability": 0.5},
        {"repetition_penalty": 1.3, "top_p": 0.9},
        {"logprobs": True, "top_logprobs": 5, "presence_penalty": 0.5, "frequency_penalty": 0.2, "min_tokens": 4},
        {"logit_bias": {5: 3.0}, "top_k": CANDIDATES + 50},
    ]

    def tokens_of(rows: list[Sequence]) -> dict[int, list[int]]:
        arrays = row_params.build(rows, len(logits))
        wide = mx.broadcast_to(mx.array(logits)[None], (len(rows), len(logits)))
        found: dict[int, list[int]] = {row.seed: [] for row in rows}
        for _ in range(8):
            step = sample(arrays.features, wide, arrays.state, arrays.params)
            arrays.state = {name: step[name] for name in arrays.state}
            for row, token in zip(rows, step["tokens"].tolist(), strict=True):
                found[row.seed].append(token)
        return found

    def rows(order: list[int]) -> list[Sequence]:
        return [row_of(100 + index, **kinds[index]) for index in order]

    together = tokens_of(rows(list(range(len(kinds)))))
    assert tokens_of(rows(list(reversed(range(len(kinds)))))) == together
    for index in range(len(kinds)):
        assert tokens_of(rows([index])) == {100 + index: together[100 + index]}


@pytest.mark.parametrize("kind", [mx.bfloat16, mx.float16])
def test_greedy_in_half_precision_is_mlx_lms(kind: mx.Dtype) -> None:
    """Where normalising in half precision makes tokens equal that were not, the same one is taken as in mlx-lm; alone,
    and next to rows that draw."""
    logits = (mx.random.normal((200, 300), key=mx.random.key(2)) * 0.2).astype(kind)
    expected = mx.argmax(logits - mx.logsumexp(logits, axis=-1, keepdims=True), axis=-1)
    assert bool((expected != mx.argmax(logits, axis=-1)).any())
    rows = [row_of(seed, temperature=0.0) for seed in range(200)]
    for batch in (rows, [row_of(0, top_p=0.5), *rows[1:]]):
        arrays = row_params.build(batch, 300)
        tokens = sample(arrays.features, logits, arrays.state, arrays.params)["tokens"]
        assert tokens.tolist()[1:] == expected.tolist()[1:]


@pytest.mark.parametrize("given", [{}, {"top_p": 0.9}, {"min_p": 0.01}])
def test_coldest_temperatures_take_the_best(given: dict[str, Any]) -> None:
    """However small a temperature is, it is no division by zero."""
    for temperature in (1e-3, 1e-30, 5e-324):
        assert set(draw(LOGITS, 3, temperature=temperature, **given).ravel()) == {int(LOGITS.argmax())}


def test_hot_temperatures_reach_everything() -> None:
    """At the highest temperature all tokens are nearly alike."""
    assert_distributed(draw(LOGITS, temperature=100.0), softmax(LOGITS / 100))


@pytest.mark.parametrize("stride", [1, 2**32])
def test_neighbouring_seeds_share_no_draws(stride: int) -> None:
    """One seed at one position does not draw what another does at the next."""
    tokens = draw(np.zeros(5000), count=20, stride=stride)
    series = [tuple(tokens[:, seed]) for seed in range(10)]
    for one, other in itertools.combinations(series, 2):
        assert len(set(one) & set(other)) <= 3


def test_seeds_mean_the_same_for_ever() -> None:
    """A recorded seed gives the same random numbers in later versions and on other machines."""
    assert row_params.draw_key(0) == (2487615331, 3632599051)
    assert row_params.draw_key(2**64 - 1) == (1692761239, 2316075020)
    uniforms = mx.random.uniform(shape=(3,), key=mx.array(row_params.draw_key(0), dtype=mx.uint32))
    assert uniforms.tolist() == pytest.approx(UNIFORMS_OF_0, abs=1e-6)


@pytest.mark.skipif(not compiler_present(), reason="g++ not on PATH")
def test_values_never_make_a_graph() -> None:
    """Rows of other parameters run on the graph that is there; only shapes and kinds of features make one."""
    sampler = Sampler()
    logits = mx.random.normal((4, 500), key=mx.random.key(0))

    def step(**given: Any) -> None:
        rows = [row_of(seed, **given) for seed in range(4)]
        arrays = row_params.build(rows, 500)
        # Tracing alone: to run the graph would call a C++ compiler on the CPU build.
        sampler(arrays.features, logits, arrays.state, arrays.params)

    for value in (0.1, 0.2, 0.3, 0.75):
        step(top_p=value, temperature=1 + value, min_p=value / 2, top_k=int(value * 100))
    assert sampler.traces == 1
    for value in (0.3, 0.9):
        step(temperature=value)
    assert sampler.traces == 2
