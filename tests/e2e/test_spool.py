"""Redis lost under a real worker on the pocket model: what it finished is neither lost nor generated again."""

from __future__ import annotations

import functools
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest

from jobs.redis.connect import connect
from jobs.store.store import Store
from tests import commands, waiting
from tests.mixed import audit, records
from tests.servers import Server

ROOT = Path(__file__).parents[2]
MODEL = str(ROOT / "examples" / "pocket" / "model")
DEADLINE_S = 90.0
LINES = 24

until = functools.partial(waiting.until, seconds=DEADLINE_S)
StartWorker = Callable[[], subprocess.Popen[bytes]]


promptmill = functools.partial(commands.promptmill, check=False)


@pytest.fixture
def batch(server: Server, tmp_path: Path) -> str:
    """A batch of lines that take a while, all of which a worker decodes together."""
    lines = [{"prompt": "Once upon a time", "max_tokens": 40 + 10 * n, "ignore_eos": True} for n in range(LINES)]
    (tmp_path / "in.jsonl").write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    done = promptmill("submit", str(tmp_path / "in.jsonl"), "--model", MODEL, "--redis", server.url)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def start_worker(server: Server, tmp_path: Path) -> Iterator[StartWorker]:
    """Start workers with one spool; all are gone at the end of the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", "-m", "worker", "--redis", server.url, "--model", MODEL]
        command += ["--spool", str(tmp_path / "spool"), "--decode-concurrency", str(LINES)]
        with (tmp_path / f"worker-{len(started)}.log").open("wb") as log:
            started.append(subprocess.Popen(command, stdout=log, stderr=log))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def spooled(tmp_path: Path, batch: str) -> int:
    """Complete records in the spool."""
    files = (tmp_path / "spool" / batch).glob("*.jsonl")
    return sum(max(path.read_bytes().count(b"\n") - 1, 0) for path in files)


def completed(server: Server, batch: str) -> int:
    """Lines that Redis says are done."""
    connection = connect(server.url)
    try:
        return Store(connection).batch(batch).completed
    finally:
        connection.close()


def test_redis_lost_for_good(server: Server, batch: str, tmp_path: Path, start_worker: StartWorker) -> None:
    """The server dies in the middle and never comes back: every line, delivered or not, is collected from the spool."""
    worker = start_worker()
    until(lambda: completed(server, batch) > 0, "a line is delivered")
    server.stop()
    until(lambda: spooled(tmp_path, batch) == LINES, "all lines are finished")
    worker.kill()
    worker.wait()
    out = tmp_path / "out.jsonl"
    done = promptmill("results", batch, "-o", str(out), "--from-spool", str(tmp_path / "spool"))
    assert (done.returncode, done.stderr) == (0, f"batch {batch}: found {LINES} of {LINES} lines\n")
    assert audit(tmp_path / "in.jsonl", out, tmp_path / "out.errors.jsonl") == []


def test_everything_flushed(server: Server, batch: str, tmp_path: Path, start_worker: StartWorker) -> None:
    """Somebody empties Redis in the middle: what was delivered by then is in the spool still."""
    start_worker()
    until(lambda: completed(server, batch) > 2, "some lines are delivered")
    server.flush()
    out = tmp_path / "out.jsonl"
    done = promptmill("results", batch, "-o", str(out), "--from-spool", str(tmp_path / "spool"))
    assert done.returncode in (0, 1)
    assert len(records(out)) > 2


def test_a_worker_stopped_in_an_outage(server: Server, batch: str, tmp_path: Path, start_worker: StartWorker) -> None:
    """SIGTERM while Redis is out: status 0, and the next worker delivers what the first one generated."""
    first = start_worker()
    until(lambda: completed(server, batch) > 0, "a line is delivered")
    server.stop()
    first.send_signal(signal.SIGTERM)
    assert first.wait(DEADLINE_S) == 0
    finished = spooled(tmp_path, batch)
    assert finished > 1
    log = (tmp_path / "worker-0.log").read_text()
    assert log.count("Redis is out (") == 1
    assert f"are not delivered: they are in {tmp_path / 'spool'}" in log
    server.start()
    second = start_worker()
    out = tmp_path / "out.jsonl"
    done = promptmill("results", batch, "--follow", "-o", str(tmp_path / "follow.jsonl"), "--redis", server.url)
    assert done.returncode == 0, done.stderr
    promptmill("results", batch, "-o", str(out), "--redis", server.url)
    assert audit(tmp_path / "in.jsonl", out, tmp_path / "out.errors.jsonl") == []
    makers = [record["worker"].rpartition(".")[2] for record in records(out)]
    assert (makers.count(str(first.pid)), makers.count(str(second.pid))) == (finished, LINES - finished)
    assert "that an earlier worker left in" in (tmp_path / "worker-1.log").read_text()
