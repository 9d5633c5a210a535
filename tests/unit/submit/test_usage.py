"""Slips at the command line: each is answered with what was meant, and never with a traceback."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from submit.cli import main
from worker.cli import main as worker_main

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["stauts"], "No such command 'stauts'; did you mean 'status'?"),
        (["xyzzy"], "No such command 'xyzzy'\n"),
        (["priority", "nightly"], "the priority is missing: it comes last and is high, normal or low, as in "
         "`promptmill priority nightly high`"),
        (["priority", "nightly", "urgent"], "'urgent' is no priority: it comes last and is high, normal or low"),
        (["priority", "high"], "the batch is missing: `promptmill priority BATCH high`"),
        (["run", "x.jsonl", "-o", "y.jsonl", "--model", "./nowhere/name"], "there is no folder ./nowhere/name"),
        (["check", "x.jsonl", "--model", "m", "--max-tokens", "20.5"], "'20.5' is not a valid integer."),
        (["check", "x.jsonl", "--model", "m", "--max-tokens", "-1.0"], "--max-tokens must be int 1..2147483648"),
        (["status", "--redis", "foo://x"], "'--redis': foo://x is not a Redis URL: write redis://HOST:PORT"),
        (["status", "--redis", "localhost:6379"], "localhost:6379 is not a Redis URL: write redis://localhost:6379"),
    ],
)  # fmt: skip
def test_a_slip_is_2_with_what_was_meant(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    """On stderr, nothing on stdout."""
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.out == ""


@pytest.mark.parametrize("name", ["a b", "", "a/b", "a\nb", "x" * 200])
def test_a_workers_name_is_plain(capsys: pytest.CaptureFixture[str], name: str) -> None:
    """RQ has commands and warnings of its own for others."""
    assert worker_main(["--model", "m", "--name", name]) == 2
    assert "letters, digits, dots, _ and -" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--max-idle-time", "--drain", "--load-patience"])
def test_nan_is_no_number_of_seconds(capsys: pytest.CaptureFixture[str], flag: str) -> None:
    """No comparison with it is true, so a wait for it would never end, or never begin."""
    assert worker_main(["--model", "m", flag, "nan"]) == 2
    assert f"Invalid value for '{flag}': nan is no number of seconds" in capsys.readouterr().err


@pytest.mark.parametrize(("module", "imported"), [("submit.cli", "click"), ("worker", "worker.cli")])
def test_ctrl_c_while_modules_are_imported_is_130(tmp_path: Path, module: str, imported: str) -> None:
    """No traceback of imports."""
    script = (
        "import os, runpy, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {imported!r}: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (130, "")
