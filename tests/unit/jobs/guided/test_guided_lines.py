"""What lines and batches say about the shape of texts: fields, their checks, and what wins."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from jobs.errors import LineError
from jobs.guided.constraint import Constraint
from jobs.lines.line import Defaults, Job, check_line

USER = [{"role": "user", "content": "hi"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
TEXT = orjson.dumps(SCHEMA).decode()
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
NAMED = {"type": "function", "function": {"name": "weather"}}


def job(line: dict[str, Any], **defaults: Any) -> Job:
    checked = check_line(orjson.dumps({"messages": USER, **line}))
    return checked.job(index=0, line=1, batch_id="b_1", defaults=Defaults({"model": "m", **defaults}))


def refused(line: dict[str, Any], **defaults: Any) -> LineError:
    with pytest.raises(LineError) as caught:
        job(line, **defaults)
    return caught.value


def json_schema(**more: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, **more}}}


@pytest.mark.parametrize(
    ("line", "constraint"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, Constraint("json", '{"type":"object"}')),
        (json_schema(strict=True), Constraint("json", TEXT)),
        (json_schema(strict=None, description="d"), Constraint("json", TEXT)),
        (json_schema(lenient=True), Constraint("json", TEXT, lenient=True)),
        ({"guided_json": SCHEMA}, Constraint("json", TEXT)),
        ({"guided_json": TEXT}, Constraint("json", TEXT)),
        ({"guided_regex": "a+"}, Constraint("regex", "a+")),
        ({"guided_choice": ["yes", "no", "yes"]}, Constraint("choice", '["yes","no"]')),
        ({"guided_grammar": 'start: "a"'}, Constraint("grammar", 'start: "a"')),
        ({"structured_outputs": {"json": SCHEMA, "lenient": True}}, Constraint("json", TEXT, lenient=True)),
        ({"structured_outputs": {"regex": "a+", "json": None}}, Constraint("regex", "a+")),
        ({"structured_outputs": {"choice": ["a"]}, "guided_regex": None}, Constraint("choice", '["a"]')),
        ({"structured_outputs": {"grammar": "start: A", "backend": "xgrammar"}}, Constraint("grammar", "start: A")),
    ],
)
def test_each_way_to_say_it_is_a_constraint(line: dict[str, Any], constraint: Constraint | None) -> None:
    """In both line formats, and as a batch's default."""
    assert job(line).constraint == constraint
    assert job({}, **line).constraint == constraint
    body = check_line(orjson.dumps({"custom_id": "a", "body": {"messages": USER, **line}}))
    assert body.job(index=0, line=1, batch_id="b", defaults=Defaults({"model": "m"})).constraint == constraint


def test_defaults_stay_what_they_are_when_they_travel() -> None:
    """They are written as JSON and checked again by the worker."""
    defaults = Defaults({"model": "m", **json_schema(lenient=True), "tools": [TOOL], "tool_choice": "none"})
    again = Defaults(orjson.loads(orjson.dumps(dict(defaults.fields))))
    line = check_line(orjson.dumps({"messages": USER}))
    made = [line.job(index=0, line=1, batch_id="b", defaults=one) for one in (defaults, again)]
    assert made[0] == made[1]
    assert made[0].tools == (TOOL,)


def test_a_lines_own_word_wins_over_the_batchs() -> None:
    """Another kind too, and the word that there is none."""
    assert job({"guided_regex": "a"}, guided_json=SCHEMA).constraint == Constraint("regex", "a")
    assert job({"response_format": {"type": "text"}}, guided_json=SCHEMA).constraint is None
    assert job({"response_format": None}, guided_regex="a").constraint == Constraint("regex", "a")
    assert job({"tools": []}, tools=[TOOL], tool_choice="required").tools == ()
    assert job({"thinking_budget": -1}, thinking_budget=5).thinking_budget is None


@pytest.mark.parametrize(
    ("line", "code", "field", "said"),
    [
        ({"response_format": "json"}, "invalid_type", "response_format", "object"),
        ({"response_format": {"schema": {}}}, "missing_field", "response_format.type", "json_schema"),
        ({"response_format": {"type": "regex"}}, "unsupported", "response_format.type", "guided_regex"),
        ({"response_format": {"type": "json_object", "schema": {}}}, "unsupported", "response_format.schema", "name"),
        ({"response_format": {"type": "json_schema"}}, "missing_field", "response_format.json_schema", "schema"),
        (json_schema(name=None), "missing_field", "response_format.json_schema.name", "name"),
        (json_schema(name="a b"), "out_of_range", "response_format.json_schema.name", "64"),
        (json_schema(schema=[]), "invalid_type", "response_format.json_schema.schema", "object"),
        (json_schema(strict="yes"), "invalid_type", "response_format.json_schema.strict", "true or false"),
        (json_schema(lenent=True), "unknown_field", "response_format.json_schema.lenent", "did you mean 'lenient'"),
        ({"guided_json": "{"}, "invalid_type", "guided_json", "no JSON"),
        ({"guided_json": True}, "invalid_type", "guided_json", "object"),
        ({"guided_choice": []}, "out_of_range", "guided_choice", "at least one"),
        ({"guided_choice": "yes"}, "invalid_type", "guided_choice", "array"),
        ({"guided_choice": ["a", 5]}, "invalid_type", "guided_choice[1]", 'write "5"'),
        ({"guided_choice": ["a", ""]}, "out_of_range", "guided_choice[1]", "empty"),
        ({"guided_regex": 5}, "invalid_type", "guided_regex", "string"),
        ({"structured_outputs": {"lenient": True}}, "missing_field", "structured_outputs", "json, regex"),
        ({"structured_outputs": {"json": {}, "regex": "a"}}, "conflicting_fields", "structured_outputs.regex", "one"),
        ({"structured_outputs": {"json_object": True}}, "unsupported", "structured_outputs.json_object", "'json'"),
        ({"structured_outputs": {"jsn": {}}}, "unknown_field", "structured_outputs.jsn", "did you mean 'json'"),
        ({"guided_json": SCHEMA, "guided_regex": "a"}, "conflicting_fields", "guided_regex", "'guided_json'"),
        ({"thinking_budget": -5}, "out_of_range", "thinking_budget", "0 is no thinking"),
        ({"thinking_budget": "5"}, "invalid_type", "thinking_budget", "integer"),
        ({"return_token_ids": 1}, "invalid_type", "return_token_ids", "true or false"),
        ({"json_schema": SCHEMA}, "unknown_field", "json_schema", "is 'guided_json' here"),
        ({"regex": "a"}, "unknown_field", "regex", "is 'guided_regex' here"),
        ({"ebnf": "root ::= a"}, "unsupported", "ebnf", "guided_grammar"),
        ({"format": "json"}, "unsupported", "format", "json_object"),
        ({"guided_whitespace_pattern": " "}, "unsupported", "guided_whitespace_pattern", "one blank"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(line: dict[str, Any], code: str, field: str, said: str) -> None:
    """The code, the field and the remedy."""
    error = refused(line)
    assert (error.code, error.field) == (code, field)
    assert said in error.message


def test_tools_are_openais() -> None:
    """Without parameters a function takes none; choices are words or one name."""
    made = job({"tools": [TOOL, {"type": "function", "function": {"name": "now", "strict": None}}]})
    assert made.tools == (TOOL, {"type": "function", "function": {"name": "now"}})
    assert (made.tool_choice, made.parallel_tool_calls) == ("auto", True)
    made = job({"tools": [TOOL], "tool_choice": NAMED, "parallel_tool_calls": False})
    assert (made.tool_choice, made.parallel_tool_calls) == (NAMED, False)
    assert job({"tool_choice": NAMED}, tools=[TOOL]).tool_choice == NAMED


def function(**fields: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": "f", **fields}}]}


@pytest.mark.parametrize(
    ("line", "code", "field", "said"),
    [
        ({"tools": {"a": 1}}, "invalid_type", "tools", "array"),
        ({"tools": [5]}, "invalid_type", "tools[0]", "object"),
        ({"tools": [{"function": {"name": "f"}}]}, "missing_field", "tools[0].type", "function"),
        ({"tools": [{"type": "web_search"}]}, "unsupported", "tools[0].type", "function"),
        ({"tools": [{"name": "f", "input_schema": {}}]}, "missing_field", "tools[0].function", "OpenAI"),
        (function(name="get weather"), "out_of_range", "tools[0].function.name", "64"),
        (function(name=None), "missing_field", "tools[0].function.name", "name"),
        (function(params={}), "unknown_field", "tools[0].function.params", "parameters"),
        (function(parameters=[]), "invalid_type", "tools[0].function.parameters", "object"),
        (function(parameters={"type": "string"}), "invalid_schema", "tools[0].function.parameters.type", "properties"),
        (function(description=5), "invalid_type", "tools[0].function.description", "string"),
        ({"tools": [TOOL, TOOL]}, "conflicting_fields", "tools[1].function.name", "tools[0]"),
        ({"tools": [TOOL] * 129}, "out_of_range", "tools", "128"),
        ({"tool_choice": "required"}, "missing_field", "tools", "'tool_choice'"),
        ({"tools": [TOOL], "tool_choice": "any"}, "out_of_range", "tool_choice", "write 'required'"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "wether"}}},
         "conflicting_fields", "tool_choice.function.name", "did you mean 'weather'"),
        ({"tools": [TOOL], "guided_regex": "a"}, "conflicting_fields", "guided_regex", "'none'"),
        ({"tools": [TOOL], "messages": None, "prompt": "x"}, "conflicting_fields", "tools", "'messages'"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_tools_is_named(line: dict[str, Any], code: str, field: str, said: str) -> None:
    """The tool by its number, the field and the remedy."""
    error = refused(line)
    assert (error.code, error.field) == (code, field)
    assert said in error.message


def test_a_batchs_tools_are_not_for_prompts() -> None:
    """They need the chat template; its constraint is for all lines."""
    made = job({"messages": None, "prompt": "x"}, tools=[TOOL], tool_choice="none", guided_regex="a")
    assert (made.tools, made.tool_choice, made.constraint) == ((), "auto", Constraint("regex", "a"))
