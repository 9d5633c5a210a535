"""Thinking before an answer: the constraint waits for it, a budget ends it, and nothing else is changed by either."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import jsonschema
import pytest

from jobs.guided.constraint import Constraint
from tests.engine.guided_models import FLAG, GuidedModel, of_bytes
from worker.engine.guided.guide import Guide, Phase, ThinkingTokens
from worker.engine.text.completion import TextAssembler

LETTER = Constraint("regex", "[ab]")


@pytest.fixture(scope="module")
def guided(tiny: Any) -> GuidedModel:
    return GuidedModel.of(tiny("qwen3", vocab_size=512), of_bytes())


@pytest.fixture(scope="module")
def markers(guided: GuidedModel) -> tuple[int, int]:
    return guided.tokenizer.think_start_id, guided.tokenizer.think_end_id


def parts(guided: GuidedModel, finished: Any) -> list[tuple[str, str | None]]:
    assembler = TextAssembler(guided.tokenizer)
    return [(one.text, one.reasoning) for one in map(assembler.assemble, finished.sequences)]


def test_the_value_comes_after_the_thought(guided: GuidedModel, markers: tuple[int, int], run: Any) -> None:
    """A prompt that opened the thinking: free text until the model ends it, and then a value; never EOS before."""
    bias = {markers[1]: 4.0, next(iter(guided.model.eos)): 6.0}
    lines = [guided.line(i, FLAG, phase=Phase.THINKING, logit_bias=bias, n=2, max_tokens=400, seed=i) for i in range(6)]
    done = run(guided.model, lines)
    thoughts = set()
    for finished in done.values():
        for row, (text, reasoning) in zip(finished.sequences, parts(guided, finished), strict=True):
            assert row.valid, (text, reasoning)
            jsonschema.validate(json.loads(text), FLAG)
            thoughts.add(reasoning)
    assert len(thoughts) > 6


@pytest.mark.parametrize(("wish", "thinks"), [(90.0, True), (-90.0, False)])
def test_the_model_may_open_its_thinking(
    wish: float, thinks: bool, guided: GuidedModel, markers: tuple[int, int], run: Any
) -> None:
    """Where the template leaves it to the model, it may think before the value, once, or not."""
    bias = {markers[0]: wish, markers[1]: 92.0}
    done = run(
        guided.model,
        [guided.line(i, FLAG, phase=Phase.OPENING, logit_bias=bias, seed=i, max_tokens=500) for i in range(5)],
    )
    for finished in done.values():
        ((text, reasoning),) = parts(guided, finished)
        jsonschema.validate(json.loads(text), FLAG)
        assert (finished.sequences[0].tokens[0] == markers[0]) == thinks
        assert thinks or reasoning is None


def test_a_closed_thought_stays_closed(guided: GuidedModel, markers: tuple[int, int], run: Any) -> None:
    """Where the prompt has ended the thinking, the value comes at once, whatever the model wants."""
    (row,) = run(guided.model, [guided.line("a", FLAG, logit_bias={markers[0]: 99.0})])["a"].sequences
    assert row.valid
    assert markers[0] not in row.tokens


@pytest.mark.parametrize("budget", [0, 1, 7])
@pytest.mark.parametrize("constraint", [None, FLAG])
@pytest.mark.parametrize("phase", [Phase.OPENING, Phase.THINKING])
def test_a_budget_ends_the_thought(
    phase: Phase, constraint: Any, budget: int, guided: GuidedModel, markers: tuple[int, int], run: Any
) -> None:
    """After so many tokens the marker is forced, and the answer goes on; with a constraint and without."""
    bias = {markers[0]: 99.0, markers[1]: -99.0} if phase is Phase.OPENING else {markers[1]: -99.0}
    line = guided.line(
        "a",
        constraint,
        phase=phase,
        budget=budget,
        logit_bias=bias,
        max_tokens=40,
        eos=[] if constraint is None else None,
    )
    (row,) = run(guided.model, [line])["a"].sequences
    opened = 1 if phase is Phase.OPENING else 0
    assert row.tokens.index(markers[1]) == opened + budget
    if constraint is None:
        assert (len(row.tokens), row.valid) == (40, None)
    else:
        assert row.valid


def test_a_budget_changes_nothing_before_it_ends(guided: GuidedModel, markers: tuple[int, int], run: Any) -> None:
    """A thought shorter than its budget, and the tokens before the forced marker, are those without one."""
    free = guided.line("a", phase=Phase.THINKING, max_tokens=60, logit_bias={markers[1]: 3.0}, eos=[], logprobs=True)
    long, short = (
        replace(free, guide=guided.plan(None, free.sampling, phase=Phase.THINKING, budget=n)) for n in (500, 5)
    )
    expected = run(guided.model, [free])["a"].sequences[0]
    assert run(guided.model, [long])["a"].sequences[0].tokens == expected.tokens
    cut = run(guided.model, [short])["a"].sequences[0]
    size = cut.tokens.index(markers[1])
    assert size <= 5
    assert cut.tokens[:size] == expected.tokens[:size]


def test_budget_of_all_thoughts(guided: GuidedModel, markers: tuple[int, int], run: Any) -> None:
    """A model that thinks again later has spent its budget: the second thought ends at once."""
    line = guided.line("a", phase=Phase.OPENING, budget=4, logit_bias={markers[0]: 99.0}, eos=[], max_tokens=12)
    (row,) = run(guided.model, [line])["a"].sequences
    assert row.tokens == [markers[0]] * 5 + [markers[1]] + [*markers] * 3


def test_a_cut_thought_is_not_valid(guided: GuidedModel, markers: tuple[int, int], run: Any) -> None:
    """No value has begun."""
    line = guided.line("a", {}, phase=Phase.THINKING, max_tokens=5, logit_bias={markers[1]: -99.0})
    (row,) = run(guided.model, [line])["a"].sequences
    assert (row.stop_reason, row.valid) == ("max_tokens", False)


def test_blanks_may_follow_a_thought(guided: GuidedModel, markers: tuple[int, int], run: Any) -> None:
    """Models write a line or two between their thought and the answer; not more, and the value is what counts."""
    blanks = guided.tokenizer.encode("\n\n", add_special_tokens=False)
    line = guided.line("a", LETTER, phase=Phase.THINKING, budget=2, logit_bias=dict.fromkeys(blanks, 99.0))
    done = run(guided.model, [line])["a"]
    assert done.sequences[0].valid
    tokens = done.sequences[0].tokens
    after = guided.tokenizer.decode(tokens[tokens.index(markers[1]) + 1 : -1])
    assert after.startswith("\n\n")
    assert after.strip() in ("a", "b")
    assert parts(guided, done)[0][0] in ("a", "b")


# -- markers of several tokens ----------------------------------------------------------------------------------------


def in_pieces(guided: GuidedModel, constraint: Any, *, phase: Phase, budget: int | None = None) -> Guide:
    """A guide of a model whose markers are the texts ``[[a`` and ``]]b``, tokens by letter."""
    plan = guided.plan(constraint, guided.line("a").sampling, phase=phase, budget=budget)
    start, end = (tuple(tokens_of(guided, text)) for text in ("[[a", "]]b"))
    return Guide(replace(plan, thinking=ThinkingTokens(start, end, "[[a", "]]b"), phase=phase))


def tokens_of(guided: GuidedModel, text: str) -> list[int]:
    return [guided.tokenizer.convert_tokens_to_ids(letter) for letter in text]


def allowed(guided: GuidedModel, guide: Guide) -> set[str]:
    from worker.engine.guided.masks import masks_of

    (mask,) = masks_of([guide], guided.model.vocab_size)
    tokens = [token for token in range(guided.model.vocab_size) if mask[token // 32] >> (token % 32) & 1]
    names = {guided.tokenizer.convert_ids_to_tokens(token) or "?" for token in tokens}
    return names if len(names) < 12 else {f"{len(names)} tokens"}


def follow(guided: GuidedModel, guide: Guide, *texts: str) -> list[set[str]]:
    seen: list[int] = []
    found = [allowed(guided, guide)]
    for text in texts:
        seen += tokens_of(guided, text)
        guide.follow(seen)
        assert guide.error is None
        found.append(allowed(guided, guide))
    return found


def test_forced_markers_of_several_tokens(guided: GuidedModel) -> None:
    """All of a marker is forced, token by token, and what the model has written of it already counts."""
    guide = in_pieces(guided, LETTER, phase=Phase.THINKING, budget=3)
    steps = follow(guided, guide, "x", "y", "z", "]", "]", "b", "a")
    assert steps[3:6] == [{"]"}, {"]"}, {"b"}]
    assert steps[7] == {"<|im_end|>"}
    guide = in_pieces(guided, LETTER, phase=Phase.THINKING, budget=3)
    assert follow(guided, guide, "x", "]", "]")[-1] == {"b"}


def test_a_value_may_begin_as_a_marker_does(guided: GuidedModel) -> None:
    """A value's first letters may be a marker's: which of them it is shows when it goes on."""
    either = Constraint("regex", r"\[\[[xy]")
    guide = in_pieces(guided, either, phase=Phase.OPENING)
    assert follow(guided, guide, "[", "[")[-1] == {"a", "x", "y"}
    assert follow(guided, in_pieces(guided, either, phase=Phase.OPENING), "[", "[", "x")[-1] == {"<|im_end|>"}
    thinking = follow(guided, in_pieces(guided, either, phase=Phase.OPENING), "[", "[", "a", "q", "]", "]", "b", "[")
    assert thinking[-1] == {"["}
