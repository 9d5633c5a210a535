"""The table of worker options yields the worker's flags, those of `promptmill run`, and the settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.app.worker_options import WORKER_OPTIONS, EngineSettings, WorkerOption, settings_of
from submit.commands.prompts.run import command as run_command
from worker.cli import command as worker_command

RUN_OPTIONS = [row for row in WORKER_OPTIONS if row.in_run]
VALUES = {"text": "x", "int": "8", "seconds": "1.5", "size": "1G"}


def test_each_option_is_there_once() -> None:
    """No flag, setting or short flag comes twice, and what an option needs is one too."""
    for names in (
        [row.flag for row in WORKER_OPTIONS],
        [row.setting for row in WORKER_OPTIONS],
        [row.short for row in WORKER_OPTIONS if row.short],
    ):
        assert len(set(names)) == len(names)
    assert {row.needs for row in WORKER_OPTIONS if row.needs} <= {row.name for row in WORKER_OPTIONS}


def test_a_worker_has_them_all() -> None:
    """Its flags are those of the table, and --config."""
    assert {parameter.opts[0] for parameter in worker_command.params} == {"--config", *(r.flag for r in WORKER_OPTIONS)}


def test_run_has_those_it_may_hand_on() -> None:
    """Besides its own flags."""
    flags = {flag for parameter in run_command.params for flag in parameter.opts}
    assert {row.flag for row in RUN_OPTIONS} <= flags
    assert {"--burst", "--pool", "--drain"}.isdisjoint(flags)


@pytest.mark.parametrize("row", RUN_OPTIONS, ids=lambda row: row.name)
def test_run_hands_on_what_its_worker_takes(row: WorkerOption, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value given to run arrives at the worker as it was given, and nothing else does."""
    seen: list[tuple[str, ...]] = []
    monkeypatch.setattr("submit.run.run.run", lambda request: seen.append(request.worker_flags) or 0)
    value = VALUES.get(row.kind, str(row.choices[0]) if row.choices else "")
    given = row.flag if row.kind == "switch" else f"{row.flag}={value}"
    run_command.main(["in.jsonl", "-o", str(tmp_path / "out.jsonl"), given], standalone_mode=False)
    assert seen == [(given,)]
    needed = {"kv_bits": ["--kv-bits=8"], "draft_model": ["--draft-model=d"]}.get(row.needs or "", [])
    assert worker_command.main(["--model", "m", "--check", given, *needed], standalone_mode=False) == 0


def test_a_setting_that_no_flag_gives_keeps_its_default() -> None:
    """None is no value; 0 and false are."""
    flags = {row.name: None for row in WORKER_OPTIONS} | {"prefix_memory": 0, "load_patience": 1.0}
    settings = EngineSettings(**settings_of(EngineSettings, flags))
    assert (settings.prefix_memory, settings.load_patience_s, settings.kv_group_size) == (0, 1.0, 64)
