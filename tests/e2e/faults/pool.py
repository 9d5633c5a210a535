"""A pool under test: a real server, workers with the stub engine, and the real command line, all with deadlines."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from redis.exceptions import RedisError

from jobs.batch import DONE
from jobs.redis.connect import connect
from jobs.store.keys import worker_key
from jobs.store.store import Store
from tests import waiting
from tests.e2e.faults.auditor import Event, events
from tests.servers import Server
from worker.rq.worker import LEASE_S

ROOT = Path(__file__).parents[3]
MODEL = "stub"
AOF = "appendonlydir"
UNSAVED_S = 2.0
"""What a server that is killed may have of the last seconds in memory alone, with ``appendfsync everysec``."""
DEADLINE_S = 120.0
QUICK_LEASE_S = 3


def job_lines(count: int, *, max_tokens: int = 12, prompt: str = "line") -> list[dict[str, Any]]:
    """Plain lines whose prompts all differ."""
    return [{"id": f"row-{n}", "prompt": f"{prompt} {n}", "max_tokens": max_tokens} for n in range(count)]


class StoredServer(Server):
    """A server whose disk can be put back to what it was."""

    def keep(self, folder: Path) -> None:
        """Keep what is on the disk by now."""
        shutil.copytree(self.folder / AOF, folder, dirs_exist_ok=True)

    def restore(self, folder: Path) -> None:
        """Go back to what was kept, with the server killed: as after a power cut."""
        shutil.rmtree(self.folder / AOF)
        shutil.copytree(folder, self.folder / AOF)


@dataclass(slots=True)
class Worker:
    """A worker process and what it says."""

    process: subprocess.Popen[bytes]
    name: str
    said: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def ready(self) -> bool:
        assert self.alive, f"{self.name} ended at its start:\n{self.said.read_text()}"
        return " serves " in self.said.read_text()

    def signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)


@dataclass(frozen=True, slots=True)
class Submitted:
    """A batch and the lines it was made of."""

    id: str
    lines: list[dict[str, Any]]


class Pool:
    """What a test does to a pool, and sees of it. A context manager: at its end all processes are gone."""

    def __init__(self, folder: Path, *, lease: int = QUICK_LEASE_S, rows: int = 8, step_ms: float = 5.0) -> None:
        self.folder = folder
        self.lease = lease
        self.rows = rows
        self.log = folder / "generated.log"
        self.log.touch()
        self._step_ms = step_ms
        self._stack = contextlib.ExitStack()
        # In /tmp: the path of a socket may not be long.
        self.server = StoredServer(
            Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="pm-", dir="/tmp"))),
            "--appendfsync", "everysec",
        )  # fmt: skip
        self.workers: list[Worker] = []
        self._files = 0

    def __enter__(self) -> Pool:
        self._stack.callback(self._end)
        self.server.start()
        self._connection = connect(self.server.url)
        self._stack.callback(self._connection.close)
        self.store = Store(self._connection)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _end(self) -> None:
        for worker in self.workers:
            worker.process.kill()  # of a stopped process as well
            worker.process.wait()
        self.server.kill()

    # --- processes ---

    def worker(self, *flags: str, url: str | None = None, rows: int | None = None) -> Worker:
        """Start a worker; it is not waited for."""
        name = f"w{len(self.workers)}"
        said = self.folder / f"{name}.log"
        command = [
            sys.executable, "-m", "tests.e2e.faults.stub", "--log", str(self.log), "--step-ms", str(self._step_ms),
            *(["--lease", str(self.lease)] if self.lease != LEASE_S else []),
            "--redis", url or self.server.url, "--model", MODEL, "--name", name, "--spool", str(self.spool(flags)),
            "--decode-concurrency", str(rows or self.rows), *flags,
        ]  # fmt: skip
        with said.open("wb") as output:
            process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, start_new_session=True)
        self.workers.append(Worker(process, f"{name}.{process.pid}", said))
        return self.workers[-1]

    def spool(self, flags: Sequence[str] = ()) -> Path:
        """Where a worker with these flags keeps what it finished: all of one host have one folder."""
        return self.folder / ("spool-elsewhere" if "--foreign" in flags else "spool")

    def ready(self, *workers: Worker) -> None:
        """Wait until the workers serve."""
        for worker in workers:
            self.until(lambda worker=worker: worker.ready, f"{worker.name} serves")

    def until(self, condition: Any, what: str, seconds: float = DEADLINE_S) -> Any:
        """Wait for something; what the workers said is shown when it does not come."""
        try:
            return waiting.until(condition, what, seconds=seconds)
        except AssertionError as late:
            said = "\n".join(f"--- {one.name}\n{one.said.read_text()[-3000:]}" for one in self.workers)
            raise AssertionError(f"{late}\n{said}") from None

    def command(self, *arguments: str, check: bool = True, url: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run ``promptmill`` to its end."""
        command = [sys.executable, "-P", "-m", "submit.cli", *arguments, "--redis", url or self.server.url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
        assert not check or done.returncode == 0, f"{' '.join(arguments)} ended with {done.returncode}: {done.stderr}"
        return done

    # --- batches ---

    def write(self, lines: Iterable[dict[str, Any]]) -> Path:
        """A file of lines."""
        self._files += 1
        path = self.folder / f"in-{self._files}.jsonl"
        path.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
        return path

    def submit(self, lines: list[dict[str, Any]], *flags: str) -> Submitted:
        """Submit lines by the command line."""
        done = self.command("submit", str(self.write(lines)), "--model", MODEL, *flags)
        return Submitted(done.stdout.strip(), lines)

    def done(self, batch: Submitted) -> bool:
        """Whether the batch has come to its end; an outage is no answer."""
        try:
            return self.store.batch(batch.id).status in DONE
        except (RedisError, OSError):
            return False

    def wait(self, batch: Submitted, seconds: float = DEADLINE_S) -> None:
        """Wait for the end of a batch."""
        self.until(lambda: self.done(batch), f"{batch.id} is done", seconds)

    def results(self, batch: Submitted) -> tuple[Path, Path]:
        """The files of a batch's results and errors, fresh."""
        out = self.folder / f"{batch.id}.jsonl"
        self.command("results", batch.id, "-o", str(out), check=False)
        return out, out.with_suffix(".errors.jsonl")

    def status(self, batch: Submitted) -> dict[str, Any]:
        """What ``promptmill status BATCH --json`` says."""
        return dict(orjson.loads(self.command("status", batch.id, "--json").stdout))

    # --- what can be seen ---

    def events(self) -> list[Event]:
        """The generation log so far."""
        return events(self.log)

    def fault(self, worker: Worker) -> Event:
        """Wait until a worker has done itself harm."""

        def found() -> Event | None:
            return next((one for one in self.events() if one.event == "fault" and one.pid == worker.pid), None)

        return self.until(found, f"{worker.name} comes to its fault")

    def ended(self, worker: Worker) -> int:
        """Wait for a worker's end; its exit status."""
        self.until(lambda: not worker.alive, f"{worker.name} ends")
        return int(worker.process.wait())

    def idle(self, worker: Worker) -> None:
        """Wait until a worker says, afresh, that it holds nothing."""
        key = worker_key(worker.name)
        self._connection.delete(key)

        def says() -> bool:
            state = orjson.loads(self._connection.get(key) or b"{}")
            return bool(state) and state["state"] == "idle" and not state["in_flight"]

        self.until(says, f"{worker.name} is idle")

    def leftovers(self) -> list[str]:
        """Queues, leases and unfinished hand-overs that are left in Redis."""
        found = []
        for key in self._connection.scan_iter("rq:*", count=1000):
            name = key.decode()
            if (name.startswith("rq:queue:") and self._connection.llen(key)) or name.startswith(("rq:wip:", "rq:job:")):
                found.append(name)
        return found

    def settled(self, seconds: float = DEADLINE_S) -> None:
        """Wait until nothing of any batch is left in RQ's books."""
        self.until(lambda: not self.leftovers(), "RQ's books are empty", seconds)


@contextlib.contextmanager
def stopped(server: Server) -> Iterator[None]:
    """A server that hears and answers nothing for as long as the block runs."""
    server.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        server.signal(signal.SIGCONT)
