"""What `promptmill run` asks for, read from its command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

import submit.run.run
from submit.commands.prompts.run import command
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
