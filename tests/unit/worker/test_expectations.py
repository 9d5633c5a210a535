"""What texts are expected to be: which expectations are taken, and how they judge."""

from __future__ import annotations

import re
import time
from typing import Any

import orjson
import pytest

from jobs.errors import LineError
from jobs.lines.line import Defaults, check_line
from submit.input.reader import open_prompts
from submit.input.validate import checked
from worker.shards.judge import Judges, judge_of

pytest.importorskip("llguidance")
pytest.importorskip("jinja2")
pytest.importorskip("jsonschema")

SCHEMA = {
    "type": "object",
    "required": ["a"],
    "properties": {"a": {"type": "string", "pattern": "^b+$"}, "c": {"pattern": "x"}},
    "$defs": {"n": {"type": "integer"}},
}


@pytest.mark.parametrize(
    ("expect", "good", "bad"),
    [
        ("json", '{"a": 1}', "{"),
        (SCHEMA, '{"c": "axe", "a": "bb"}', '{"a": "cb"}'),
        (SCHEMA, '{"a": "b"}', "no JSON"),
        ({"$ref": "#/$defs/n", "$defs": {"n": {"type": "integer"}}}, "3", "x"),
        ({"pattern": "^a|b$"}, '"cb"', '"bc"'),
        ({"pattern": "^[|)]|b"}, '")c"', '"c)"'),
        ({"pattern": r"^\p{L}+$"}, '"é"', '"1"'),
        ({"pattern": r"a\\$"}, r'"xa\\"', r'"xa\\y"'),
        (
            {"$schema": "https://json-schema.org/draft/2020-12/schema", "properties": {"patternProperties": {}}},
            "1",
            "x",
        ),
        ({"uniqueItems": True}, '[1, true, "1", {"a": 1}]', '[{"a": 1, "b": 2}, {"b": 2, "a": 1.0}]'),
        ({"enum": [{"$ref": "https://example.org"}]}, '{"$ref": "https://example.org"}', "1"),
        ("regex:[0-9]+ (yes|no)", "12 no", "12 no!"),
        ("jinja:answer in completion and stop_reason == 'eos'", "the answer: q", "none"),
        ("jinja:json.n > 3", '{"n": 4}', '{"n": 3}'),
        ("jinja:json.n > 3", '{"n": 4}', "no JSON"),
        ("jinja:completion | length < 5", "abc", "abcdef"),
    ],
)
def test_texts_are_judged(expect: Any, good: str, bad: str) -> None:
    """A text as expected passes, another does not; a condition knows the row's columns."""
    judge, about = judge_of(expect), {"answer": "q", "stop_reason": "eos"}
    assert (judge(good, about), judge(bad, about)) == (True, False)


@pytest.mark.parametrize(
    ("expect", "said"),
    [
        ("jsn", "must be 'json'"),
        (5, "must be 'json'"),
        ("regex:(", "no regular expression"),
        ("regex:(?=a)b", "no regular expression"),
        ("jinja:{{ x }}", "without braces"),
        ("jinja:x +", "unexpected"),
        ({"type": "objct"}, "/type"),
        ({"$ref": "https://example.org/s.json"}, "stands alone"),
        ({"patternProperties": {"a": {}}}, "patternProperties"),
        ({"properties": {"x": {"$ref": "#/$defs/a"}}}, "'#/$defs/a', which is not in it"),
        ({"items": {"pattern": "(?=a)b"}}, "look-around"),
        ({"pattern": "(a^b)"}, "cannot be judged by"),
        (orjson.loads('{"items":' * 400 + "{}" + "}" * 400), "nested too deeply"),
        ("regex:" + "a" * 70_000, "at most 65536"),
    ],
)
def test_expectations_that_are_none(expect: Any, said: str) -> None:
    """Refused before anything runs, with what is wrong."""
    with pytest.raises(LineError) as caught:
        Defaults({"expect": expect})
    assert said in caught.value.message


def test_a_line_has_its_own_or_that_of_its_batch() -> None:
    """As any other field."""
    defaults = Defaults({"model": "m", "expect": "json", "re_ask": 2})
    own = check_line(b'{"prompt": "x", "expect": "regex:a", "re_ask": 0}')
    assert own.job(index=0, line=1, batch_id="b", defaults=defaults).expect == "regex:a"
    job = check_line(b'{"prompt": "x"}').job(index=0, line=1, batch_id="b", defaults=defaults)
    assert (job.expect, job.re_ask) == ("json", 2)
    with pytest.raises(LineError, match=r"0\.\.100"):
        check_line(b'{"prompt": "x", "re_ask": 101}')


HOSTILE: list[tuple[Any, str]] = [
    ("regex:(a*)*b", "a" * 100_000),
    ("regex:(a|aa)+c", "a" * 100_000),
    ({"type": "string", "pattern": "^(a+)+$"}, '"' + "a" * 100_000 + '!"'),
    ("jinja:range(99999) | sum > 0 and (completion * 99999) | length", "a" * 10_000),
    ({"type": "array", "items": {"$ref": "#"}}, "[" * 100_000),
    ({"$ref": "#"}, "1"),
    ({"allOf": [{"$ref": "#"}]}, "1"),
    (
        {
            "$ref": "#/$defs/0",
            "$defs": {str(n): {"allOf": [{"$ref": f"#/$defs/{n + 1}"}] * 2} for n in range(40)} | {"40": {}},
        },
        "1",
    ),
    ({"uniqueItems": True, "maxItems": 1}, "[" + ",".join(f'{{"a": {n}}}' for n in range(20_000)) + "]"),
    (
        {"properties": {"a": {"$schema": "http://json-schema.org/draft-07/schema#", "pattern": "^(a+)+$"}}},
        '{"a": "' + "a" * 40 + '!"}',
    ),
]


@pytest.mark.parametrize(("expect", "text"), HOSTILE, ids=[str(number) for number in range(len(HOSTILE))])
def test_hostile_expectations_take_bounded_time(expect: Any, text: str) -> None:
    """Whatever the expression, the schema or the text: no, soon."""
    Defaults({"expect": expect})
    begun = time.process_time()
    assert not judge_of(expect)(text, {})
    assert time.process_time() - begun < 10


def test_judges_are_made_once() -> None:
    """Lines of a batch have one."""
    judges = Judges()
    assert judges.of("json") is judges.of("json")
    assert judges.of(SCHEMA) is judges.of(dict(SCHEMA))


@pytest.mark.parametrize(
    ("expect", "said"),
    [
        ("jinja:answr in completion", "'answr', which is none of the columns.*did you mean 'answer'"),
        ("jinja:answer in completion and json.n == 1 and hint | default('') and stop_reason and reasoning", None),
        ("json", None),
    ],
)
def test_a_condition_asks_for_columns_that_are_there(expect: str, said: str | None) -> None:
    """A column that does not travel with the line would fail each text: it is refused before anything runs."""
    defaults = Defaults({"model": "m", "expect": expect})
    with open_prompts([{"prompt": "x", "metadata": {"answer": "q"}}]) as prompts:
        (chunk,) = checked(prompts, defaults)
    assert [bool(re.search(str(said), problem.message)) for line in chunk.bad for problem in line.problems] == [
        True for _ in [said] if said
    ]
