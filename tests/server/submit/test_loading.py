"""A Redis that is still loading its data, as after its machine has started: workers wait, others say so, nobody says
to start it. And replicas, which take no writes."""

from __future__ import annotations

import contextlib
import fcntl
import io
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from redis.exceptions import BusyLoadingError, ConnectionError as AwayError

from jobs.embedded.server import embedded_server, open_lock, try_lock
from jobs.errors import LoadingError, RedisError
from jobs.lines.line import Defaults
from jobs.redis.connect import connect, connect_patiently
from jobs.store.store import Store
from submit.cli import main
from submit.results import follow
from submit.results.destination import Destination
from submit.results.follow import OUTAGE_S, follow_results
from submit.run.run import RunRequest, run
from submit.status.progress import Progress
from tests.pool import make_batch, prompts, work
from tests.servers import Server, private_server
from tests.waiting import until

KEYS = 150_000
DELAY_US = 100
"""The server's own setting for tests: microseconds that it takes longer for each key; about 20 s for all."""
POCKET = Path(__file__).parents[3] / "examples" / "pocket" / "model"


class Loading:
    """A server that was started with much data to load; :meth:`finish` lets it come to its end."""

    def __init__(self, server: Server) -> None:
        self.server, self.url = server, server.url

    def finish(self) -> None:
        """Load the rest at full speed."""
        self.server.configure("key-load-delay", 0)

    def finish_when(self, condition: Callable[[], bool]) -> threading.Thread:
        """The same, once something has come about; join the thread."""

        def wait() -> None:
            until(condition, "it was said that the server loads its data")
            self.finish()

        thread = threading.Thread(target=wait)
        thread.start()
        return thread


@pytest.fixture
def loading(server: Server) -> Loading:
    """A server in the middle of it."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(server.url.removeprefix("unix://"))
        commands = b"".join(b"*3\r\n$3\r\nSET\r\n$9\r\nk%08d\r\n$1\r\n1\r\n" % number for number in range(KEYS))
        sender = threading.Thread(target=client.sendall, args=[commands])
        sender.start()
        answered = 0
        while answered < len(b"+OK\r\n") * KEYS:
            answered += len(client.recv(1 << 16))
        sender.join()
    server.stop()
    server.options("--key-load-delay", str(DELAY_US))
    server.start()
    return Loading(server)


def test_a_loading_server_is_not_said_to_be_down(loading: Loading, capsys: pytest.CaptureFixture[str]) -> None:
    """Commands end with status 3 and say how far it is and what to do; never to start it."""
    with pytest.raises(LoadingError, match=r"^Redis at unix://\S+ is still loading its data \(\d+ %.*\); try again"):
        connect(loading.url)
    assert main(["status", "--redis", loading.url]) == RedisError.exit_status == 3
    said = capsys.readouterr().err
    assert "is still loading its data (" in said
    assert "try again in a moment" in said
    assert "start it" not in said


def test_who_has_time_waits_and_says_so_once(loading: Loading) -> None:
    """However often it asks."""
    said: list[str] = []
    asked = 0

    def sleep(_seconds: float) -> None:
        nonlocal asked
        asked += 1
        if asked == 2:
            loading.finish()

    with connect_patiently(loading.url, said.append, sleep=sleep) as connection:
        assert connection.dbsize() == KEYS
    assert asked >= 2
    [only] = said
    assert only.endswith("; waiting for it")


WORKER = (sys.executable, "-P", "-m", "worker", "--model", str(POCKET), "--no-preload")
SCHEDULER = (str(Path(sys.executable).with_name("promptmill")), "scheduler")


@contextlib.contextmanager
def started(command: Sequence[str], url: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has said once that it waits for its server."""
    with log.open("wb") as output:
        process = subprocess.Popen([*command, "--redis", url], stdout=output, stderr=output)
    try:
        until(lambda: "is still loading its data" in log.read_text(), "it says that it waits")
        yield process
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
    assert log.read_text().count("is still loading its data") == 1


@pytest.mark.parametrize(("command", "ready"), [(WORKER, " serves "), (SCHEDULER, " is active")])
def test_long_lived_processes_wait_until_their_server_has_loaded(
    loading: Loading, tmp_path: Path, command: Sequence[str], ready: str
) -> None:
    """They say so once, then they work; their end is clean."""
    log = tmp_path / "log"
    with started(command, loading.url, log):
        loading.finish()
        until(lambda: ready in log.read_text(), "it is at work")


def test_a_waiting_worker_is_stopped_like_any(loading: Loading, tmp_path: Path) -> None:
    """SIGTERM ends it at once, with status 0."""
    with started(WORKER, loading.url, tmp_path / "log"):
        pass


def test_run_waits_until_its_server_has_loaded(
    loading: Loading, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So do `submit --wait` and `results --follow`, which open Redis alike."""
    source = tmp_path / "in.jsonl"
    source.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in prompts(3)))
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    finisher = loading.finish_when(lambda: "is still loading its data" in stderr.getvalue())
    request = RunRequest(
        source=str(source),
        destination=Destination(tmp_path / "out.jsonl"),
        defaults=Defaults({"model": "pocket"}),
        redis_url=loading.url,
        worker=(sys.executable, "-P", "-m", "tests.stub_worker"),
    )
    assert run(request, environ={"PROMPTMILL_DATA_DIR": str(tmp_path / "data")}, progress=Progress(io.StringIO())) == 0
    finisher.join()
    assert len((tmp_path / "out.jsonl").read_bytes().splitlines()) == 3


@pytest.mark.parametrize("command", ["submit", "results"])
def test_commands_that_wait_anyway_wait_for_this_too(
    loading: Loading, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """What they wait for then ends otherwise here: there is no such batch, nor any worker."""
    source = tmp_path / "in.jsonl"
    source.write_bytes(orjson.dumps({**prompts(1)[0], "model": "pocket"}) + b"\n")
    out = str(tmp_path / "out.jsonl")
    words = {
        "submit": ["submit", str(source), "--wait", "-o", out, "--timeout", "0s", "--redis", loading.url],
        "results": ["results", "b_none", "--follow", "-o", out, "--redis", loading.url],
    }
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    finisher = loading.finish_when(lambda: "is still loading its data" in stderr.getvalue())
    assert main(words[command]) == {"submit": 4, "results": 2}[command]
    finisher.join()


def test_the_embedded_server_is_waited_for_and_this_is_said(loading: Loading) -> None:
    """Once, when it has taken more than a moment; no second server is started, and no deadline passes."""
    now, said = [0.0], list[str]()

    def sleep(_seconds: float) -> None:
        now[0] += 6.0
        if now[0] > 60:
            loading.finish()

    folder = loading.server.folder
    supervisor = open_lock(folder / "guardian.lock")
    assert try_lock(supervisor, fcntl.LOCK_EX)
    with embedded_server(folder, say=said.append, clock=lambda: now[0], sleep=sleep) as url:
        assert url == loading.url
    supervisor.close()
    [only] = said
    assert "is still loading its data (" in only
    assert only.endswith("; waiting for it")


def test_doctor_says_that_the_server_loads(loading: Loading, capsys: pytest.CaptureFixture[str]) -> None:
    """A failed check with its remedy; what would need an answer is passed over."""
    assert main(["doctor", "--no-worker", "--json", "--redis", loading.url]) == 1
    checks = orjson.loads(capsys.readouterr().out)["checks"]
    [connection] = [check for check in checks if check["name"] == "connection"]
    assert "is still loading its data" in connection["reason"]
    assert connection["remedy"] == "try again in a moment"


class Told:
    """Keeps what is noted."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def update(self, *_: object) -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_following_waits_as_long_as_redis_loads(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than an outage is waited out, for it comes back; and it is said apart from the outage before it."""
    batch_id = make_batch(store, prompts(2))
    work(store, batch_id)
    now, told, real = [0.0], Told(), follow.current
    looks = iter([AwayError("gone"), *[BusyLoadingError("Valkey is loading the dataset in memory")] * 40, None])

    def current(*arguments: Any) -> Any:
        error = next(looks)
        if error is not None:
            raise error
        return real(*arguments)

    def sleep(_seconds: float) -> None:
        now[0] += OUTAGE_S / 10

    monkeypatch.setattr(follow, "current", current)
    out = tmp_path / "out.jsonl"
    follow_results(store, batch_id, Destination(out), progress=told, clock=lambda: now[0], sleep=sleep)
    assert now[0] > 3 * OUTAGE_S
    assert len(out.read_bytes().splitlines()) == 2
    assert told.notes == [
        "Redis is away; waiting for it to come back",
        "Redis is loading its data; waiting for it",
        "Redis is back",
    ]


@pytest.mark.parametrize("stale", ["yes", "no"])
def test_a_replica_is_named_as_one(tmp_path: Path, capsys: pytest.CaptureFixture[str], stale: str) -> None:
    """Also one that has lost its primary, and answers nothing."""
    source = tmp_path / "in.jsonl"
    source.write_bytes(orjson.dumps({**prompts(1)[0], "model": "pocket"}) + b"\n")
    with private_server("--replicaof", "127.0.0.1 1", "--replica-serve-stale-data", stale) as server:
        assert main(["submit", str(source), "--redis", server.url]) == 3
    assert "is a replica: it takes no writes; give its primary's address" in capsys.readouterr().err
