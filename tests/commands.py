"""The command line, called in this process: for tests of what it does, where how a process begins and ends is tested
elsewhere. Starting an interpreter takes longer than most commands."""

from __future__ import annotations

import contextlib
import io
import subprocess

import pytest

from submit.cli import main


def promptmill(*arguments: str, check: bool = True, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run ``promptmill`` to its end, as by ``subprocess.run`` with its output captured; ``environ`` comes on top of the
    environment there is."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in environ.items():
            patch.setenv(name, value)
        status = main(arguments)
    printed, said = (stream.buffer.getvalue().decode() for stream in (out, err))  # type: ignore[attr-defined]
    done = subprocess.CompletedProcess(["promptmill", *arguments], status, printed, said)
    if check:
        done.check_returncode()
    return done
