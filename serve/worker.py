"""A worker beside the server, for `promptmill serve --model`: started, started again when it dies, and stopped."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from jobs.batch import Batch
from jobs.errors import PromptmillError
from submit.run.worker_process import WorkerProcess

LOOK_S = 0.5
WELL_S = 600.0
"""A worker that ran for so long was well: its earlier deaths no longer count."""
LOG = "serve-worker.log"


@contextlib.contextmanager
def worker_beside(
    models: Sequence[str],
    redis_url: str,
    folder: Path,
    say: Callable[[str], object],
    *,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[None]:
    """A worker for these models, as long as the block runs. Its log is in ``folder``. One that dies again and again is
    given up, and ``say`` is told."""
    folders = [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH")]
    environ = {
        **os.environ,
        "PROMPTMILL_REDIS_URL": redis_url,
        "PYTHONPATH": os.pathsep.join(filter(None, folders)),
    }
    # -P: a folder named worker in the current directory must not be taken for ours.
    command = [sys.executable, "-P", "-m", "worker", *(f"--model={model}" for model in models)]
    command.append(f"--exit-with-parent={os.getpid()}")
    folder.mkdir(parents=True, exist_ok=True)

    def tell(text: str) -> None:
        say(f"worker: {text}")

    process = WorkerProcess(command, folder / LOG, environ, tell)
    over = threading.Event()
    begun = clock()

    def keep() -> None:
        while not over.wait(LOOK_S):
            well = int((clock() - begun) / WELL_S)
            try:
                process.check(Batch(id="serve", status="in_progress", total=well + 1, completed=well))
            except PromptmillError as error:
                say(f"worker: {error}; there is none any more")
                return

    process.start()
    thread = threading.Thread(target=keep, name="worker", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        process.stop()
