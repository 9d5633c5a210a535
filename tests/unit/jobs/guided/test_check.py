"""Constraints that cannot be enforced are refused with the place, the keyword and the remedy, in bounded time."""

from __future__ import annotations

import json
from typing import Any

import pytest

from jobs.errors import LineError
from jobs.guided.check import Checker
from jobs.guided.constraint import Constraint, json_constraint


def refused(constraint: Constraint) -> LineError:
    with pytest.raises(LineError) as caught:
        Checker().check(constraint)
    return caught.value


def inside(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema as a property of another, beside a harmless one."""
    return {"type": "object", "properties": {"ok": {"type": "string"}, "a/b": {"type": "array", "items": schema}}}


@pytest.mark.parametrize(
    ("schema", "keyword", "remedy"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems", "drop repeated items"),
        ({"not": {"type": "string"}}, "not", "what is allowed"),
        ({"type": "array", "contains": {"const": 1}}, "contains", "prefixItems"),
        ({"type": "object", "propertyNames": {"pattern": "a"}}, "propertyNames", "patternProperties"),
        ({"type": "object", "dependentRequired": {"a": ["b"]}}, "dependentRequired", "anyOf"),
        ({"if": {"type": "string"}, "then": {"minLength": 2}}, "if", "anyOf"),
        ({"type": "string", "format": "chickenbutt"}, "format", "date-time"),
        ({"oneOf": [{"type": "string"}, {"minLength": 3}]}, "oneOf", "anyOf"),
        ({"type": "object", "minProperties": 3}, "minProperties", "required"),
        (
            {"type": "object", "maxProperties": 2, "properties": {"x": {}, "y": {}, "z": {}}},
            "maxProperties",
            "required",
        ),
    ],
)
def test_what_cannot_be_enforced_is_named_with_its_place(schema: dict[str, Any], keyword: str, remedy: str) -> None:
    """Also deep inside; with lenient it is a warning that says the same."""
    error = refused(json_constraint(inside(schema)))
    assert error.code == "invalid_schema"
    assert f"at \"/properties/a~1b/items/{keyword}\": '{keyword}'" in error.message
    assert remedy in error.message
    assert '"lenient": true' in error.message
    (warning, *_) = Checker().check(json_constraint(inside(schema), lenient=True))
    assert error.message.startswith(warning)


@pytest.mark.parametrize(
    ("schema", "place", "said"),
    [
        ({"type": "strin"}, "/type", "is no type"),
        ({"type": "string", "pattern": "(?=a)b"}, "/pattern", "look-around"),
        ({"type": "string", "pattern": r"(a)\1"}, "/pattern", "backreferences"),
        ({"type": "string", "minLength": -1}, "/minLength", "positive integer"),
        ({"type": "object", "required": "a"}, "/required", "array"),
        ({"$ref": "https://example.com/a.json"}, "/$ref", "nothing is fetched"),
        ({"$ref": "#/$defs/nowhere"}, "/$ref", "leads nowhere"),
        ({"type": "integer", "multipleOf": 0}, "/multipleOf", "above 0"),
    ],
)
def test_what_is_no_schema_is_named_with_its_place(schema: dict[str, Any], place: str, said: str) -> None:
    """No warning can make anything of it."""
    for lenient in (False, True):
        error = refused(json_constraint(inside(schema), lenient=lenient))
        assert f'at "/properties/a~1b/items{place}"' in error.message
        assert said in error.message
        assert "lenient" not in error.message


def test_keywords_of_other_drafts_are_not_ignored() -> None:
    """Draft 7 knows no dependentRequired; who writes it means it."""
    draft = "http://json-schema.org/draft-07/schema#"
    error = refused(json_constraint({"$schema": draft, "type": "object", "dependentRequired": {"a": ["b"]}}))
    assert "'dependentRequired' cannot be enforced" in error.message


@pytest.mark.parametrize(
    ("constraint", "said"),
    [
        (Constraint("regex", "(?=a)b"), "look-around"), (Constraint("regex", "(?<!a)b"), "look-around"),
        (Constraint("regex", r"(a)\1"), "back-references"), (Constraint("regex", r"a\bb"), "\\b is not supported"),
        (Constraint("regex", "a$b"), "whole text is matched"), (Constraint("regex", "[a"), "unclosed character class"),
        (Constraint("regex", "(" * 1000 + "a" + ")" * 1000), "nested"),
        (Constraint("grammar", "start: foo"), "line 1, column 8: 'foo' is not defined"),
        (Constraint("grammar", 'start: "a"\nb: C'), ""), (Constraint("grammar", 'a: "b"'), "no rule 'start'"),
        (Constraint("grammar", 'root ::= "a"'), "is GBNF; write Lark"), (Constraint("grammar", 'start: "a'), "line 1"),
        (Constraint("grammar", "start: start"), "no text is right"),
        (Constraint("grammar", "start: A\nA: B\nB: A"), "leads back to itself"),
    ],
)  # fmt: skip
def test_regular_expressions_and_grammars_say_what_is_wrong(constraint: Constraint, said: str) -> None:
    """In words, not in the library's; a rule that nothing uses does no harm."""
    if not said:
        assert Checker().check(constraint) == ()
        return
    error = refused(constraint)
    assert error.code == "invalid_schema"
    assert said in error.message


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


LOOP = {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}
HOSTILE = {
    "too large": Constraint("json", json.dumps({"enum": ["x" * 1000 + str(i) for i in range(2000)]})),
    "too deep": json_constraint(nested(60)),
    "a loop": json_constraint({"$ref": "#/$defs/a", "$defs": LOOP}),
    "itself": json_constraint({"$ref": "#"}),
    "many properties": json_constraint({"properties": {f"p{i}": {} for i in range(10_000)}}),
    "many patterns": json_constraint({"patternProperties": {f"^x{i}": {} for i in range(2000)}}),
    "cases multiplied": json_constraint(
        {"allOf": [{"anyOf": [{"properties": {f"p{j}_{i}": {}}} for i in range(10)]} for j in range(6)]}
    ),
    "cases added": json_constraint({"allOf": [{"properties": {f"p{i}": {"type": "string"}}} for i in range(5000)]}),
    "lexer": Constraint("grammar", "start: A\nA: /.*a.{30}/ & /.*b.{30}/ & /.*c.{30}/"),
    "long regex": Constraint("regex", "ab" * 500_000),
    "long grammar": Constraint("grammar", 'start: "a"\n' + "// x\n" * 100_000),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_constraints_are_refused(name: str) -> None:
    """Each by a limit of its own, before time or memory run out."""
    assert refused(HOSTILE[name]).code in ("invalid_schema", "out_of_range")


@pytest.mark.parametrize(
    "constraint",
    [
        Constraint("regex", "(x+x+)+y"), Constraint("regex", "a?{500}a{500}"), Constraint("regex", "(a|b)*a(a|b){200}"),
        json_constraint({"type": "array", "items": {"type": "integer"}, "minItems": 1_000_000_000}),
        json_constraint({"type": "string", "maxLength": 1_000_000_000}),
        json_constraint({"type": "object", "properties": {"c": {"type": "array", "items": {"$ref": "#"}}}}),
        json_constraint({"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "string"}]}}, "$ref": "#/$defs/a"}),
        json_constraint({"$defs": {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(30)}
                         | {"d30": {"type": "string"}}, "$ref": "#/$defs/d0"}),
    ],
    ids=range(8),
)  # fmt: skip
def test_what_only_looks_hostile_is_taken(constraint: Constraint) -> None:
    """Recursion that ends, and numbers that the matcher counts, cost nothing."""
    assert Checker().check(constraint) == ()


def test_one_text_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file's lines mostly have one schema."""
    checker, calls = Checker(), []
    compiled = checker._compiled
    monkeypatch.setattr(checker, "_compiled", lambda grammar: calls.append(grammar) or compiled(grammar))
    for field in ("guided_json", "response_format"):
        for _ in range(3):
            assert checker.check(json_constraint({"type": "string"}, field=field)) == ()
    assert len(calls) == 1
    for field in ("guided_json", "response_format"):
        with pytest.raises(LineError) as caught:
            checker.check(json_constraint({"not": {}}, field=field))
        assert caught.value.field == field


def test_without_the_library_only_limits_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest is left to the worker, which has it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    checker = Checker()
    assert not checker.available
    assert checker.check(json_constraint({"not": {}})) == ()
    assert checker.check(Constraint("regex", "(?=a)")) == ()
    with pytest.raises(LineError, match="at most 100"):
        checker.check(json_constraint(nested(60)))
