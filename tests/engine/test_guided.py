"""Guided rows: texts are what their constraint asks for, whatever else a line wants and whoever shares its batch."""

from __future__ import annotations

import json
import math
from typing import Any

import jsonschema
import mlx.core as mx
import numpy as np
import pytest

from bench.realtext.reads import counted
from jobs.guided.constraint import Constraint
from tests.engine.conftest import compile_again
from tests.engine.guided_models import FLAG, PERSON, SCHEMAS, TAGS, GuidedModel, of_bytes, of_pieces
from worker.engine.engine import Engine
from worker.engine.loading.mlx_models import compiler_present
from worker.engine.sampling.constraint import allowed_only

TOKENIZERS = {"bytes": of_bytes, "pieces": of_pieces}
SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "dense": {},
    "candidates": {"top_k": 20, "min_p": 0.05},
    "wide": {"top_p": 0.95},
    "every": {"top_k": 400, "temperature": 2.0},
    "xtc": {"xtc_probability": 0.5, "xtc_threshold": 0.02, "top_k": 50},
    "penalties": {"repetition_penalty": 1.4, "presence_penalty": 1.0, "frequency_penalty": 0.5},
    "logprobs": {"logprobs": True, "top_logprobs": 5, "top_p": 0.9},
    "early": {"min_tokens": 60, "top_k": 30},
    "endless": {"ignore_eos": True},
    "choices": {"n": 3},
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def guided(request: pytest.FixtureRequest, tiny: Any) -> GuidedModel:
    return GuidedModel.of(tiny("qwen3", vocab_size=512), TOKENIZERS[request.param]())


@pytest.fixture(scope="module")
def of_json(tiny: Any) -> GuidedModel:
    return GuidedModel.of(tiny("qwen3", vocab_size=512), of_bytes())


def mixed(guided: GuidedModel, **more: Any) -> list[Any]:
    """Lines of every sampling and schema, and free ones between them."""
    lines = []
    for index, (name, given) in enumerate(SAMPLINGS.items()):
        prompt = range(5, 8 + 3 * (index % 4))
        lines.append(guided.line(name, SCHEMAS[index % 3], prompt=prompt, seed=index, **{**given, **more}))
        lines.append(guided.line(f"free {name}", prompt=prompt, **{**given, "max_tokens": 20, "min_tokens": 0}))
    return lines


def told(finished: Any) -> list[Any]:
    return [(row.tokens, row.stop_reason, row.valid) for row in finished.sequences]


def assert_valid(guided: GuidedModel, done: dict[Any, Any]) -> None:
    for index, name in enumerate(SAMPLINGS):
        finished = done[name]
        assert finished.error is None
        for row, text in zip(finished.sequences, guided.texts(finished.sequences), strict=True):
            assert (row.stop_reason, row.valid) == ("eos", True), (name, text)
            jsonschema.validate(json.loads(text), SCHEMAS[index % 3])
        assert all(row.valid is None for row in done[f"free {name}"].sequences)


def test_every_text_is_of_its_schema(guided: GuidedModel, run: Any) -> None:
    """Random weights at temperature 1 write nothing but valid JSON: greedy, with every filter, with penalties, with
    log-probabilities, with several choices, where a text shall be longer than its value, and where it shall not end."""
    done = run(guided.model, mixed(guided), decode_concurrency=7)
    assert_valid(guided, done)
    assert len(set(guided.texts(done["choices"].sequences))) > 1


def test_no_neighbour_changes_a_row(guided: GuidedModel, run: Any) -> None:
    """Rows join and leave, masks go with them: each line has the tokens it has alone, guided or free; and free ones
    those that they have where nobody is guided."""
    lines = mixed(guided)
    alone = {key: told(done) for key, done in run(guided.model, lines, decode_concurrency=1).items()}
    for rows in (5, 16):
        together = run(guided.model, lines, decode_concurrency=rows, prompt_concurrency=3)
        assert {key: told(done) for key, done in together.items()} == alone
    free = [line for line in lines if line.guide is None]
    assert {key: told(done) for key, done in run(guided.model, free).items()} == {
        line.key: alone[line.key] for line in free
    }


def test_compiled_steps_take_masks(of_json: GuidedModel, run: Any) -> None:
    """The same texts from compiled steps, and no graph for a schema: more schemas make no more of them."""
    compile_again()
    if not compiler_present():
        pytest.skip("no compiler")
    lines = [of_json.line(index, SCHEMAS[index % 2], max_tokens=30, seed=index) for index in range(8)]
    plain = {key: told(done) for key, done in run(of_json.model, lines, compile=False).items()}
    engine = Engine(of_json.model, compile=True, decode_concurrency=4)
    assert {key: told(done) for key, done in run(engine, lines).items()} == plain
    before = engine._sampler.traces
    others = [Constraint("regex", f"[a-z]{{{size}}}[0-9]*") for size in range(20, 28)]
    run(engine, [of_json.line(f"more {i}", other, max_tokens=30) for i, other in enumerate(others)])
    assert engine._sampler.traces == before


def test_a_step_reads_once(of_json: GuidedModel) -> None:
    """With guided rows too a step waits for the tokens of the step before, and for nothing else."""
    engine = Engine(of_json.model, decode_concurrency=6, prompt_concurrency=3, compile=False)
    for index in range(40):
        engine.add(of_json.line(index, SCHEMAS[index % 3] if index % 4 else None, max_tokens=10 + index % 7))
    while engine.stats.decode_steps < 5:
        engine.step()
    before = engine.stats.decode_steps
    with counted() as reads:
        while engine.pending > 4:
            engine.step()
    assert engine.stats.decode_steps > before + 5
    assert reads.kinds == {"step": engine.stats.decode_steps - before}


def test_masks_are_made_while_the_device_works(of_json: GuidedModel, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once per step and all rows together, none of it when tokens are to be drawn."""
    calls: list[int] = []
    compute = type(of_json.maker._tables()[0]).compute
    monkeypatch.setattr(
        "worker.engine.guided.vocabulary.Vocabulary.compute",
        lambda self, matchers: (calls.append(len(matchers)), compute(self, matchers))[1],
    )
    lines = [of_json.line(index, PERSON, max_tokens=20) for index in range(6)]
    calls.clear()
    engine = Engine(of_json.model, decode_concurrency=6)
    run(engine, lines)
    assert max(calls) == 6
    assert len(calls) <= engine.stats.decode_steps + 1


# -- how texts end ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "most", "ended"),
    [
        ("a{9}", 3, ("max_tokens", False)),
        ("(ab|c){1,40}", 1, ("max_tokens", None)),
        ("a?", 5, ("eos", True)),
    ],
)
def test_cut_texts_say_so(
    pattern: str, most: int, ended: tuple[str, bool | None], of_json: GuidedModel, run: Any
) -> None:
    """A text cut within its value is not valid, one cut where it might have ended is, and one that ended is."""
    done = run(
        of_json.model,
        [of_json.line(seed, Constraint("regex", pattern), max_tokens=most, seed=seed) for seed in range(9)],
    )
    for finished in done.values():
        (row,), (text,) = finished.sequences, of_json.texts(finished.sequences)
        complete = text.count("a") == text.count("b") and text != "" if ended[1] is None else ended[1]
        assert (row.stop_reason, row.valid) == (ended[0], complete), text


def test_stop_strings_within_a_value(of_json: GuidedModel, run: Any) -> None:
    """A stop string ends the text as ever; whether that is valid is said of the text that is kept."""
    digits = Constraint("regex", "[0-9]{1,3}(x[0-9]{4})?")
    lines = [of_json.line(seed, digits, stop=("x",), seed=seed, logit_bias={}) for seed in range(20)]
    lines += [of_json.line(f"json {seed}", FLAG, stop=(":",), seed=seed) for seed in range(3)]
    done = run(of_json.model, lines)
    stopped = [one for one in done.values() if one.sequences[0].stop_reason == "stop_string"]
    assert {one.sequences[0].valid for one in stopped if isinstance(one.key, int)} == {True}
    assert {done[f"json {seed}"].sequences[0].valid for seed in range(3)} == {False}


def test_whitespace_has_an_end(guided: GuidedModel, run: Any) -> None:
    """However much a line likes blanks, a value of JSON has no endless run of them."""
    blanks = [token for token in range(300) if guided.tokenizer.decode([token]).strip(" \n\t\r\u2581") == ""]
    bias = dict.fromkeys(blanks, 50.0)
    for schema in (PERSON, TAGS, {"type": "object"}):
        finished = run(guided.model, [guided.line("a", schema, logit_bias=bias, temperature=0.0, max_tokens=200)])["a"]
        (text,) = guided.texts(finished.sequences)
        if finished.sequences[0].valid:
            json.loads(text)
        outside = "_".join(text.split('"')[::2])
        assert "  " not in outside
        assert "\n" not in outside


def test_a_forbidden_key_never_comes(of_json: GuidedModel, run: Any) -> None:
    """A model that wants nothing more than another key writes those of the schema."""
    wanted = of_json.tokenizer.encode("zz", add_special_tokens=False)
    bias = dict.fromkeys(wanted, 90.0)
    schema = {**FLAG, "properties": {"ok": {"type": "boolean"}, "b": {"type": "null"}}}
    for finished in run(of_json.model, [of_json.line(i, schema, logit_bias=bias, seed=i) for i in range(6)]).values():
        (text,) = of_json.texts(finished.sequences)
        assert "zz" not in text
        assert json.loads(text).keys() <= {"ok", "b"}


def test_no_special_token_is_text(guided: GuidedModel, run: Any) -> None:
    """A free string holds neither control tokens, nor thinking markers, nor what pads the vocabulary."""
    known = len(guided.tokenizer.get_vocab())
    special = {
        guided.tokenizer.convert_tokens_to_ids(one) for one in ("<|im_start|>", "<|im_end|>", "<think>", "</think>")
    }
    bias = dict.fromkeys([*special, *range(known, 512)], 30.0)
    line = guided.line("a", {"type": "string", "minLength": 30}, max_tokens=25, logit_bias=bias)
    (row,) = run(guided.model, [line])["a"].sequences
    assert not special & {*row.tokens}
    assert max(row.tokens) < known


def test_a_text_may_end_without_eos(of_json: GuidedModel, run: Any) -> None:
    """A model that has no EOS, or a line whose own EOS the constraint needs as text."""
    (row,) = run(of_json.model, [of_json.line("a", Constraint("regex", "abc"), eos=[])])["a"].sequences
    assert (row.stop_reason, row.valid, of_json.texts([row])) == ("eos", True, ["abc"])


def test_an_eos_that_is_text_ends_only_what_is_complete(of_json: GuidedModel, run: Any) -> None:
    """A line's own EOS may be a letter: it comes where the value is complete, and not before."""
    (token,) = of_json.tokenizer.encode("x", add_special_tokens=False)
    ends = [token, *of_json.model.eos]
    lines = [of_json.line(seed, Constraint("regex", "[a-z]{4}[0-9]?"), eos=ends, seed=seed) for seed in range(12)]
    for finished in run(of_json.model, lines).values():
        assert finished.sequences[0].valid
        assert "x" not in of_json.texts(finished.sequences)[0]


# -- what stays the model's -------------------------------------------------------------------------------------------


def test_logprobs_are_the_models_own(of_json: GuidedModel, run: Any) -> None:
    """The log-probabilities of a guided row, and the alternatives, are those before its constraint."""
    line = of_json.line("a", PERSON, logprobs=True, top_logprobs=3, top_k=40)
    (row,) = run(of_json.model, [line])["a"].sequences
    tokens = [*row.prompt, *row.tokens]
    logits = of_json.model.forward(mx.array([tokens[:-1]]), of_json.model.new_cache())[0, len(row.prompt) - 1 :]
    own = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
    for place, token in enumerate(row.tokens):
        assert math.isclose(row.token_logprobs[place], own[place, token], abs_tol=1e-3)
        assert math.isclose(row.top_logprobs[place][0][1], own[place].max(), abs_tol=1e-3)
    assert any(token not in dict(best) for token, best in zip(row.tokens, row.top_logprobs, strict=True))


@pytest.mark.parametrize("kind", [mx.float32, mx.float16, mx.bfloat16], ids=str)
def test_bits_to_logits(kind: mx.Dtype) -> None:
    """One bit per token, also where the vocabulary is no multiple of a word; in the logits' own precision."""
    logits = mx.random.normal((3, 77)).astype(kind)
    allowed = np.array([[0, 0xFFFFFFFF, 1], [0x80000001, 0, 1 << 12], [0xFFFFFFFF] * 3], dtype=np.uint32)
    expected = [set(range(32, 65)), {0, 31, 76}, set(range(77))]
    masked = allowed_only(logits, mx.array(allowed))
    assert masked.dtype == kind
    found, logits = np.array(masked.astype(mx.float32)), logits.astype(mx.float32)
    for row, tokens in enumerate(expected):
        assert {int(token) for token in np.nonzero(found[row] > -np.inf)[0]} == tokens
        assert all(found[row, token] == logits[row, token].item() for token in tokens)
