"""Grammars of calls: whatever they allow is read by mlx-lm's parser of that format, with arguments of the schema."""

from __future__ import annotations

import json
import random
from types import SimpleNamespace
from typing import Any

import jsonschema
import numpy as np
import pytest

from jobs.errors import LineError
from jobs.lines.line import Defaults, Job, check_line
from tests.engine.tool_families import ENFORCED, tools_tokenizer
from worker.engine.guided.ends import is_valid
from worker.engine.guided.guide import Guide
from worker.engine.prompts.prepare import Preparer
from worker.engine.sequence import Sequence
from worker.engine.text.completion import TextAssembler
from worker.engine.text.detokenizer import Detokenizer
from worker.engine.text.markup import markup_of
from worker.engine.text.parts import segments_of
from worker.engine.text.tool_calls import CallReader, call_ids

USER = {"role": "user", "content": "Do it."}
CLOSERS = ("\n</parameter>\n", '"', "<escape>", '<|"|>')
"""What ends a text in one format or another: a random walk would hardly find it."""


def tool(name: str, properties: dict[str, Any], *required: str, **more: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(required), **more}
    return {"type": "function", "function": {"name": name, "description": "d", "parameters": parameters}}


FLAT = [
    tool(
        "look_up",
        {
            "city": {"type": "string", "description": "where"},
            "unit": {"type": "string", "enum": ["c", "f", "naïve <b>"]},
            "days": {"type": "integer", "minimum": 1, "maximum": 14},
            "far": {"type": "number", "minimum": -50, "maximum": 1000.5},
            "sure": {"type": "boolean"},
        },
        "city",
        "sure",
    ),
    tool("count", {"n": {"type": "integer"}}, "n"),
    {"type": "function", "function": {"name": "now", "description": "the time"}},
]
NESTED = [
    tool(
        "plan",
        {
            "steps": {"type": "array", "items": {"type": "string", "enum": ["a", "b"]}, "minItems": 1, "maxItems": 3},
            "at": {"type": "object", "properties": {"x": {"$ref": "#/$defs/n"}, "y": {"$ref": "#/$defs/n"}}},
            "none": {"type": "null"},
            "level": {"type": "integer", "enum": [1, 2]},
        },
        "steps",
        "at",
        **{"$defs": {"n": {"type": "integer"}}},
    )
]


def job(**fields: Any) -> Job:
    line = check_line(json.dumps({"id": "x", "messages": [USER], **fields}).encode())
    return line.job(index=0, line=1, batch_id="b", defaults=Defaults({"model": "m"}))


def preparer(name: str) -> Preparer:
    tokenizer = tools_tokenizer(name)
    eos = frozenset(tokenizer.eos_token_ids)
    model = SimpleNamespace(tokenizer=tokenizer, vocab_size=len(tokenizer), eos=eos, context_length=None)
    return Preparer(model)  # type: ignore[arg-type]


def prepared(name: str, tools: list[dict[str, Any]], choice: Any = "required", **fields: Any) -> Any:
    return preparer(name).prepare(job(tools=tools, tool_choice=choice, **fields))


def walk(name: str, line: Any, seed: int, most: int = 4000) -> str:
    """A text that the line's grammar allows, its tokens drawn at random."""
    draw, tokenizer = random.Random(seed), tools_tokenizer(name)
    closers = [list(tokenizer.encode(text, add_special_tokens=False)) for text in CLOSERS]
    vocabulary, matcher = line.guide.vocabulary, line.guide.matcher.deep_copy()
    tokens: list[int] = []
    while len(tokens) < most:
        mask, complete = vocabulary.compute([matcher])
        allowed = np.flatnonzero(np.unpackbits(mask[0].view(np.uint8), bitorder="little"))
        if complete[0] and (not len(allowed) or draw.random() < 0.7):
            return str(tokenizer.decode(tokens))
        ends = [one for one in closers if matcher.validate_tokens(one) == len(one)]
        chosen = draw.choice(ends) if ends and draw.random() < 0.4 else [int(draw.choice(list(allowed)))]
        assert matcher.consume_tokens(chosen)
        tokens += chosen
    raise AssertionError("the text does not come to an end")


def read(name: str, line: Any, raw: str) -> list[dict[str, Any]]:
    """The calls of a whole text."""
    markup = markup_of(tools_tokenizer(name))
    segments = segments_of(raw, markup, line.begins, calls=True)
    found = CallReader(tools_tokenizer(name), markup).read(raw, segments, line.tools, call_ids(1, line.prompt))
    assert (found.error, found.text) == (None, ""), raw
    return found.calls


def checked(tools: list[dict[str, Any]], calls: list[dict[str, Any]]) -> None:
    """Each call has arguments of its tool's schema."""
    schemas = {one["function"]["name"]: one["function"].get("parameters", {}) for one in tools}
    for call in calls:
        arguments = json.loads(call["function"]["arguments"])
        jsonschema.validate(arguments, schemas[call["function"]["name"]])


@pytest.mark.parametrize("name", ENFORCED)
def test_what_a_grammar_allows_is_a_call(name: str) -> None:
    """Random texts of each format's grammar are calls of the tools, with arguments that their schemas allow."""
    line, seen = prepared(name, FLAT), set()
    for seed in range(25):
        calls = read(name, line, walk(name, line, seed))
        assert calls
        checked(FLAT, calls)
        seen |= {call["function"]["name"] for call in calls}
    assert seen == {"look_up", "count", "now"}


@pytest.mark.parametrize("name", [name for name in ENFORCED if name != "function_gemma"])
def test_values_within_values(name: str) -> None:
    """Arrays, objects and references are enforced too, in all formats that have them."""
    line = prepared(name, NESTED)
    for seed in range(15):
        checked(NESTED, read(name, line, walk(name, line, seed)))


@pytest.mark.parametrize("name", ENFORCED)
def test_a_named_function_is_called_once(name: str) -> None:
    """The function that a line names is the one that is called, and no other call follows."""
    line = prepared(name, FLAT, {"type": "function", "function": {"name": "count"}})
    for seed in range(8):
        (call,) = read(name, line, walk(name, line, seed))
        assert call["function"]["name"] == "count"


@pytest.mark.parametrize("name", ENFORCED)
def test_one_call_at_most(name: str) -> None:
    """Without parallel calls a text has one; with them it may have more, in all formats but harmony."""
    single, many = prepared(name, FLAT, parallel_tool_calls=False), prepared(name, FLAT)
    assert {len(read(name, single, walk(name, single, seed))) for seed in range(8)} == {1}
    assert (max(len(read(name, many, walk(name, many, seed))) for seed in range(20)) > 1) is (name != "harmony")


@pytest.mark.parametrize(
    ("name", "properties", "field"),
    [
        ("function_gemma", {"a": {"type": "array", "items": {"type": "string"}}}, "properties.a"),
        ("qwen3_coder", {"a": {"type": "string", "pattern": "^a$"}}, "properties.a.pattern"),
        ("qwen3_coder", {"a": {"anyOf": [{"type": "string"}, {"type": "integer"}]}}, "properties.a"),
        ("gemma4", {"a": {"type": "string", "minLength": 3}}, "properties.a.minLength"),
        ("gemma4", {"a-b": {"type": "string"}}, "properties.a-b"),
        ("gemma4", {"a": {"type": "object", "properties": {}, "patternProperties": {"b": {}}}}, "a.patternProperties"),
    ],
)
def test_what_a_format_cannot_enforce_is_refused(name: str, properties: dict[str, Any], field: str) -> None:
    """A keyword that a format has no grammar for is named, with what to do; JSON formats enforce it."""
    with pytest.raises(LineError) as caught:
        prepared(name, [tool("t", properties, "a" if "a" in properties else "a-b")])
    assert caught.value.code == "unsupported"
    assert caught.value.field is not None
    assert caught.value.field.startswith("tools[0].function.parameters")
    assert caught.value.field.endswith(field)
    assert "auto" in caught.value.message
    assert prepared("json_tools", [tool("t", properties)]).guide is not None
    assert prepared(name, [tool("t", properties)], "auto").guide is None


def test_a_format_without_a_grammar_is_refused() -> None:
    """Of a format that is only read, calls can be asked for and not demanded."""
    with pytest.raises(LineError) as caught:
        prepared("glm47", FLAT)
    assert (caught.value.code, caught.value.field) == ("unsupported", "tool_choice")
    assert "glm47" in caught.value.message
    assert prepared("glm47", FLAT, "auto").guide is None


def test_texts_with_markers_in_them_are_not_cut() -> None:
    """A text argument may hold angles and tags, and never the end of its own element."""
    line = prepared("qwen3_coder", [tool("t", {"a": {"type": "string"}}, "a")])
    tokenizer = tools_tokenizer("qwen3_coder")

    def takes(text: str) -> bool:
        raw = f"<tool_call>\n<function=t>\n<parameter=a>\n{text}\n</parameter>\n</function>\n</tool_call>"
        tokens = tokenizer.encode(raw, add_special_tokens=False)
        matcher = line.guide.matcher.deep_copy()
        return bool(matcher.validate_tokens(tokens) == len(tokens))

    assert all(map(takes, ["", "a < b", "<b>x</b>", "<p>\n</p>\n", "a\n\nb", "</ta", "<<<", "日本"]))
    assert not any(map(takes, ["a</parameter>b", "x</function>", "null", "NULL"]))


@pytest.mark.parametrize("name", ["json_tools", "harmony"])
def test_a_thought_comes_first(name: str) -> None:
    """A model that thinks may do so before the call that it must make, and the text is read as both."""
    line, tokenizer = prepared(name, FLAT), tools_tokenizer(name)
    thinking = markup_of(tokenizer).thinking
    assert thinking is not None
    thought = tokenizer.encode(f"{thinking.start}hm{thinking.end}", add_special_tokens=False)
    guide = Guide(line.guide)
    guide.follow(thought)
    assert guide.error is None
    raw = tokenizer.decode(thought) + walk(name, line, 3)
    assert read(name, line, raw)


def test_a_value_of_harmony_is_in_the_final_channel() -> None:
    """A constraint of a model with channels holds in its final channel, whose header is written for it."""
    line = preparer("harmony").prepare(job(response_format={"type": "json_object"}))
    tokenizer = tools_tokenizer("harmony")

    def takes(raw: str) -> bool:
        guide = Guide(line.guide)
        guide.follow(tokenizer.encode(raw, add_special_tokens=False))
        return guide.error is None and guide.complete

    final = '<|channel|>final<|message|>{"a": 1}'
    assert takes(final)
    assert takes(f"<|channel|>analysis<|message|>So, {{.<|end|><|start|>assistant{final}")
    assert not takes('{"a": 1}')
    assert not takes('<|channel|>commentary<|message|>{"a": 1}')


def test_a_call_that_no_parser_reads_is_not_valid() -> None:
    """Its arguments hold the marker that ends a call, as text."""
    line = prepared("json_tools", [tool("t", {"a": {"const": "</tool_call>"}}, "a")])
    row = Sequence(line, 0, 1, 4000, text=walk("json_tools", line, 1), stop_reason="eos", valid=True)
    choice = TextAssembler(tools_tokenizer("json_tools")).assemble(row)
    assert choice.tool_call_error is not None
    assert (choice.tool_calls, choice.valid) == ([], False)


@pytest.mark.parametrize(
    ("raw", "valid"),
    [
        ("<|channel|>final<|message|>12 END", True),
        ("<|channel|>analysis<|message|>So END.<|end|><|start|>assistant<|channel|>final<|message|>1 END", True),
        ("<|channel|>final<|message|> END", False),
    ],
)
def test_a_value_of_harmony_that_a_stop_string_ends(raw: str, valid: bool) -> None:
    """What is behind the header and before the stop string is judged, and so is a turn that goes on."""
    line, markup = (
        preparer("harmony").prepare(job(guided_regex="[0-9]+( END)?", stop=[" END"])),
        markup_of(tools_tokenizer("harmony")),
    )
    row = Sequence(line, choice=0, seed=1, limit=100)
    row.text, row.stop_reason = raw.removesuffix(" END"), "stop_string"
    row.guide = Guide(line.guide)
    assert is_valid(row, markup, Detokenizer(tools_tokenizer("harmony"))) is valid
    begun = preparer("harmony").prepare(job(guided_regex="[0-9]+( END)?", prefill_response="It is "))
    assert begun.guide.matches("12")
    assert not begun.guide.matches("12 ")
