"""A file's lines are checked as the worker checks them: texts, and calls that must be made."""

from __future__ import annotations

import tempfile
from typing import Any, cast

import orjson
import pytest

from jobs.errors import LineError, ProblemLine, RefusedError
from jobs.guided.check import Checker
from jobs.lines.line import Defaults, check_line
from submit.input.reader import PromptFile
from submit.input.validate import Findings, checked
from submit.upload.submit_notes import notes
from worker.shards.preparer import ShardPreparer

BAD = {"type": "object", "properties": {"a/b": {"type": "array", "uniqueItems": True}}}
NAMED = {"type": "function", "function": {"name": "bad"}}


def tool(name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def tools_line(parameters: dict[str, Any], choice: Any) -> dict[str, Any]:
    tools = [tool("good", {"type": "object"}), tool("bad", parameters)]
    return {"messages": [{"role": "user", "content": "hi"}], "tools": tools, "tool_choice": choice}


def findings(*lines: dict[str, Any], **defaults: Any) -> Findings:
    found = Findings()
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"".join(orjson.dumps(line) + b"\n" for line in lines))
        file.flush()
        with PromptFile(file.name) as prompts:
            for chunk in checked(prompts, Defaults({"model": "m", **defaults})):
                found.add(chunk)
    return found


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        (BAD, "at \"/properties/a~1b/uniqueItems\": 'uniqueItems' cannot be enforced; remove it"),
        (
            {"$schema": "http://json-schema.org/draft-07/schema#", "dependentRequired": {"a": ["b"]}},
            "at \"/dependentRequired\": 'dependentRequired' cannot be enforced",
        ),
        ({"properties": {"a": {"contentSchema": {}}}}, 'at "/properties/a/contentSchema"'),
        ({"properties": {"a": {"type": "integer", "divisibleBy": 2}}}, "write 'multipleOf'"),
        ({"properties": {"a": {"type": "strin"}}}, "at \"/properties/a/type\": 'type' strin is no type"),
        ({"required": [{}]}, 'at "/required"'),
    ],
)
@pytest.mark.parametrize("choice", ["required", NAMED])
def test_schemas_of_calls_that_must_be_made_are_checked(parameters: dict[str, Any], said: str, choice: Any) -> None:
    """Before anything is enqueued and in the worker, with the tool, the place, the keyword and the remedy."""
    line = tools_line(parameters, choice)
    (problem,) = findings(line).problems
    assert (problem.code, problem.field) == ("invalid_schema", "tools[1].function.parameters")
    assert said in problem.message
    assert problem.message.endswith("; or give 'tool_choice': \"auto\", which enforces nothing")
    defaults = Defaults({"model": "m"})
    made = check_line(orjson.dumps(line)).job(index=0, line=1, batch_id="b", defaults=defaults)
    with pytest.raises(LineError) as caught:
        ShardPreparer(*cast("Any", (None, None, None)))._checked(made)
    assert caught.value.at(1) == ProblemLine(1, problem.code, problem.field, problem.message)


def test_schemas_of_calls_that_may_be_made_are_not() -> None:
    """Nothing enforces them, nor those of functions that the choice does not name."""
    other = {"type": "function", "function": {"name": "good"}}
    assert findings(*(tools_line(BAD, choice) for choice in ("auto", "none", other))).problems == []


def test_a_batch_that_demands_calls_is_refused_as_a_whole() -> None:
    """As with its other constraints; a line may demand calls of the batch's tools by itself."""
    line = {"messages": [{"role": "user", "content": "hi"}]}
    tools = [tool("bad", BAD)]
    with pytest.raises(RefusedError, match=r"the batch's 'tools\[0\].function.parameters': at \"/properties/a~1b"):
        findings(line, tools=tools, tool_choice="required")
    found = findings(line, line | {"tool_choice": "required"}, tools=tools)
    assert [problem.line for problem in found.problems] == [2]


def test_the_schema_of_a_text_and_of_a_call_are_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is told its own way out."""
    calls, compiled = [], Checker._compiled
    monkeypatch.setattr(Checker, "_compiled", lambda self, grammar: calls.append(grammar) or compiled(self, grammar))
    line = {"messages": [{"role": "user", "content": "hi"}], "guided_json": BAD}
    found = findings(line, *[tools_line(BAD, NAMED)] * 3)
    assert len(calls) == 1
    assert [problem.message.rpartition("; or ")[2].split()[0] for problem in found.problems] == (
        ['"lenient":', "give", "give", "give"]
    )


def test_what_is_left_to_the_worker_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the grammar library is missing; in one line, which counts texts and calls."""
    line = {"messages": [{"role": "user", "content": "hi"}]}
    lines = [line, line | {"guided_json": BAD}, tools_line(BAD, NAMED), tools_line(BAD, "auto")]
    assert notes(findings(line, tools_line({}, NAMED)), Defaults({"model": "m"})) == []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = findings(*lines)
    assert (found.problems, found.unchecked) == ([], 2)
    (said,) = notes(found, Defaults({"model": "m"}))
    assert said == "2 constraints left to the worker's check: to have them checked here, install promptmill[guided]"


def test_a_re_ask_without_an_expectation_is_said_to_do_nothing() -> None:
    """By how many lines; those that say what their texts are to be are none of them."""
    lines = [{"prompt": "x"}, {"prompt": "x", "expect": "json"}, {"prompt": "x", "re_ask": 0}]
    (said,) = notes(findings(*lines, re_ask=2), Defaults({"model": "m"}))
    assert said.startswith("re_ask does nothing for 1 line: say what texts are to be, with --expect")
    assert notes(findings(*lines), Defaults({"model": "m"})) == []
