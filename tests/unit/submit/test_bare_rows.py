"""JSON lines that are rows of a table, and nobody said what to ask of them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import orjson
import pytest

from jobs.errors import RefusedError
from jobs.lines.line import Defaults
from submit.data.open import open_any, open_input, order_of
from submit.input.validate import Findings, checked


def found(given: Any, **said: Any) -> Findings:
    findings = Findings()
    with open_any(given, order_of(said)) as prompts:
        for chunk in checked(prompts, Defaults({"model": "m"})):
            findings.add(chunk)
    return findings


@pytest.mark.parametrize(
    ("rows", "columns", "flag"),
    [
        ([{"question": "a", "answer": "b"}], "question, answer", "--user '{{ question }}'"),
        ([{"id": 1, "story": "a"}, {"id": 2, "story": "b", "by": "c"}], "id, story, by", "--user '{{ story }}'"),
        ([{"hint": "a", "title": "b"}, {"title": "c"}], "hint, title", "--user '{{ title }}'"),
        ([{"not": "a"}], "not", '--user "{{ row[\'not\'] }}"'),
        ([{"a name": "x"}], "a name", '--user "{{ row[\'a name\'] }}"'),
        ([{"a $b": "x"}], "a $b", "--user '{{ row['\"'\"'a $b'\"'\"'] }}'"),
        ([{"subject": "a", "body": "b"}], "subject, body", "--user '{{ subject }}'"),
        ([{"id": "a", "system_prompt": "b", "question": "c", "response": "d"}],
         "id, system_prompt, question, response", "--user '{{ question }}'"),
        ([{"instruction": "a", "instances": [{"input": "b"}]}], "instruction, instances",
         "--user '{{ instruction }} {{ instances[0].input }}'"),
        ([{"question": "a", "options": ["b"], "seed": 3}], "question, options, seed", "--user '{{ question }}'"),
    ],
)  # fmt: skip
def test_rows_are_named_with_a_flag_that_works(
    tmp_path: Path, rows: list[dict[str, Any]], columns: str, flag: str
) -> None:
    """One sentence, of files and of Python's objects; every row becomes a line by the flag."""
    pytest.importorskip("jinja2")
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(map(orjson.dumps, rows)))
    for given in (str(path), rows):
        with pytest.raises(RefusedError) as caught:
            found(given)
        assert str(caught.value).endswith(
            f": rows of a table (columns {columns}); say what to ask of each, such as {flag}"
        )
    name, value = shlex.split(flag)
    assert not found(str(path), **{name[2:]: value}).rejected


def test_rows_that_are_taken_in_part_are_named_too(tmp_path: Path) -> None:
    """Where something is said of rows, but not what to ask of them; and in a JSON array."""
    (tmp_path / "rows.json").write_bytes(orjson.dumps([{"q": "a"}, {"q": "b"}]))
    for said in ({}, {"limit": 1}, {"id_column": "q"}):
        with pytest.raises(RefusedError, match=r"columns .*q.*--user '\{\{ q \}\}'"):
            found(str(tmp_path / "rows.json"), **said)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"promt": "a"}, "did you mean 'prompt'?"),
        ({"id": "a", "mesages": [{"role": "user", "content": "b"}]}, "did you mean 'messages'?"),
        ({"message": [{"role": "user", "content": "b"}]}, "did you mean 'messages'?"),
        ({"Prompt": "a"}, "is 'prompt' here"),
        ({"question": "a", "max_tokens": 5}, "the line is a row of questions"),
        ({"question": "a", "maxTokens": 5}, "the line is a row of questions"),
        ({"inputs": "a", "parameters": {"max_new_tokens": 5}}, "is 'prompt' here"),
        ({"contents": [{"parts": []}]}, "is 'messages' here"),
        ({"prompt": "a", "task_id": 3}, "put your own data into 'metadata'"),
        ({"custom_id": "a", "params": {}}, "Anthropic's envelope"),
        ({"data": [{"prompt": "a"}]}, "jq -c"),
        ({"custom_id": "a", "bdy": {}}, "has its fields in 'body'"),
        ({"id": 3}, "a line needs 'prompt' or 'messages'"),
        ({}, "a line needs 'prompt' or 'messages'"),
    ],
)
def test_lines_with_a_fault_keep_their_problems(line: dict[str, Any], said: str) -> None:
    """A typo, another tool's line, or one bad line before good ones: no table."""
    findings = found([line])
    assert any(said in problem.message for problem in findings.problems), findings.problems
    assert found([{"question": "a"}, {"prompt": "b"}]).rejected == 1


def test_a_line_that_is_no_json_is_a_problem_of_its_own(tmp_path: Path) -> None:
    """Among the first rows: the file is not judged by the others."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "a"}\n{"question": \n')
    with open_input(str(path)) as prompts:
        codes = {problem.code for chunk in checked(prompts, Defaults({"model": "m"})) for line in chunk.bad
                 for problem in line.problems}  # fmt: skip
    assert codes == {"unknown_field", "invalid_json_line"}
