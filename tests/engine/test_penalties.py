"""Bias and penalties change the logits as mlx-lm's processors do, step after step, each row by its own values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from mlx_lm.sample_utils import make_logits_processors

from jobs.params import Sampling
from tests.engine.conftest import compile_again
from worker.engine.sampling import row_params
from worker.engine.sampling.sampler import adjust, sample
from worker.engine.sequence import PreparedLine, Sequence

VOCAB = 24


@pytest.fixture(autouse=True, scope="module")
def _uncompiled() -> Iterator[None]:
    mx.disable_compile()
    yield
    compile_again()


def row_of(prompt: list[int], **given: Any) -> Sequence:
    sampling = Sampling(**{"seed": 1, **given})
    return Sequence(PreparedLine("x", tuple(prompt), sampling, frozenset({0})), 0, seed=1, limit=1000)


def reference(row: Sequence, logits: np.ndarray) -> np.ndarray:
    """mlx-lm's own processors, and the definition for what mlx-lm has not: penalties on the output only."""
    item, everything = row.sampling, [*row.prompt, *row.tokens]
    seen = {name: getattr(item, f"{name}_context_size") for name in ("presence", "frequency")}
    processors = make_logits_processors(
        dict(item.logit_bias),
        item.repetition_penalty if item.repetition_penalty != 1 else None,
        item.repetition_context_size,
        None if seen["presence"] is None else item.presence_penalty,
        seen["presence"],
        None if seen["frequency"] is None else item.frequency_penalty,
        seen["frequency"],
    )
    found = mx.array(logits[None])
    for processor in processors:
        found = processor(mx.array(everything), found)
    adjusted = np.array(found)[0]
    for token in set(row.tokens):
        if seen["presence"] is None:
            adjusted[token] -= np.float32(item.presence_penalty)
        if seen["frequency"] is None:
            adjusted[token] -= np.float32(item.frequency_penalty) * row.tokens.count(token)
    if row.completion_tokens < item.min_tokens:
        adjusted[0] = -np.inf
    return adjusted


def penalties() -> st.SearchStrategy[dict[str, Any]]:
    sizes = st.one_of(st.none(), st.integers(0, 12))
    return st.fixed_dictionaries(
        {},
        optional={
            "logit_bias": st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-5, 5), max_size=5),
            "repetition_penalty": st.floats(0.5, 2.0),
            "repetition_context_size": st.integers(0, 12),
            "presence_penalty": st.floats(-2, 2),
            "presence_context_size": sizes,
            "frequency_penalty": st.floats(-2, 2),
            "frequency_context_size": sizes,
            "min_tokens": st.integers(0, 4),
        },
    )


@given(
    rows=st.lists(
        st.tuples(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=15), penalties()), min_size=1, max_size=4
    ),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_rows_are_penalised_each_by_its_own(rows: list[tuple[list[int], dict[str, Any]]], seed: int) -> None:
    """Over a dozen steps every row's adjusted logits equal those that it has by itself in mlx-lm, and the window of
    tokens grows with them."""
    random = np.random.default_rng(seed)
    batch = [row_of(prompt, **given) for prompt, given in rows]
    arrays = row_params.build(batch, VOCAB)
    for _ in range(12):
        if arrays.steps_left < 1:
            arrays = row_params.build(batch, VOCAB)
        logits = (random.normal(size=(len(batch), VOCAB)) * 3).astype(np.float32)
        found = np.array(adjust(arrays.features, mx.array(logits), arrays.state, arrays.params))
        for row, one, other in zip(batch, found, logits, strict=True):
            np.testing.assert_allclose(one, reference(row, other), rtol=1e-5, atol=1e-5)
        step = sample(arrays.features, mx.array(logits), arrays.state, arrays.params)
        arrays.state = {name: step[name] for name in arrays.state}
        arrays.steps_left -= 1
        for row, token in zip(batch, step["tokens"].tolist(), strict=True):
            row.tokens.append(token)


def test_window_grows_by_doubling() -> None:
    """A penalty over a growing output makes new shapes only at powers of two."""
    row = row_of([3], presence_penalty=1.0)
    widths = set()
    for count in range(100):
        row.tokens = list(range(1, 20)) * 6
        row.tokens = row.tokens[:count]
        arrays = row_params.build([row], VOCAB)
        widths.add(arrays.state["window"].shape[1])
        assert arrays.steps_left >= 1
    assert widths == {1, 2, 4, 8, 16, 32, 64, 128}
