"""What `promptmill run` asks for, read from its command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

import submit.run.run
from submit.cli import main
from submit.commands.prompts.run import command
from submit.results.destination import Destination
from submit.run.run import RunRequest


@pytest.mark.parametrize(("flags", "name"), [([], None), (["--name", "nightly"], "nightly")])
def test_a_run_has_the_name_it_was_given(
    flags: list[str], name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And none where it was given none."""
    asked: list[RunRequest] = []

    def run(request: RunRequest) -> int:
        asked.append(request)
        return 0

    monkeypatch.setattr(submit.run.run, "run", run)
    arguments = ["prompts.jsonl", "-o", str(tmp_path / "out.jsonl"), "--model", "org/name", "--kv-bits", "4", *flags]
    ended = CliRunner().invoke(command, arguments)
    assert ended.exit_code == 0, ended.output
    [request] = asked
    assert request.name == name
    assert "--kv-bits=4" in request.worker_flags


def test_a_run_writes_tables_as_its_flags_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each of them reaches the destination, and the format follows the suffix of OUT."""
    asked: list[RunRequest] = []

    def run(request: RunRequest) -> int:
        asked.append(request)
        return 0

    monkeypatch.setattr(submit.run.run, "run", run)
    out = tmp_path / "out.parquet"
    flags = ["--json-columns", "--card", "--shard-size", "1M", "--dedupe", "--limit", "3"]
    assert main(["run", "rows.csv", "--user", "{{ q }}", "-o", str(out), *flags]) == 0
    [request] = asked
    assert request.destination == Destination(out, fmt="parquet", json_columns=True, card=True, shard_bytes=1 << 20)
    assert (request.dedupe, request.table.limit) == (True, 3)
