"""The worker's daemon as launchd would run it: its own arguments and environment, and nothing besides."""

from __future__ import annotations

import plistlib
import signal
import subprocess
import sys
from pathlib import Path

from submit.cli import main
from tests.waiting import until

MODEL = str(Path(__file__).parents[2] / "examples" / "pocket" / "model")


def test_a_daemon_works_with_what_its_file_says(server_url: str, tmp_path: Path) -> None:
    """It reads its settings, serves a batch, keeps data and logs where it was told, and ends with 0 when asked."""
    root, home = tmp_path / "root", tmp_path / "root" / "home"
    root.mkdir()
    arguments = ["--model", MODEL, "--redis", server_url, "--init", "launchd", "--root", str(root), "--home", "/home"]
    program = str(Path(sys.executable).with_name("promptmill"))
    assert main(["deploy", "worker", *arguments, "--program", program, "--drain", "5", "--install"]) == 0
    written = (root / "Library/LaunchDaemons/promptmill-worker.plist").read_text()
    for place in ("/home", "/etc", "/var"):
        written = written.replace(f">{place}", f">{root}{place}")
    job = plistlib.loads(written.encode())
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(b'{"prompt":"Once","max_tokens":5}\n' * 5)
    with Path(job["StandardErrorPath"]).open("wb") as errors:
        daemon = subprocess.Popen(
            job["ProgramArguments"], env=job["EnvironmentVariables"], cwd=job["WorkingDirectory"], stderr=errors
        )
        try:
            submit = ["submit", str(source), "--model", MODEL, "--redis", server_url, "--wait", "-o", str(out)]
            assert main(submit) == 0
            log = Path(job["EnvironmentVariables"]["PROMPTMILL_WORKER_LOG_FILE"])
            until(lambda: "serves" in log.read_text(), "it says so")
        finally:
            daemon.send_signal(signal.SIGTERM)
            status = daemon.wait(job["ExitTimeOut"])
    assert status == 0
    assert len(out.read_bytes().splitlines()) == 5
    assert (home / "data/spool").is_dir()
    assert Path(job["StandardErrorPath"]).read_text() == ""
