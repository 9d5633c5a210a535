"""What tests need of the machine: programs, which a skip names where they are missing, and nothing of the user's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jobs.app.settings import config_file
from jobs.embedded.server import data_folder
from tests.programs import REQUIRED, needs


def test_a_skip_names_the_program_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are there are not named."""
    monkeypatch.delenv(REQUIRED, raising=False)
    mark = needs("sh", "no-such-program", "nor-this").mark
    assert (mark.args, mark.kwargs) == ((True,), {"reason": "no-such-program and nor-this not on PATH"})
    assert needs("sh").mark.args == (False,)


def test_where_everything_is_tested_nothing_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module that asks cannot be collected."""
    monkeypatch.setenv(REQUIRED, "1")
    with pytest.raises(pytest.fail.Exception, match="no-such-program not on PATH"):
        needs("no-such-program")
    needs("sh")


def test_tests_have_a_home_of_their_own() -> None:
    """With nothing of their user's in it, and none of the user's settings in the environment."""
    home = Path.home()
    assert home.name.startswith("pm-home-")
    assert config_file(os.environ).is_relative_to(home)
    assert data_folder(os.environ).is_relative_to(home)
    foreign = ("PROMPTMILL_", "RQ_", "XDG_", "HF_")
    assert [name for name in os.environ if name.startswith(foreign) and not name.startswith("PROMPTMILL_TEST_")] == []
