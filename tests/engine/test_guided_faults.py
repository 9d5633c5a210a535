"""Guided rows where something is out of the ordinary: short memory, broken steps, one-row modes, impossible masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from jobs.guided.constraint import Constraint
from tests.engine.conftest import LetterTokenizer, build
from tests.engine.guided_models import FLAG, PERSON, SCHEMAS, TAGS, GuidedModel, of_bytes
from worker.engine.engine import Engine
from worker.engine.guided.guide import Guide, Phase
from worker.engine.guided.masks import masks_of
from worker.engine.loading.mlx_models import measure
from worker.engine.loading.model import LoadedModel
from worker.engine.unbatched.modes import UnbatchedModes

SAMPLINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.0},
    {"top_p": 0.9, "top_k": 30, "logprobs": True},
    {"repetition_penalty": 1.3, "frequency_penalty": 0.3},
    {"min_p": 0.02, "n": 3},
    {"min_tokens": 30, "top_p": 0.99},
]


@pytest.fixture(scope="module")
def guided(tiny: Any) -> GuidedModel:
    return GuidedModel.of(tiny("qwen3", vocab_size=512), of_bytes())


def lines_of(guided: GuidedModel, count: int = 12) -> list[Any]:
    end = guided.tokenizer.think_end_id
    lines = []
    for index in range(count):
        given = SAMPLINGS[index % len(SAMPLINGS)]
        thinking = {"phase": Phase.THINKING, "budget": 9, "logit_bias": {end: -50.0}} if index % 4 == 3 else {}
        schema = SCHEMAS[index % 3] if index % 5 else None
        lines.append(guided.line(index, schema, prompt=range(5, 9 + 5 * (index % 4)), seed=index, **thinking, **given))
    return lines


def told(done: dict[Any, Any]) -> dict[Any, list[Any]]:
    return {key: [(row.tokens, row.stop_reason, row.valid) for row in one.sequences] for key, one in done.items()}


@pytest.fixture(scope="module")
def expected(guided: GuidedModel) -> dict[Any, list[Any]]:
    """What the lines give by themselves."""
    engine = Engine(guided.model, decode_concurrency=1)
    for line in lines_of(guided):
        engine.add(line)
    done: dict[Any, Any] = {}
    while engine.has_work:
        done |= {one.key: one for one in engine.step()}
    return told(done)


def test_rows_that_make_room_and_come_back(
    guided: GuidedModel, expected: Any, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Preempted in the middle of a value, they go on in it: the same tokens."""
    engine = Engine(guided.model, decode_concurrency=8, prompt_concurrency=2)
    steps = 0
    decode = engine._decode_batch

    def cramped() -> list[Any]:
        nonlocal steps
        steps += 1
        rows = [row for row in decode._rows if row is not None and not row.ended and row.tokens]
        return [[rows[steps % len(rows)]]] if rows and steps % 5 == 0 else []

    monkeypatch.setattr(engine._scheduler, "take_back", cramped)
    assert told(run(engine, lines_of(guided))) == expected
    assert steps > 20


@pytest.mark.parametrize("at", [3, 8, 15])
def test_rows_of_a_broken_step(at: int, guided: GuidedModel, expected: Any, run: Any, monkeypatch: Any) -> None:
    """A step fails: each row under way is tried by itself, under its constraint, and goes on as if nothing had been."""
    engine = Engine(guided.model, decode_concurrency=6)
    launch, calls = engine._decode_batch.launch, 0

    def breaks() -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            raise RuntimeError("the device is gone for a moment")
        launch()

    monkeypatch.setattr(engine._decode_batch, "launch", breaks)
    assert told(run(engine, lines_of(guided), breaks=True)) == expected
    assert engine.stats.recoveries == 1


def test_rows_whose_step_is_repeated(guided: GuidedModel, run: Any, monkeypatch: Any) -> None:
    """Where the candidates did not cover a row's filters, its mask holds for the repetition too."""
    monkeypatch.setattr("worker.engine.sampling.filters.WIDE", 8)
    monkeypatch.setattr("worker.engine.sampling.row_params.WIDE", 8)
    lines = [guided.line(i, SCHEMAS[i % 3], top_p=0.999, temperature=2.0, seed=i) for i in range(6)]
    engine = Engine(guided.model, decode_concurrency=4)
    for finished in run(engine, lines).values():
        assert finished.sequences[0].valid
    assert engine.stats.repeated_rows > 0


@pytest.mark.parametrize("modes", [{"max_kv_size": 4096}, {"kv_bits": 8, "kv_group_size": 32}], ids=str)
def test_one_row_at_a_time(modes: dict[str, Any], run: Any) -> None:
    """Rings and quantised caches take constraints like any other."""
    model = build("qwen3", vocab_size=512, head_dim=32)
    fitted = measure(model.name, model.model, LetterTokenizer(), model.config, modes=UnbatchedModes(**modes))
    guided = GuidedModel.of(fitted, of_bytes())
    assert not guided.model.batchable
    for key, finished in run(guided.model, lines_of(guided)).items():
        if key % 5:
            assert all(row.valid for row in finished.sequences)


@pytest.mark.parametrize("same", [True, False])
def test_a_draft_model_changes_no_guided_text(same: bool, guided: GuidedModel, expected: Any, run: Any) -> None:
    """Proposals are made and checked under the constraint of their place: the texts are those without a draft model.
    A model that drafts for itself is nearly always right."""
    model = guided.model
    other: LoadedModel = (
        measure("draft", model.model, LetterTokenizer(), model.config) if same else build("qwen3", vocab_size=512)
    )
    fitted = measure(
        model.name, model.model, LetterTokenizer(), model.config, modes=UnbatchedModes(num_draft_tokens=3), draft=other
    )
    drafted = GuidedModel.of(fitted, of_bytes())
    engine = Engine(drafted.model)
    assert told(run(engine, lines_of(drafted))) == expected
    assert engine.stats.drafted_tokens > 50
    if same:
        assert engine.stats.accepted_tokens > 0.8 * engine.stats.drafted_tokens


# -- masks that leave nothing -----------------------------------------------------------------------------------------


def test_a_model_that_rules_out_what_is_allowed(guided: GuidedModel, markov: Any, run: Any) -> None:
    """All that a constraint allows has no probability: that line fails, and says so; its neighbours go on."""
    table = np.zeros((512, 512), dtype=np.float32)
    for text in ("x", "xx"):
        table[:, guided.tokenizer.convert_tokens_to_ids(text) or 0] = -np.inf
    table[:, guided.tokenizer.encode("x", add_special_tokens=False)] = -np.inf
    odd = GuidedModel.of(markov(mx.array(table)), of_bytes())
    lines = [odd.line("bad", Constraint("regex", "x"), max_tokens=9), odd.line("good", Constraint("regex", "y{3}"))]
    lines += [odd.line(index, max_tokens=30, eos=[]) for index in range(3)]
    engine = Engine(odd.model)
    done = run(engine, lines)
    error = done.pop("bad").error
    assert (error.code, error.param, error.passing) == ("invalid_schema", "response_format", False)
    assert "no token that it allows can be drawn" in error.message
    assert done["good"].sequences[0].valid
    assert all(one.error is None for one in done.values())
    assert engine.stats.recoveries == 0


def test_nan_is_not_the_constraints_fault(guided: GuidedModel, markov: Any, run: Any) -> None:
    """Logits that are not finite are told from masks that leave nothing: the model is to blame, and it may pass."""
    table = np.zeros((512, 512), dtype=np.float32)
    table[7] = np.nan
    odd = GuidedModel.of(markov(mx.array(table)), of_bytes())
    done = run(odd.model, [odd.line("a", FLAG, prompt=[5, 7]), odd.line("b", FLAG, prompt=[5, 6])])
    assert (done["a"].error.code, done["a"].error.passing) == ("internal_error", True)
    assert done["b"].sequences[0].valid


def test_a_constraint_that_becomes_too_much(guided: GuidedModel, run: Any, monkeypatch: Any) -> None:
    """The library may give a grammar up in the middle of a text: its line fails, naming the field, and no other."""
    follow: Callable[..., None] = Guide.follow

    def gives_up(self: Guide, tokens: list[int]) -> None:
        follow(self, tokens)
        if len(tokens) == 4 and self.plan.field == "guided_regex":
            self.error = "too complex"

    monkeypatch.setattr(Guide, "follow", gives_up)
    bad = guided.line("bad", Constraint("regex", "[a-z]{20}"))
    object.__setattr__(bad.guide, "field", "guided_regex")
    engine = Engine(guided.model)
    done = run(engine, [guided.line("a", PERSON), bad, guided.line("b", TAGS)])
    error = done["bad"].error
    assert (error.code, error.param) == ("invalid_schema", "guided_regex")
    assert "after 4 tokens: too complex" in error.message
    assert done["a"].sequences[0].valid
    assert done["b"].sequences[0].valid
    assert engine.stats.recoveries == 0


def test_an_error_within_the_library_is_seen(guided: GuidedModel) -> None:
    """A matcher that is in an error state makes its guide say so, and the masks of others are right."""
    plan = guided.line("a", FLAG).guide
    assert plan is not None
    broken, sound = Guide(plan), Guide(plan)
    broken._matcher.consume_token(guided.tokenizer.convert_tokens_to_ids("z"))
    masks = masks_of([broken, None, sound], guided.model.vocab_size)
    assert broken.error
    assert sound.error is None
    assert (masks[1] == 0xFFFFFFFF).all()
    assert (masks[2] == masks_of([Guide(plan)], guided.model.vocab_size)[0]).all()
