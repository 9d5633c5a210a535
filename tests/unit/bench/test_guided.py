"""What the benchmark of guided lines counts and shows; nothing is timed here."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from bench.guided.__main__ import Work
from bench.guided.schemas import Judge, bare, ours, reason_of, tally
from bench.guided.task import GuidedTask
from bench.guided.texts import Verdicts, accepted, job_of
from bench.guided.vocabularies import fitting, loaded
from bench.guided.work import schema_of
from bench.models import ROOT
from bench.record import Measurement, Run
from bench.report.guided import render_guided
from bench.report.write import write
from jobs.guided.check import Checker
from jobs.guided.constraint import json_constraint
from tests.unit.bench.test_report import MACHINE, cells

POCKET = ROOT / "examples" / "pocket" / "model"
TALLY = {
    "schemas": 3, "refused": 1, "valid": 10, "valid_accepted": 9, "invalid": 4, "invalid_accepted": 0,
    "check_ms_median": 0.3, "check_ms_most": 12.0, "reasons": {"not: cannot be enforced": 1}, "wrong": ["a[0] refused"],
}  # fmt: skip
SPEED = {
    "free": 10.0, "guided": 11.0, "mixed": 10.2, "ratio_guided": 0.91, "ratio_mixed": 0.94,
    "spread_guided": [0.9, 0.92], "spread_mixed": [0.93, 0.95], "masks_ms": 0.5, "apply_ms": 0.2, "turns": 6,
}  # fmt: skip
TEXTS = {"complete": 20, "accepted": 20, "with_formats": 19, "cut": 9, "failed": 1, "wrong": ["b: too much"]}


def measured(side: str, model: str, extra: dict[str, Any], lines: int = 30) -> Measurement:
    return Measurement(MACHINE.run, "guided", model, side, 0, lines, 200, 1000, 2.0, extra=extra)


def test_instances_are_walked_through_both_grammars() -> None:
    """What a schema forbids is not let through, and one that cannot be enforced is refused with its reason."""
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "additionalProperties": False}
    tests = [{"valid": True, "data": {"age": 3}}, {"valid": False, "data": {"age": "3"}}]
    rows = [
        {"name": "plain", "schema": schema, "tests": tests},
        {"name": "not", "schema": {"not": {"type": "string"}}, "tests": [{"valid": True, "data": 3}]},
    ]
    checker = Checker()
    found = tally(rows, Judge(POCKET), lambda schema: ours(schema, checker))
    assert found.through == {(True, True): 1, (False, False): 1, (True, False): 1}
    assert list(found.refused) == ["not"]
    assert not found.wrong
    assert tally(rows[:1], Judge(POCKET, bare=True), bare).through == {(True, True): 1, (False, False): 1}
    wrong = [{**rows[0], "tests": [{"valid": False, "data": {"age": 3}}]}]
    assert tally(wrong, Judge(POCKET), lambda schema: ours(schema, checker)).wrong == ["plain[0] ACCEPTED"]


def test_reasons_leave_out_what_is_the_schemas_own() -> None:
    """Refusals of one kind count as one."""
    one = "at \"/a/b\": 'format' \"url\" cannot be enforced; write 'pattern'"
    other = "at \"/c\": 'format' \"path\" cannot be enforced; write a 'pattern'\nmore"
    assert reason_of(one) == reason_of(other) == "'format' ... cannot be enforced"


def test_tokenizers_are_cut_to_the_logits() -> None:
    """A model with fewer logits than a real tokenizer has tokens gets those that it learnt first, and an end."""
    tokenizer = loaded(POCKET, 512)
    assert len(tokenizer.get_vocab()) == 512
    assert max(tokenizer.get_vocab().values()) == 511
    assert tokenizer.eos_token_ids == {511}
    assert tokenizer.decode(tokenizer.encode('{"name": "Zoë"}')) == '{"name": "Zoë"}'
    whole = loaded(POCKET, 4096)
    assert len(whole.get_vocab()) == 1024
    assert whole.eos_token in whole.get_vocab()
    assert fitting([POCKET], 512) == POCKET
    assert fitting([POCKET], 151936) is None


def test_each_row_has_a_schema_of_its_own_that_is_taken() -> None:
    """The benchmark's own schemas are all enforced, and no two are alike."""
    schemas = [schema_of(number) for number in range(32)]
    assert len({json.dumps(schema) for schema in schemas}) == 32
    assert [Checker().check(json_constraint(schema)) for schema in schemas] == [()] * 32


def test_schemas_of_lines_are_those_that_the_check_takes(tmp_path: Path) -> None:
    """Refused ones are passed over; a line asks for what its schema is about."""
    file = tmp_path / "rows.jsonl"
    rows = [
        {"name": "a", "schema": {"not": {}}, "tests": []},
        {"name": "b", "schema": {"title": "A bird", "type": "object"}, "tests": []},
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    (row,) = accepted(file)
    job = job_of(row, "one", schema=row["schema"], seed=1, max_tokens=5)
    assert job.messages is not None
    assert job.messages[0]["content"].endswith("A bird")
    assert job.constraint is not None
    assert job.sampling.temperature == 1.0
    assert job_of(row, "two", schema=None, seed=1).constraint is None


def test_what_is_not_there_is_left_out_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a file of schemas and without tokenizers nothing is measured that needs them."""
    work = Work(None, (), None)
    assert [list(work.tasks(part)) for part in ("schemas", "texts", "speed", "waits")] == [[], [], [], []]
    said = capsys.readouterr().err
    assert "--schemas" in said
    assert "small, left out" in said
    task = next(dataclasses.replace(work, model=POCKET, models=("nano",)).tasks("speed"))
    assert GuidedTask.from_json(task.to_json()) == task
    assert task.folder == str(POCKET)


def test_the_page_of_guided_lines_has_the_goals(tmp_path: Path) -> None:
    """Each goal stands with what was measured; slices of the texts are summed up."""
    waits = {
        "pairs": 8, "refused": 1, "rows": 16, "added_prepare": 4.0, "added_p90": 9.0, "added_most": 80.0,
        "added_first": 12.0, "prepare_free": 1.0, "prepare_guided": 5.0, "first_free": 200.0, "first_guided": 212.0,
        "step_free": 100.0, "step_guided": 101.0, "longest_free": 120.0, "longest_guided": 180.0,
    }  # fmt: skip
    items = [
        measured("ours", "qwen3", TALLY),
        measured("bare", "qwen3", {**TALLY, "invalid_accepted": 2}),
        measured("texts", "smol", TEXTS),
        measured("texts", "smol", TEXTS),
        measured("own", "small", SPEED),
        measured("waits", "smol", waits),
    ]
    page = render_guided(Run(MACHINE, tuple(items)))
    assert page is not None
    assert cells(page, "qwen3: invalid instances accepted")[1:] == ["≤ 0", "0.000", "met"]
    assert cells(page, "complete texts that a validator accepts")[1:] == ["≥ 1", "1.000", "met"]
    assert cells(page, "smol")[1:] == ["60", "40", "40", "38", "18", "2"]
    assert cells(page, "small, own: rate of 32 guided rows, of free ones")[1:] == ["≥ 0.9", "0.910", "met"]
    assert cells(page, "small, own: rate of free rows among guided ones")[1:] == ["≥ 0.95", "0.940", "**missed**"]
    assert cells(page, "smol: a new schema: added wait, ms, median")[1:] == ["≤ 50", "4.000", "met"]
    assert cells(page, "smol: a new schema: longest step meanwhile, of that without")[3] == "**missed**"
    assert "- 1: not: cannot be enforced" in page
    assert "b: too much" in page
    assert render_guided(Run(MACHINE, ())) is None
    write(Run(MACHINE, tuple(items)), tmp_path)
    assert (tmp_path / "guided.md").read_text() == page
    assert "(guided.md)" in (tmp_path / "README.md").read_text()


def test_a_validator_judges_complete_texts() -> None:
    """What a schema forbids is named, and a format is asserted only where formats are."""
    row = {"name": "day", "schema": {"type": "object", "properties": {"on": {"type": "string", "format": "date"}}}}
    found = Verdicts()
    for text in ('{"on": "2026-01-02"}', '{"on": "soon"}', "[]", "{"):
        found.judge(row, text)
    assert found.counts == {"complete": 4, "accepted": 2, "with_formats": 1}
    assert [said.split(":")[0] for said in found.wrong] == ["day", "day"]
    found.fail(row, "too much")
    assert found.counts["failed"] == 1
