"""A worker beside the server, for `promptmill serve --model`: started, started again when it dies, and stopped."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from jobs.batch import Batch
from jobs.errors import PromptmillError
from submit.run.worker_process import WorkerProcess

LOOK_S = 0.5
WELL_S = 600.0
"""A worker that ran for so long was well: its earlier deaths no longer count."""
LOG = "serve-worker.log"


class WorkerBeside:
    """A worker for these models, as long as the block runs. Its log is in ``folder``. It is given up where it cannot
    run, or dies again and again."""

    def __init__(
        self,
        models: Sequence[str],
        redis_url: str,
        folder: Path,
        say: Callable[[str], object],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
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
        self._clock = clock

        def tell(text: str) -> None:
            say(f"worker: {text}")

        self._process = WorkerProcess(command, folder / LOG, environ, tell)
        self._over = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="worker", daemon=True)
        self.failure: PromptmillError | None = None
        """Why it was given up."""

    def __enter__(self) -> Self:
        self._process.start()
        self._keeper.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._keeper.join()
        self._process.stop()

    def _keep(self) -> None:
        begun = self._clock()
        while not self._over.wait(LOOK_S):
            well = int((self._clock() - begun) / WELL_S)
            try:
                self._process.check(Batch(id="serve", status="in_progress", total=well + 1, completed=well))
            except PromptmillError as error:
                self.failure = error
                return
