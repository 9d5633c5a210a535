"""`promptmill serve` measured: a large upload, requests that wait, added latency, and others beside hostile clients.

    python -m bench.serve [--parts PART ...] [--lines N] [--tiny N] [--out FILE]

Parts: ``upload`` sends a file and waits until its batch runs; ``waiting`` has 200, then 2,000 clients ask at once,
answered by a worker without a model; ``latency`` asks a real worker, one request after the other; ``hostile`` runs each
kind of :mod:`bench.serve.hostile` beside somebody who asks for completions. Everything runs on this machine: the
clients, the server, Redis and the worker share its cores.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bench.models import ROOT
from bench.record import RESULTS, new_run
from bench.report.table import table
from bench.serve.clients import Connection, beside, completion, memory_mb
from bench.serve.hostile import KINDS
from bench.serve.rates import alone, at_once, upload, write_lines
from serve.access.keyfile import Key, changed_keys, digest
from tests.servers import Server, private_server
from tests.serving import MODEL, Served, quick_worker, serving
from tests.waiting import until

POCKET = str(ROOT / "examples" / "pocket" / "model")
HEAD = ("what", "measured", "goal")
OPEN_FILES = 16_000
KEY = "sk-bench"
PAUSE_S = 0.05
SETTLE_S = 3.0

Row = tuple[str, str, str]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--lines", type=int, default=1_000_000, help="of the upload  [default: 1000000]")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="of hostile clients")
    parser.add_argument("--tiny", type=int, default=1_000_000, help="tiny requests  [default: 1000000]")
    parser.add_argument("--out", type=Path, default=RESULTS / "serve.md")
    options = parser.parse_args(arguments)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(OPEN_FILES, hard)), hard))
    machine = new_run(quick=False)
    rows = list[Row]()
    for part in options.parts:
        for row in PARTS[part](options):
            print(*row, sep=" | ", flush=True)
            rows.append(row)
    about = f"{machine.date} on {machine.cpu}, {machine.cores} cores, load {machine.load} before."
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(f"# Serving\n\n{about}\n\n{table(HEAD, rows)}\n", encoding="utf-8")


@contextlib.contextmanager
def served(*flags: str) -> Iterator[tuple[Server, Served, Path]]:
    """A server with a Redis and a folder of its own."""
    with (
        private_server() as redis,
        tempfile.TemporaryDirectory() as folder,
        serving(redis.url, Path(folder) / "files", *flags) as server,
    ):
        yield redis, server, Path(folder)


def uploads(options: argparse.Namespace) -> Iterator[Row]:
    """A large file."""
    with served() as (_, server, folder):
        path = folder / "lines.jsonl"
        write_lines(path, options.lines, MODEL)
        found = asyncio.run(upload(server.url, path, options.lines))
        about = f"upload of {found.lines:,} lines, {found.size / 1e6:.0f} MB"
        yield (
            f"{about}: to `in_progress`",
            f"{found.rate:,.0f} lines/s ({found.upload_s:.1f} s to send, {found.check_s:.1f} s to check and queue)",
            ">= 30,000",
        )
        yield f"{about}: most memory of `serve`", f"{memory_mb(server.process.pid, peak=True):.0f} MB", "< 250 MB"


def waiting(_options: argparse.Namespace) -> Iterator[Row]:
    """Many at once."""
    with served() as (redis, server, _), quick_worker(redis.url):
        for clients, requests, goal in ((200, 4000, ">= 1,000"), (2000, 8000, ">= 1,000, none lost")):
            seconds, found = asyncio.run(at_once(server.url, MODEL, clients, requests))
            statuses = ", ".join(f"{count:,} times {status}" for status, count in sorted(found.items()))
            yield f"{clients:,} clients waiting at once", f"{requests / seconds:,.0f} requests/s; {statuses}", goal
        memory = memory_mb(server.process.pid, peak=True)
        yield "the same: most memory of `serve`", f"{memory:.0f} MB", ""
        with redis.client() as connection:
            until(lambda: not connection.zcard("promptmill:requests"), "the batches of requests are removed")


def latency(_options: argparse.Namespace) -> Iterator[Row]:
    """One after the other, from a worker with a small model."""
    with served() as (redis, server, folder):
        log = (folder / "worker.log").open("wb")
        environ = {**os.environ, "PROMPTMILL_REDIS_URL": redis.url}
        command = [sys.executable, "-m", "promptmill", "worker", "--model", POCKET]
        with (
            log,
            subprocess.Popen(command, env=environ, stderr=log, stdout=log) as worker,
            redis.client() as connection,
        ):
            try:
                until(lambda: b" serves " in (folder / "worker.log").read_bytes(), "the worker is ready")
                added, engine = asyncio.run(alone(server.url, POCKET, 60, connection))
            finally:
                worker.terminate()
        yield f"added to the engine's {engine:.1f} ms, idle worker", f"{added:.1f} ms median", "< 30 ms"


class Bystander(threading.Thread):
    """Somebody who asks for completions all the while, and notes how long each took."""

    def __init__(self, url: str, headers: Sequence[str]) -> None:
        super().__init__(daemon=True)
        self._url, self._headers = url, headers
        self._over = threading.Event()
        self._milliseconds: list[float] = []
        self._failed = 0

    def run(self) -> None:
        asyncio.run(self._ask())

    async def _ask(self) -> None:
        connection = await Connection.to(self._url)
        while not self._over.is_set():
            began = time.perf_counter()
            try:
                status, _ = await connection.ask(completion(MODEL, "hello", *self._headers))
            except (OSError, EOFError):
                status, connection = 0, await Connection.to(self._url)
            self._failed += status != 200
            self._milliseconds.append((time.perf_counter() - began) * 1000)
            await asyncio.sleep(PAUSE_S)
        connection.close()

    def end(self) -> str:
        """What was noted."""
        self._over.set()
        self.join()
        found = sorted(self._milliseconds)
        worst = found[int(len(found) * 0.99)]
        failed = f"{self._failed} of {len(found):,} failed" if self._failed else "none failed"
        return f"others {statistics.median(found):.0f} ms median, {worst:.0f} ms 99th, {failed}"


def hostile(options: argparse.Namespace) -> Iterator[Row]:
    """Each kind of hostile clients, beside somebody who asks for completions."""
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder) / "keys.json"
        with changed_keys(keys) as made:
            made.append(Key("bench", digest(KEY), 0.0))
        for kind in options.kinds:
            flags = ("--keys", str(keys)) if kind == "forged" else ()
            with served(*flags) as (redis, server, _), quick_worker(redis.url):
                yield _beside(kind, options.tiny if kind == "tiny" else KINDS[kind][1], server)


def _beside(kind: str, count: int, server: Served) -> Row:
    headers = (f"Authorization: Bearer {KEY}",) if kind == "forged" else ()
    bystander = Bystander(server.url, headers)
    bystander.start()
    time.sleep(SETTLE_S)
    before, began = memory_mb(server.process.pid), time.perf_counter()
    with beside("bench.serve.hostile", kind, server.url, str(count)) as process:
        said, _ = process.communicate()
    took = time.perf_counter() - began
    found = bystander.end()
    peak = memory_mb(server.process.pid, peak=True)
    statuses = ", ".join(f"{number:,} times {status}" for status, number in sorted(json.loads(said).items()))
    memory = f"memory {before:.0f} MB before, {peak:.0f} MB at most"
    return f"{count:,} of: {KINDS[kind][2]}", f"{statuses} in {took:.0f} s; {memory}; {found}", "4xx, flat memory"


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "upload": uploads,
    "waiting": waiting,
    "latency": latency,
    "hostile": hostile,
}


if __name__ == "__main__":
    main()
