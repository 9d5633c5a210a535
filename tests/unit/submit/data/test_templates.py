"""Templates: what they may do with a row, and what becomes of those that ask for more."""

from __future__ import annotations

import time
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import RefusedError

pytest.importorskip("jinja2")

from jobs.templates.sandbox import Compiled, RowError, Sandbox
from submit.templates.file import template_of
from submit.templates.line import LineTemplate

ROW: dict[str, Any] = {
    "question": "why", "text": "hello there", "parts": [1, {"x": 2}], "deep": {"x": "y"}, "empty": None,
    "day": date(2024, 1, 2), "a b": "spaced", "t": "0.5", "schema": {"type": "object"},
    "turns": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}, {"from": "human", "value": "so?"}],
    "messages": [{"role": "user", "content": "hi", "name": None}],
}  # fmt: skip


def text(source: str, row: dict[str, Any] = ROW) -> str:
    return Compiled(Sandbox(), source, "--user").text(row)


def line(**fields: Any) -> dict[str, Any]:
    return LineTemplate(fields, Sandbox(), "t.toml").line(ROW)


@pytest.mark.parametrize(
    ("source", "written"),
    [
        ("{{ question }}?", "why?"),
        ("{{ deep.x }}{{ parts[1].x }}{{ day }}{{ day.year }}", "y22024-01-022024"),
        ("[{{ empty }}]", "[]"),
        ("{{ parts }}{{ deep | tojson }}", '[1,{"x":2}]{"x":"y"}'),
        ("{% for turn in turns %}{{ turn.value }},{% endfor %}", "hi,ho,so?,"),
        ("{{ text.split() | map('upper') | join('-') }}", "HELLO-THERE"),
        ("{{ missing | default('none') }}{% if other is defined %}x{% endif %}", "none"),
        ("{{ '{{' }}", "{{"),
        ("{{ question ~ 1 ~ empty }}", "why1"),
    ],
)
def test_what_templates_write(source: str, written: str) -> None:
    """Cells as people write them: nothing for an empty one, JSON for lists and objects, ISO 8601 for dates."""
    assert text(source) == written


def test_rows_are_not_templates() -> None:
    """What stands in a cell is text, whatever it looks like."""
    assert text("{{ text }}", {"text": "{{ 7 * 7 }}{% for %}"}) == "{{ 7 * 7 }}{% for %}"


def test_a_field_keeps_the_kind_of_its_cell() -> None:
    """Numbers of text become numbers, objects stay objects, texts stay texts, and an empty cell is no field."""
    found = line(
        prompt="{{ question }}", temperature="{{ t }}", seed="{{ 3 + 4 }}", response_format="{{ schema }}",
        stop="{{ empty }}", top_p=0.5, metadata={"own": "{{ parts }}"}, system_prompt="{{ t }}",
    )  # fmt: skip
    assert found == {
        "prompt": "why", "temperature": 0.5, "seed": 7, "response_format": {"type": "object"}, "top_p": 0.5,
        "metadata": {"own": [1, {"x": 2}]}, "system_prompt": "0.5",
    }  # fmt: skip


def test_messages_of_columns() -> None:
    """ShareGPT turns and messages as they are, alone or among others; and messages written out."""
    asked = [("user", "hi"), ("assistant", "ho"), ("user", "so?")]
    found = line(messages="{{ turns }}")["messages"]
    assert [(message["role"], message["content"]) for message in found] == asked
    assert line(messages="{{ messages }}")["messages"] == [{"role": "user", "content": "hi"}]
    first = {"role": "system", "content": "Be {{ question }}."}
    found = line(messages=[first, "{{ turns }}"])["messages"]
    assert [(message["role"], message["content"]) for message in found] == [("system", "Be why."), *asked]


def test_unknown_columns_are_named() -> None:
    """In a row, with what was meant; before any row, where the columns are known."""
    with pytest.raises(RowError, match="did you mean 'question'") as caught:
        text("{{ qestion }}")
    assert caught.value.column == "qestion"
    with pytest.raises(RowError, match="has no attribute 'z'"):
        text("{{ deep.z }}")
    template = LineTemplate({"prompt": "{{ qestion }} {{ row['a b'] }} {{ other | default('') }}"}, Sandbox(), "--user")
    with pytest.raises(RefusedError, match=r"--user: 'qestion' is no column of x\.csv; did you mean 'question'"):
        template.fits(ROW, "x.csv")


def test_a_column_whose_name_is_no_word() -> None:
    """The whole row is there under the name of row."""
    assert line(prompt="{{ row['a b'] }}")["prompt"] == "spaced"


HOSTILE = [
    "{{ (parts | join) ~ ('a\n' * 4000000) | indent(9999) }}",
    "{{ ('a\n' * 400000) | indent('x' * 100000) }}",
    "{{ ('a ' * 400000) | wordwrap(1, wrapstring='b' * 100000) }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ text.__init__.__globals__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ (question | map('__class__') | list) }}",
    "{{ question.format(question) }}",
    "{{ '{0.__class__}'.format(question) }}",
    "{{ deep.update({'x': 1}) }}",
    "{{ parts.append(1) }}",
    "{{ cycler.__init__ }}",
    "{{ lipsum.__globals__ }}",
    "{{ namespace.__init__ }}",
    "{{ range.__class__ }}",
    "{{ question | attr('__class__') }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{% extends 'x' %}",
    "{{ [1, 2] | random }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(999) %}{% for b in range(999) %}{% for c in range(999) %}x{% endfor %}{% endfor %}{% endfor %}",
    "{% macro again() %}{{ again() }}{{ again() }}{% endmacro %}{{ again() }}",
    "{% for turn in turns recursive %}{{ loop(turns) }}{% endfor %}",
    "{{ 'x' * 10 ** 10 }}",
    "{{ 10 ** (10 ** 9) }}",
    "{{ [0] * 10 ** 9 }}",
    "{{ range(10 ** 12) | list }}",
    "{{ 'x' | center(10 ** 10) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' | format(1000000000, 1) }}",
    "{{ 'x' | indent(10 ** 10) }}",
    "{{ ('a' * 9999999).replace('a', 'b' * 9999999) }}",
    "{{ ('a' * 9999999) | replace('a', 'b' * 9999999) }}",
    "{{ ('a' * 9999999).join(range(99999)) }}",
    "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set a = [1] %}" + "{% set a = [a, a] %}" * 99 + "{{ a == a }}",
    "{{ " + "(question ~ " * 250 + "1" + ")" * 250 + " }}",
    "{% for a in parts %}" * 40 + "{% endfor %}" * 40,
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{{ " + "-" * 50000 + "1 }}",
    "{% if " + "not " * 50000 + "1 %}{% endif %}",
    "{{ 'x' }}" * 200000,
    "{{ unclosed",
    "{% for x in %}",
]


@pytest.mark.parametrize("source", HOSTILE, ids=[str(number) for number in range(len(HOSTILE))])
def test_hostile_templates_are_refused_soon(source: str) -> None:
    """Those that reach for Python, that never end, or that make something huge: a sentence, within bounds."""
    begun = time.process_time()
    with pytest.raises((RefusedError, RowError)) as caught:
        text(source)
    assert str(caught.value)
    assert time.process_time() - begun < 20


def test_a_row_is_not_changed_by_a_template() -> None:
    """Nothing is carried from one row to the next."""
    counting = Compiled(Sandbox(), "{% set n = n + 1 %}{{ n }}", "--user")
    assert [counting.text({"n": 1}), counting.text({"n": 1})] == ["2", "2"]


def test_files_of_templates(tmp_path: Path) -> None:
    """TOML and YAML say the same; what is neither, or has aliases, is refused."""
    pytest.importorskip("yaml")
    (tmp_path / "t.toml").write_text('prompt = "{{ q }}"\ntemperature = "{{ t }}"\n')
    (tmp_path / "t.yaml").write_text('prompt: "{{ q }}"\ntemperature: "{{ t }}"\n')
    assert (
        template_of(tmp_path / "t.toml")
        == template_of(tmp_path / "t.yaml")
        == {"prompt": "{{ q }}", "temperature": "{{ t }}"}
    )
    bombs = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"
    for name, content in (("t.txt", "x"), ("bomb.yaml", bombs), ("list.yaml", "- 1"), ("bad.toml", "=")):
        (tmp_path / name).write_text(content)
        with pytest.raises(RefusedError, match=name):
            template_of(tmp_path / name)
    (tmp_path / "python.yaml").write_text("prompt: !!python/object/apply:os.system ['true']")
    with pytest.raises(RefusedError, match=r"python.yaml"):
        template_of(tmp_path / "python.yaml")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"prompt": "x", "user": "y"}, "say the same thing"),
        ({"system": "x"}, "--system goes with --user"),
    ],
)
def test_flags_that_do_not_go_together(given: dict[str, str], said: str) -> None:
    """One way to say what is asked, and no system message alone."""
    with pytest.raises(RefusedError, match=said):
        template_of(**given)
