"""The compiled sampler: the same tokens as uncompiled, few graphs whatever comes and goes, and not all of them kept."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from jobs.params import Sampling
from worker.engine.loading.mlx_models import compiler_present
from worker.engine.sampling import row_params
from worker.engine.sampling.sampler import MOST_GRAPHS, Features, Sampled, Sampler
from worker.engine.sampling.sizes import GrownSizes
from worker.engine.sequence import NO_TOKEN, PreparedLine, Sequence

VOCAB, WIDE = 700, 300
STEPS = 6

KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "dense": {},
    "nucleus": {"top_p": 0.9},
    "few": {"top_k": 40, "min_p": 0.02},
    "every": {"top_p": 0.9999, "temperature": 3.0},
    "hopeless": {"top_k": 400},
    "xtc": {"xtc_probability": 0.5, "xtc_threshold": 0.02, "top_k": 50},
    "repetition": {"repetition_penalty": 1.3, "repetition_context_size": 20},
    "presence": {"presence_penalty": 0.7, "top_p": 0.8},
    "frequency": {"frequency_penalty": 0.4, "frequency_context_size": 5, "min_p": 0.05},
    "bias": {"logit_bias": {5: 3.0, 9: -2.0, 77: 1.0}, "temperature": 0.0},
    "early": {"min_tokens": 4, "top_k": 20},
    "logprobs": {"logprobs": True, "top_logprobs": 5},
}
MIXES = [
    ["greedy"],
    ["dense"],
    ["nucleus", "few"],
    ["few", "greedy"],
    ["hopeless", "greedy"],
    ["xtc", "dense"],
    ["repetition", "greedy", "few"],
    ["presence", "nucleus", "frequency"],
    ["bias", "early"],
    ["logprobs", "greedy"],
    ["logprobs", "nucleus", "xtc", "early", "bias"],
    list(KINDS),
]
"""Sets of features, from one to all."""


def row_of(seed: int, kind: str, *, full: int = 0, written: int = 0, **more: Any) -> Sequence:
    draw = random.Random(seed)
    prompt = tuple(draw.randrange(VOCAB) for _ in range(draw.randint(1, 30)))
    sampling = Sampling(**{"seed": seed, "temperature": 1.0, **KINDS[kind], **more})
    row = Sequence(PreparedLine(seed, prompt, sampling, frozenset({3, 4}), xtc_exempt=(3,)), 0, seed, limit=10**6)
    row.tokens += [draw.randrange(VOCAB) for _ in range(written)]
    row.full = full
    return row


def logits_of(rows: list[Sequence], step: int, scale: float = 2.5) -> mx.array:
    """Each row's own logits ``[rows, VOCAB]`` of a step, which do not depend on its place."""
    return mx.array(
        np.stack([np.random.default_rng([row.seed, step]).normal(size=VOCAB) * scale for row in rows]).astype(
            np.float32
        )
    )


def run(
    sampler: Sampler, rows: list[Sequence], sizes: GrownSizes | None, steps: int = STEPS, scale: float = 2.5
) -> list[dict[str, Any]]:
    """What each step gives for the rows, in their order."""
    arrays = row_params.build(rows, VOCAB, sizes=sizes)
    found = []
    for step in range(steps):
        sampled = sampler(arrays.features, logits_of(rows, step, scale), arrays.state, arrays.params)
        assert sampled.inputs.shape == (len(rows),)
        arrays.state = sampled.state
        mx.eval(sampled.outputs())
        found.append(_as_numbers(sampled, len(rows)))
    return found


def _as_numbers(sampled: Sampled, rows: int) -> dict[str, Any]:
    names = ("tokens", "covered", "logprobs", "top_ids", "top_logprobs")
    arrays = {name: getattr(sampled, name) for name in names}
    return {name: array.tolist()[:rows] for name, array in arrays.items() if array is not None}


def tokens_of(found: list[dict[str, Any]]) -> list[list[int]]:
    return [step["tokens"] for step in found]


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """All paths are there with a small vocabulary."""
    for module in ("filters", "row_params"):
        monkeypatch.setattr(f"worker.engine.sampling.{module}.WIDE", WIDE)


@pytest.fixture
def compiled() -> Sampler:
    if not compiler_present():
        pytest.skip("g++ not on PATH")
    return Sampler(mx.compile)


@pytest.mark.parametrize("mix", MIXES, ids="-".join)
def test_compiled_gives_the_same(mix: list[str], compiled: Sampler) -> None:
    """Token for token, and to rounding in log-probabilities, with rows of arrays rounded up."""
    rows = [row_of(seed, mix[seed % len(mix)], full=2 * (seed % 3), written=seed) for seed in range(len(mix) + 4)]
    expected = run(Sampler(None), rows, None)
    found = run(compiled, rows, GrownSizes())
    assert compiled.traces == 1
    for step, other in zip(found, expected, strict=True):
        assert step.keys() == other.keys()
        for name in step.keys() & {"tokens", "covered", "top_ids"}:
            assert step[name] == other[name]
        for name in step.keys() & {"logprobs", "top_logprobs"}:
            assert np.allclose(step[name], other[name], atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_features_of_others_change_nothing(kind: str) -> None:
    """A row's tokens are the same on a graph with every feature, wider arrays and idle rows, which the batch still has
    from rows that have left."""
    rows = [row_of(seed, kind, written=2 * seed) for seed in range(5)]
    sizes = GrownSizes()
    wide = {"logit_bias": dict.fromkeys(range(60), -1.0), "repetition_context_size": 300}
    everything = [row_of(90 + index, name, written=400) for index, name in enumerate(KINDS)]
    row_params.build([*everything, row_of(80, "repetition", written=400, **wide)], VOCAB, sizes=sizes)
    arrays = row_params.build(rows, VOCAB, sizes=sizes)
    assert arrays.features >= {"greedy", "dense", "candidates", "mass", "xtc_probability", "logprobs", "window"}
    assert arrays.state["window"].shape == (6, 512)
    assert tokens_of(run(Sampler(None), rows, sizes)) == tokens_of(run(Sampler(None), rows, None))


class Counted:
    """In place of ``mx.compile``: counts graphs, and computes nothing."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, step: Callable[..., Any]) -> Callable[..., Any]:
        self.graphs += 1

        def nothing(logits: mx.array, state: Any, params: Any) -> dict[str, mx.array]:
            return {"tokens": state["generated"], "inputs": state["generated"], **state}

        return nothing


def test_few_graphs_for_many_rows() -> None:
    """Ten thousand steps of rows of all kinds that come and go, in batches that fill and run empty: some dozens of
    graphs, and fewer in the second half."""
    draw = random.Random(4)
    counted = Counted()
    sampler, sizes = Sampler(counted), GrownSizes()
    logits = {rows: mx.zeros((rows, VOCAB)) for rows in range(1, 33)}
    slots: list[Sequence | None] = []
    halfway = 0
    for step in range(10_000):
        if step == 5000:
            halfway = counted.graphs
        most = 32 if step % 2500 < 2200 else 2  # now and then there is little to do
        changed = not slots
        for index, row in enumerate(slots):
            if row is not None and draw.random() < 1 / 80:
                slots[index], changed = None, True
        rows = [row for row in slots if row is not None]
        if len(rows) < most and (draw.random() < 0.5 or not rows):
            for _ in range(draw.randint(1, most - len(rows))):
                kind = draw.choice(list(KINDS))
                more = {"logit_bias": dict.fromkeys(range(draw.randint(1, 40)), 1.0)} if kind == "bias" else {}
                rows.append(row_of(draw.randrange(2**32), kind, written=draw.randint(0, 90), **more))
            slots, changed = list(rows), True
        elif len(rows) < 0.75 * len(slots):
            slots, changed = list(rows), True
        if changed:
            for row in rows:
                row.full = draw.choice([0] * 30 + [9])
            sizes.step = step
            arrays = row_params.build(slots, VOCAB, sizes=sizes)
        sampler(arrays.features, logits[len(slots)], arrays.state, arrays.params)
    assert counted.graphs <= 120
    assert counted.graphs - halfway <= halfway
    assert sampler.graphs <= MOST_GRAPHS


def test_graphs_that_are_not_used_are_dropped(compiled: Sampler) -> None:
    """Only so many compiled steps are held; one that was dropped is traced again."""
    sampler = Sampler(mx.compile, most_graphs=2)
    params: dict[str, mx.array] = {}

    def step(rows: int) -> None:
        state = {"generated": mx.zeros(rows, dtype=mx.int32)}
        sampler(Features({"greedy"}), mx.zeros((rows, 8)), state, params)

    for rows in (1, 2, 1, 3, 1):
        step(rows)
    assert (sampler.traces, sampler.graphs) == (3, 2)
    step(2)
    assert (sampler.traces, sampler.graphs) == (4, 2)


def test_sorting_is_invisible() -> None:
    """Wherever the candidates cover a row's filters it has the same token whether or not its vocabulary is sorted too,
    and elsewhere sorting gives the token."""
    kinds = [{"top_p": 0.96}, {"top_p": 0.98, "min_p": 0.002}, {"xtc_probability": 0.6, "top_p": 0.9}]
    rows = [row_of(seed, "dense", **kinds[seed % 3]) for seed in range(24)]
    apart = run(Sampler(None), rows, None, steps=12, scale=2.0)
    for row in rows:
        row.full = 1000
    sorted_too = run(Sampler(None), rows, None, steps=12, scale=2.0)
    covered = np.array([step["covered"] for step in apart])
    assert 0.1 < covered.mean() < 0.9
    assert np.array_equal(covered, np.array([step["covered"] for step in sorted_too]))
    same = np.array(tokens_of(apart)) == np.array(tokens_of(sorted_too))
    assert same[covered].all()
    assert not same[~covered].all()


@pytest.mark.parametrize("compile", [False, True])
def test_rows_leave_the_sorted_path(compile: bool, markov: Any, line_of: Any, run: Any, monkeypatch: Any) -> None:
    """A row goes back to the candidates when they have covered it for some steps; when that is changes no token."""
    if compile and not compiler_present():
        pytest.skip("g++ not on PATH")
    table = np.zeros((600, 600), dtype=np.float32)
    table[np.arange(600), (np.arange(600) * 7 + 1) % 600] = 30.0
    table[:40] = 0.0  # after these anything may come
    model = markov(table)
    lines = [line_of(i, [30 + i], eos=[], seed=i, temperature=1.0, top_p=0.95, max_tokens=90) for i in range(7)]
    found = []
    for steps in (5,) if compile else (1, 5, 10**6):
        monkeypatch.setattr("worker.engine.sequence.FULL_STEPS", steps)
        done = run(model, [replace(line) for line in lines], decode_concurrency=4, compile=compile)
        rows = [done[i].sequences[0] for i in range(7)]
        found.append([row.tokens for row in rows])
        assert any(row.full for row in rows) == (steps == 10**6)
    assert all(tokens == found[0] for tokens in found)


def test_compiled_finds_what_is_not_finite(compiled: Sampler) -> None:
    """Compiled, too, a row without finite logits has no token, and the others have theirs."""
    rows = [row_of(seed, kind) for seed, kind in enumerate(KINDS)]
    logits = logits_of(rows, 0)
    damaged = mx.array(np.array(logits))
    damaged[2, 5], damaged[7, 9] = float("nan"), float("inf")
    arrays = row_params.build(rows, VOCAB, sizes=GrownSizes())
    sound, found = (compiled(arrays.features, each, arrays.state, arrays.params) for each in (logits, damaged))
    expected = [NO_TOKEN if place in (2, 7) else token for place, token in enumerate(sound.tokens.tolist())]
    assert found.tokens.tolist()[: len(rows)] == expected[: len(rows)]
    assert min(found.inputs.tolist()) >= 0
