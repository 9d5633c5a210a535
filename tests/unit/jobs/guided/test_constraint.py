"""The grammars of constraints take the texts they are meant to take, as a whole, and no others."""

from __future__ import annotations

import json
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from jobs.guided.constraint import Constraint, json_constraint

BYTES = LLTokenizer("byte")


def takes(constraint: Constraint, text: str) -> bool:
    """Whether a text can be written under a constraint and may end there; the tokens are bytes."""
    matcher = LLMatcher(BYTES, constraint.grammar(), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    tokens = BYTES.tokenize_str(text)
    return bool(matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting())


@pytest.mark.parametrize("choice", ["yes", "yes please", 'a "b"\n', "é😀", "a/b\\c", "{}", "|"])
def test_a_choice_is_a_plain_text(choice: str) -> None:
    """Not a JSON string of it, and also where another choice begins with it."""
    constraint = Constraint("choice", json.dumps([choice, "yes", "no"]))
    assert takes(constraint, choice)
    assert not takes(constraint, json.dumps(choice))
    assert not takes(constraint, choice + "x")
    assert not takes(constraint, choice[:-1] or "x")


@pytest.mark.parametrize(
    ("pattern", "right", "wrong"),
    [
        ("a/b", "a/b", "ab"), (r"a\/b", "a/b", r"a\/b"), ("a\nb", "a\nb", "ab"), (r"\\/", "\\/", "/"),
        ("^a$|^b$", "b", "ab"), ("[/]+", "//", ""), ("(?i)yes", "YES", "YESX"), ("a|bc", "bc", "ac"),
        (r"\d{3}-\d{4}", "555-1234", "x555-1234"), ("#x", "#x", "x"), ("x\\\ny", "x\ny", "xy"),
    ],
)  # fmt: skip
def test_a_regular_expression_matches_the_whole_text(pattern: str, right: str, wrong: str) -> None:
    """Whatever characters of the grammar's own language are in it."""
    constraint = Constraint("regex", pattern)
    assert takes(constraint, right)
    assert not takes(constraint, wrong)


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "array", "items": {"type": "integer"}}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


def test_json_is_compact_or_has_single_blanks() -> None:
    """As models write it; no run of blanks is possible, whatever the schema says to the library."""
    for own in ({}, {"x-guidance": {"whitespace_flexible": True}}):
        constraint = json_constraint({**SCHEMA, **own})
        assert takes(constraint, '{"a":1,"b":[1,2]}')
        assert takes(constraint, '{"a": 1, "b": [1, 2]}')
        assert not takes(constraint, '{"a":  1, "b": [1, 2]}')
        assert not takes(constraint, '{\n\n"a": 1, "b": []}')
        assert not takes(constraint, '{"a": 1, "b": [1, 2]} ')
        assert not takes(constraint, ' {"a": 1, "b": [1, 2]}')
        assert not takes(constraint, '{"a": 1, "b": [1, 2], "c": 3}')


def test_an_empty_schema_takes_any_value() -> None:
    """And ``{"type": "object"}`` any object."""
    assert takes(json_constraint({}), '[{"a": null}, 1.5, "x"]')
    assert takes(json_constraint({"type": "object"}), '{"a": {"b": []}}')
    assert not takes(json_constraint({"type": "object"}), "[]")


def test_equal_constraints_have_one_grammar_wherever_they_stand() -> None:
    """The field that gives it is for messages only."""
    one, other = json_constraint(SCHEMA, field="guided_json"), json_constraint(SCHEMA, field="response_format")
    assert one == other
    assert hash(one) == hash(other)
    assert one.grammar() == other.grammar()
    assert one != json_constraint(SCHEMA, lenient=True)
