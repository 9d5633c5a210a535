"""A worker process among everything hostile that can lie in its Redis."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from redis import Redis

from jobs.batch import queue_name
from jobs.store.keys import UPLOADING, worker_key
from jobs.store.store import Store
from submit.status.workers import Workers
from tests.hostile import ENTRIES
from tests.pool import make_batch, prompts
from tests.waiting import until

MODEL = str(Path(__file__).parents[2] / "examples" / "pocket" / "model")


def worker_on(url: str, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", "worker", "--redis", url, "--model", MODEL]
    with log.open("wb") as output:
        return subprocess.Popen(command, stdout=output, stderr=output)


def most_memory(worker: subprocess.Popen[bytes]) -> int:
    """The most a living process had in memory, in mebibytes; where the system does not say, what it has now."""
    status = Path(f"/proc/{worker.pid}/status")
    if status.exists():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) >> 10
    return (
        int(subprocess.run(["ps", "-o", "rss=", "-p", str(worker.pid)], capture_output=True, check=True).stdout) >> 10
    )


def put_everything(connection: Redis, queue: str) -> None:
    for put in ENTRIES.values():
        put(connection, queue)
    connection.set("rq:queue:" + queue_name(MODEL, "high"), "no list")
    connection.zadd(f"rq:wip:{queue}", {b"\xff": 1, b"x" * 1_000_000: 1})
    connection.rpush(f"rq:queue:{queue}:intermediate", b"\xff", b"y" * 1_000_000)
    connection.zadd(UPLOADING, {b"\xff": 1})
    connection.hset("rq:worker:odd", mapping={"pid": "x"})
    connection.sadd("rq:workers", "rq:worker:odd", b"\xff")
    connection.sadd(f"rq:workers:{queue}", "rq:worker:odd", b"\xff")
    connection.set(worker_key("odd"), b"[" * 100_000)


def test_a_worker_survives_everything_and_finishes_the_batch(store: Store, server_url: str, tmp_path: Path) -> None:
    """Each hostile entry is refused in the log, none is executed, memory stays what it is, and the batch is done."""
    peaks = []
    for name in ("quiet", "hostile"):
        if name == "hostile":
            put_everything(store.connection, queue_name(MODEL, "normal"))
        batch = make_batch(store, [{**line, "max_tokens": 5} for line in prompts(20)], defaults={"model": MODEL})
        worker = worker_on(server_url, tmp_path / f"{name}.log")
        try:
            until(lambda batch=batch: store.batch(batch).done, "the batch is done", seconds=90)
            until(lambda: len(Workers(store.connection).read()) == 1, "its state is read", seconds=10)
            peaks.append(most_memory(worker))
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(60) == 0
        finally:
            worker.kill()
            worker.wait()
        assert store.batch(batch).completed == 20
    log = (tmp_path / "hostile.log").read_bytes()
    assert log.count(b" WARNING refused ") >= len(ENTRIES)
    assert len(log) < 50_000
    assert b"executed" not in log
    assert b"Traceback" not in log
    assert peaks[1] < peaks[0] + 200  # the largest are taken apart before they are refused
