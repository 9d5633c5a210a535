"""What is for the user alone stays so: files, and the secrets of URLs and of the environment."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

from redis import Redis

from tests.processes import processes
from tests.servers import running_server
from tests.waiting import until

MODEL = str(Path(__file__).parents[2] / "examples" / "pocket" / "model")
PROMPTS = b'{"prompt":"Once upon a time","max_tokens":5}\n' * 20
SECRET, TOKEN = "s3cr3t-of-the-url", "hf_t0ken-of-the-hub"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def run_command(out: Path) -> list[str]:
    return [sys.executable, "-P", "-m", "submit.cli", "run", "-", "-o", str(out), "--model", MODEL]


def test_a_run_leaves_nothing_for_other_users_to_read(tmp_path: Path) -> None:
    """With an ordinary umask: the data folder, its folders and the socket are closed, also where they were open."""
    data, out = tmp_path / "data", tmp_path / "out.jsonl"
    (data / "runs").mkdir(parents=True)
    for folder in (data, data / "runs"):
        folder.chmod(0o755)
    environ = {**os.environ, "PROMPTMILL_DATA_DIR": str(data)}
    subprocess.run(run_command(out), input=PROMPTS, env=environ, umask=0o022, timeout=90, check=True)
    for folder, _, files in os.walk(data):
        assert mode(Path(folder)) == 0o700, folder
        assert "redis.sock" not in files or mode(Path(folder, "redis.sock")) == 0o700
    assert mode(data) == mode(data / "runs") == 0o700
    assert mode(out) == 0o644


def test_a_run_on_a_pool_keeps_its_files_private_too(server_url: str, tmp_path: Path) -> None:
    """No embedded server makes the data folder then; the copy of standard input and the log lie in it all the same."""
    data, out = tmp_path / "data", tmp_path / "out.jsonl"
    environ = {**os.environ, "PROMPTMILL_DATA_DIR": str(data), "PROMPTMILL_REDIS_URL": server_url}
    subprocess.run(run_command(out), input=PROMPTS, env=environ, umask=0o022, timeout=90, check=True)
    assert mode(data) == mode(data / "runs") == 0o700


def test_secrets_are_in_no_list_of_processes_no_log_and_no_record(tmp_path: Path) -> None:
    """A URL's password and a token of the environment: not in `ps`, on stderr, in logs, in results or in Redis."""
    data, out, source = tmp_path / "data", tmp_path / "out.jsonl", tmp_path / "in.jsonl"
    source.write_bytes(PROMPTS)
    seen: list[set[str]] = []
    with running_server("--requirepass", SECRET) as plain:
        url = plain.replace("unix://", f"unix://:{SECRET}@")
        environ = {**os.environ, "PROMPTMILL_DATA_DIR": str(data), "PROMPTMILL_REDIS_URL": url, "HF_TOKEN": TOKEN}
        command = [str(source) if word == "-" else word for word in run_command(out)]
        with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:

            def ended() -> bool:
                seen.append({one.command for one in processes()})
                return process.poll() is not None

            until(ended, "the run ends", seconds=90)
            shown = b"".join(process.communicate())
        assert process.returncode == 0, shown
        worker = [sys.executable, "-P", "-m", "worker", "--model", MODEL, "--max-idle-time", "2", "--verbose"]
        with subprocess.Popen(worker, env=environ, stderr=subprocess.PIPE) as verbose:
            with Redis.from_url(url) as connection:
                keys = until(lambda: [key for key in connection.keys("*worker*") if b":worker:" in key], "it is there")
                stored = b"".join(connection.dump(key) or b"" for key in keys)
            shown += verbose.communicate(timeout=60)[1]
    commands = set().union(*seen)
    assert any("--exit-with-parent" in command for command in commands)
    written = b"".join(path.read_bytes() for path in [*data.rglob("*"), out] if path.is_file())
    for secret in (SECRET, TOKEN):
        # The server's own command line has it: the test's, not promptmill's.
        assert not any(secret in command for command in commands if "--requirepass" not in command)
        assert secret.encode() not in shown + stored + written
