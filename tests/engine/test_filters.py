"""The filters keep exactly the tokens that mlx-lm's keep, and rows that the best tokens do not cover are told so."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import assume, given, settings, strategies as st
from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p, apply_xtc

from tests.engine.conftest import compile_again
from worker.engine.sampling.filters import CANDIDATES, best, survivors

BORDER = 2e-5
"""Float sums in another order may fall on the other side of a threshold that is this close; over a large vocabulary,
which mlx-lm adds up one by one, they lose as much for every ``SUMMED`` tokens."""
SUMMED = 8000


@pytest.fixture(autouse=True, scope="module")
def _uncompiled() -> Iterator[None]:
    """mlx-lm compiles a new graph for each parameter value, which takes half a second each."""
    mx.disable_compile()
    yield
    compile_again()


@dataclass(frozen=True)
class Case:
    logits: np.ndarray
    top_p: float = 1.0
    min_p: float = 0.0
    keep: int = 1
    top_k: int = 0
    xtc: bool = False
    threshold: float = 0.1
    exempt: tuple[int, ...] = ()
    half: bool = False
    """Whether the model gives its logits, which are values of bfloat16 then, as such."""

    def reference(self) -> np.ndarray:
        """Log-probabilities after mlx-lm's filters, -inf where a token is cut."""
        raw = mx.array(self.logits[None])
        found = raw - mx.logsumexp(raw, axis=-1, keepdims=True)
        if self.top_p < 1:
            found = apply_top_p(found, self.top_p)
        if self.min_p:
            found = apply_min_p(found, self.min_p, self.keep)
        if self.xtc:
            found = apply_xtc(found, 1.0, self.threshold, list(self.exempt))
        if 0 < self.top_k < len(self.logits):
            found = apply_top_k(found, self.top_k)
        return np.array(found)[0]

    def params(self) -> dict[str, mx.array]:
        def one(value: Any, kind: mx.Dtype) -> mx.array:
            return mx.array([value], dtype=kind)

        params = {
            "top_p": one(self.top_p, mx.float32),
            "min_p": one(math.log(self.min_p) if self.min_p else -math.inf, mx.float32),
            "min_tokens_to_keep": one(self.keep, mx.int32),
            "top_k": one(self.top_k if self.top_k < len(self.logits) else 0, mx.int32),
        }
        if self.xtc:
            params["xtc_probability"] = one(1.0, mx.float32)
            params["xtc_threshold"] = one(self.threshold, mx.float32)
            params["xtc_exempt"] = mx.array([self.exempt or (-1,)], dtype=mx.int32)
        return params

    def kept(self, count: int) -> tuple[np.ndarray, bool]:
        """Ids that survive among the ``count`` best tokens, and whether these cover the filters."""
        logits = mx.array(self.logits[None]).astype(mx.bfloat16 if self.half else mx.float32)
        ids, values = best(logits, count)
        whole = count >= len(self.logits)
        _, kept, covered = survivors(logits, ids, values, self.params(), mx.zeros((1, 1)), with_mass=not whole)
        return np.array(ids)[0][np.array(kept)[0]], bool(covered.item())

    def on_a_border(self) -> bool:
        """Whether a threshold is too close to a value to be sure on which side of it rounding puts the value."""
        lp = np.sort(self.logits.astype(np.float64) - np.logaddexp.reduce(self.logits.astype(np.float64)))[::-1]
        above = np.concatenate([[0.0], np.cumsum(np.exp(lp))[:-1]])
        border = BORDER * max(1, len(lp) / SUMMED)
        near = np.abs(above[1:] - self.top_p).min(initial=1.0) < border if self.top_p < 1 else False
        if self.min_p:
            near |= bool(np.abs(lp - lp[0] - math.log(self.min_p)).min() < BORDER)
        if self.xtc:
            before = Case(self.logits, self.top_p, self.min_p, self.keep).reference().astype(np.float64)
            share = np.exp(before) / np.exp(before).sum()
            near |= bool(np.abs(share - self.threshold).min() < BORDER)  # of survivors, which are few
        return bool(near)

    def check(self, count: int) -> bool:
        """Compare with the reference where covered; whether it was."""
        ids, covered = self.kept(count)
        if not covered:
            return False
        expected = np.flatnonzero(np.isfinite(self.reference()))
        assert sorted(self.logits[ids]) == sorted(self.logits[expected])
        if self.top_k == 0 and self.keep == 1:
            assert sorted(ids) == sorted(expected)
        return True


@st.composite
def cases(draw: st.DrawFn, size: st.SearchStrategy[int]) -> Case:
    count = draw(size)
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    logits = random.normal(size=count) * draw(st.sampled_from([0.3, 1.0, 3.0, 8.0]))
    grain = draw(st.sampled_from([0.0, 0.0, 0.25, 1.0]))
    if grain:
        logits = np.round(logits / grain) * grain
    half = draw(st.booleans())
    kind = mx.bfloat16 if half else mx.float32
    case = Case(
        logits=np.array(mx.array(logits.astype(np.float32)).astype(kind).astype(mx.float32)),
        half=half,
        top_p=draw(st.one_of(st.just(1.0), st.floats(0.01, 0.999))),
        min_p=draw(st.one_of(st.just(0.0), st.floats(0.001, 1.0))),
        keep=draw(st.sampled_from([1, 1, 2, 5])),
        top_k=draw(st.one_of(st.just(0), st.integers(1, count + 3))),
        xtc=draw(st.booleans()),
        threshold=draw(st.floats(0.0, 0.5)),
        exempt=tuple(draw(st.lists(st.integers(0, count - 1), max_size=3))),
    )
    assume(not case.on_a_border())
    return case


@given(case=cases(st.integers(17, 2000)))
@settings(max_examples=120, deadline=None)
def test_sorted_vocabulary_keeps_what_mlx_lm_keeps(case: Case) -> None:
    """On the whole sorted vocabulary any filters keep exactly mlx-lm's survivors, ties included."""
    assert case.check(len(case.logits))


@given(case=cases(st.integers(300, 2000)))
@settings(max_examples=120, deadline=None)
def test_candidates_keep_what_mlx_lm_keeps(case: Case) -> None:
    """Of the best tokens exactly mlx-lm's survivors are kept wherever the row is said to be covered; and it is said to
    be covered whenever the survivors are few and no filter needed to see further."""
    covered = case.check(CANDIDATES)
    few = np.isfinite(case.reference()).sum() < CANDIDATES
    if few and not case.xtc and case.keep < CANDIDATES:
        assert covered


@given(case=cases(st.sampled_from([32_000, 50_257, 151_936])))
@settings(max_examples=30, deadline=None)
def test_large_vocabularies_keep_what_mlx_lm_keeps(case: Case) -> None:
    """The same for the vocabularies of real models, the search for the best tokens in blocks and the mass of all of
    them included; what the candidates do not cover the sorted vocabulary does."""
    assert case.check(CANDIDATES) or case.check(len(case.logits))


@pytest.mark.parametrize("seed", range(3))
def test_large_vocabulary(seed: int) -> None:
    """The usual filters on 32,768 tokens are covered by the candidates."""
    logits = np.random.default_rng(seed).normal(size=32768).astype(np.float32) * 4
    for case in (
        Case(logits, top_p=0.8),
        Case(logits, min_p=0.05),
        Case(logits, top_k=CANDIDATES),
        Case(logits, top_p=0.9, min_p=0.02, top_k=40),
        Case(logits, xtc=True, threshold=0.01, top_k=50),
    ):
        assert not case.on_a_border()
        assert case.check(CANDIDATES)


@pytest.mark.parametrize("size", [257, 1000, 1024, 4096, 32768, 50257])
def test_best_are_the_best(size: int) -> None:
    """``best`` gives the largest values in descending order for any size of vocabulary, ties or not."""
    random = np.random.default_rng(size)
    for logits in (random.normal(size=(3, size)), random.integers(0, 40, size=(3, size))):
        ids, values = best(mx.array(logits.astype(np.float32)), CANDIDATES)
        expected = -np.sort(-logits.astype(np.float32), axis=-1)[:, :CANDIDATES]
        assert np.array_equal(np.array(values), expected)
        assert np.array_equal(np.take_along_axis(logits.astype(np.float32), np.array(ids), axis=-1), expected)
        assert all(len(set(row)) == CANDIDATES for row in np.array(ids).tolist())


def test_flat_nucleus_is_not_covered() -> None:
    """A nucleus wider than the candidates is not taken for one that they hold."""
    flat = Case(np.zeros(5000, dtype=np.float32), top_p=0.9)
    assert flat.kept(CANDIDATES)[1] is False
    assert Case(flat.logits, top_p=0.9, top_k=50).kept(CANDIDATES)[1] is True


def test_xtc_that_looks_beyond_is_not_covered() -> None:
    """With a threshold below all candidates the one that XTC spares is not among them."""
    logits = np.random.default_rng(1).normal(size=5000).astype(np.float32)
    exempt = tuple(np.argsort(-logits)[:4].tolist())
    case = Case(logits, xtc=True, threshold=0.0, top_k=5, exempt=exempt)
    assert case.kept(CANDIDATES)[1] is False
    assert case.check(len(logits))
