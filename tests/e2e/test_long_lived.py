"""What keeps a worker fit over a long life: starting afresh in place, and measuring how many lines suit its models."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest

from jobs.store.keys import worker_key
from jobs.store.store import Store
from tests import commands
from tests.mixed import records
from tests.waiting import until

ROOT = Path(__file__).parents[2]
MODEL = str(ROOT / "examples" / "pocket" / "model")
DEADLINE_S = 90.0

StartWorker = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """What the worker says."""
    return tmp_path / "worker.log"


@pytest.fixture
def start_worker(tmp_path: Path, log: Path) -> Iterator[StartWorker]:
    """Start a worker on the pocket model, with a data folder of its own; it is gone at the end of the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*flags: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", "-m", "worker", "--model", MODEL, *flags]
        environment = {**os.environ, "PROMPTMILL_DATA_DIR": str(tmp_path / "data"), "PYTHONPATH": str(ROOT)}
        with log.open("ab") as output:
            started.append(subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=output, stderr=output))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def promptmill(tmp_path: Path) -> Callable[..., str]:
    """Run a command on the same data folder; what it prints."""

    def call(*arguments: str) -> str:
        return commands.promptmill(*arguments, PROMPTMILL_DATA_DIR=str(tmp_path / "data")).stdout.strip()

    return call


def short_lines(path: Path, count: int, max_tokens: int) -> str:
    """A file of lines of exactly ``max_tokens`` tokens each; its path."""
    line = orjson.dumps({"prompt": "Once upon a time", "ignore_eos": True, "max_tokens": max_tokens})
    path.write_bytes((line + b"\n") * count)
    return str(path)


def test_a_recycled_worker_goes_on_where_it_was(
    start_worker: StartWorker, promptmill: Callable[..., str], tmp_path: Path, log: Path
) -> None:
    """After every 200 tokens the worker, the one user of the embedded server, starts afresh under its process id: each
    line has one record, of its first attempt, and --burst still ends the worker when the queues are empty."""
    source = short_lines(tmp_path / "in.jsonl", 160, 8)
    batch = promptmill("submit", source, "--model", MODEL)
    worker = start_worker("--burst", "--recycle-after-tokens", "200")
    assert worker.wait(DEADLINE_S) == 0
    assert len(re.findall(r"recycling after \d+ tokens", log.read_text())) >= 2
    promptmill("results", batch, "-o", str(tmp_path / "out.jsonl"))
    found = records(tmp_path / "out.jsonl")
    assert [record["index"] for record in found] == list(range(160))
    assert {record["attempt"] for record in found} == {1}
    assert {record["worker"].rpartition(".")[2] for record in found} == {str(worker.pid)}
    assert not (tmp_path / "out.errors.jsonl").exists()


def test_a_stop_while_it_recycles_ends_the_worker(
    store: Store,
    server_url: str,
    start_worker: StartWorker,
    promptmill: Callable[..., str],
    tmp_path: Path,
    log: Path,
) -> None:
    """SIGTERM as soon as the worker says that it recycles: it ends with status 0, whatever it is at by then."""
    source = short_lines(tmp_path / "in.jsonl", 120, 40)
    batch = promptmill("submit", source, "--model", MODEL, "--redis", server_url)
    worker = start_worker("--redis", server_url, "--recycle-after-tokens", "100")
    until(lambda: "recycling after" in log.read_text(), "the worker recycles")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(DEADLINE_S) == 0
    assert 0 < store.batch(batch).completed < 120
    assert store.connection.keys("rq:wip:*") == []


LIVES = """
import os, signal, sys
from pathlib import Path
from worker.health.recycle import listen, start_afresh

life = Path(sys.argv[1])
if not life.exists():
    life.touch()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    os.kill(os.getpid(), signal.SIGTERM)
    start_afresh()
print("second life", flush=True)
listen()
print("the signal is lost", flush=True)
"""


def test_a_signal_between_two_lives_is_not_lost(tmp_path: Path) -> None:
    """A SIGTERM that comes when the old program no longer listens and the new one not yet ends the new one, with 0."""
    done = subprocess.run(
        [sys.executable, "-c", LIVES, str(tmp_path / "life")],
        capture_output=True, text=True, timeout=DEADLINE_S, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "second life\n", "")


def test_a_worker_ends_with_its_parent_over_a_recycle(server_url: str, start_worker: StartWorker, log: Path) -> None:
    """It is told the parent's process id: a worker that is somebody else's child by the time it looks ends at once."""
    worker = start_worker("--redis", server_url, "--exit-with-parent", str(os.getppid()))
    assert worker.wait(DEADLINE_S) == 0
    assert "the parent process is gone" in log.read_text()


def test_a_worker_measures_how_many_lines_suit_its_model(
    store: Store,
    server_url: str,
    start_worker: StartWorker,
    promptmill: Callable[..., str],
    tmp_path: Path,
    log: Path,
) -> None:
    """--autotune: at most --decode-concurrency lines together, said in the log and remembered in the data folder. How
    full a batch of that size is, is told by `promptmill status BATCH --json`."""
    source = short_lines(tmp_path / "in.jsonl", 200, 400)
    batch = promptmill("submit", source, "--model", MODEL, "--redis", server_url)
    start_worker("--redis", server_url, "--autotune", "--decode-concurrency", "3")

    def occupancy() -> float | None:
        states = [orjson.loads(store.connection.get(key) or b"{}") for key in store.connection.keys(worker_key("*"))]
        return next((state["occupancy"] for state in states if state.get("occupancy")), None)

    until(occupancy, "the worker has published how full it is")
    [shown] = orjson.loads(promptmill("status", batch, "--json", "--redis", server_url))["workers"]
    assert 0.5 < shown["occupancy"] <= 1
    file = tmp_path / "data" / "tuned.json"
    [entry] = orjson.loads(file.read_bytes())
    assert set(entry["rates"]) == {"1", "2", "3"}
    said = rf"INFO {MODEL}: [123] rows together \(measured: 1: .*, 3: \d+ tokens/s; remembered in {file}\)"
    assert re.search(said, log.read_text())
