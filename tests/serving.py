"""`promptmill serve` as a process, for tests, and workers without a model that answer its lines."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from redis import Redis

from jobs.store.keys import worker_key
from tests.waiting import until

MODEL = "made-up/quick-1b"


@dataclass(frozen=True, slots=True)
class Served:
    """A running server: its URL up to ``/v1``, its process and what it wrote on stderr."""

    url: str
    process: subprocess.Popen[str]
    said: list[str]


@contextlib.contextmanager
def serving(redis_url: str, folder: Path, *flags: str, port: int = 0) -> Iterator[Served]:
    """A server on a port, 0 for any, with its files in ``folder``; it is asked to stop in the end."""
    command = [sys.executable, "-m", "promptmill", "serve", "--port", str(port), "--files", str(folder), *flags]
    environ = {**os.environ, "PROMPTMILL_REDIS_URL": redis_url}
    with subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said: list[str] = []
        reader = threading.Thread(target=lambda: said.extend(process.stderr or ()), daemon=True)
        reader.start()
        try:
            line = until(lambda: next((text for text in list(said) if "serving at" in text), ""), "it serves")
            yield Served(line.split("serving at ")[1].strip(), process, said)
        finally:
            process.terminate()
            process.wait(60)
            reader.join(10)


@contextlib.contextmanager
def quick_worker(redis_url: str, model: str = MODEL) -> Iterator[subprocess.Popen[bytes]]:
    """A worker that answers the lines of a model at once, and is seen by servers."""
    environ = {**os.environ, "PROMPTMILL_REDIS_URL": redis_url}
    with (
        Redis.from_url(redis_url) as connection,
        subprocess.Popen([sys.executable, "-m", "tests.quick_worker", model], env=environ) as process,
    ):
        try:
            until(lambda: connection.exists(worker_key(f"quick.{process.pid}")), "the worker is there")
            yield process
        finally:
            process.terminate()
            process.wait(20)
