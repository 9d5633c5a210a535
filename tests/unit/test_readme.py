"""The README says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from jobs.lines.line import Defaults, check_line
from submit.cli import COMMANDS
from submit.commands.reference import parameter_table, worker_table

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_parameter_table_is_the_codes() -> None:
    """The table of parameters stands in the README as the code prints it."""
    assert parameter_table() in README


def test_the_table_of_worker_options_is_the_codes() -> None:
    """The table of a worker's options stands in docs/workers.md as the code prints it."""
    assert worker_table() in (ROOT / "docs" / "workers.md").read_text(encoding="utf-8")


def test_every_command_is_explained() -> None:
    """Each command of the command line is named in the README."""
    assert [name for name in COMMANDS if f"promptmill {name}" not in README] == []


@pytest.mark.parametrize("line", re.findall(r'^\{.*"(?:prompt|messages)".*\}$', README, flags=re.MULTILINE))
def test_lines_shown_are_lines_that_run(line: str) -> None:
    """Each prompt line shown as an example keeps the contract."""
    checked = check_line(line.encode())
    assert checked.job(index=0, line=1, batch_id="b_x", defaults=Defaults({"model": "m"})).sampling.max_tokens >= 1
