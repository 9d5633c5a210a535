"""The worker of `serve --model`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from jobs.errors import ModelLoadError
from serve.worker import WorkerBeside
from tests.waiting import until


def test_a_worker_that_cannot_load_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server learns why, and ends with the same exit status."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho '2026-11-27T09:00:00 ERROR no model at /x'\nexit 5\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    worker = WorkerBeside(["/x"], "redis://localhost", tmp_path / "data", print)
    with worker:
        failure = until(lambda: worker.failure, "it was given up")
    assert isinstance(failure, ModelLoadError)
    assert str(failure) == "no model at /x"
