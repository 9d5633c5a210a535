"""Tests that need a program say so where it is missing."""

from __future__ import annotations

import pytest

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
