"""A worker's log in a file, while it is moved away as newsyslog does."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from tests.waiting import until

MODEL = str(Path(__file__).parents[2] / "examples" / "pocket" / "model")


def worker_command(url: str, log: Path) -> list[str]:
    return [sys.executable, "-P", "-m", "worker", "--model", MODEL, "--redis", url, "--log-file", str(log)]


def test_a_log_that_was_renamed_is_opened_anew(server_url: str, tmp_path: Path) -> None:
    """What comes later is in a new file of the old name; nothing is lost, and standard error stays empty."""
    log, moved = tmp_path / "worker.log", tmp_path / "worker.log.0"
    with subprocess.Popen(worker_command(server_url, log), stderr=subprocess.PIPE, text=True) as worker:
        until(lambda: log.exists() and "serves" in log.read_text(), "it serves")
        log.rename(moved)
        worker.send_signal(signal.SIGTERM)
        _, shown = worker.communicate(timeout=60)
    assert (worker.returncode, shown) == (0, "")
    assert "serves" in moved.read_text()
    assert "serves" not in log.read_text()
    assert log.read_text().strip()


def test_a_log_that_cannot_be_written_is_said(server_url: str, tmp_path: Path) -> None:
    """Before anything is taken: exit status 2."""
    done = subprocess.run(
        worker_command(server_url, tmp_path / "none" / "log"), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "--log-file" in done.stderr
    assert "Traceback" not in done.stderr
