"""What tests on a server share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from jobs.redis.connect import connect
from jobs.shard import Group
from jobs.store.store import Store
from tests.pool import MODEL
from worker.service import Service, ServiceSettings

if TYPE_CHECKING:
    from redis import Redis


@pytest.fixture
def opened() -> Iterator[Callable[..., Redis]]:
    """``opened(url, **settings)``: a connection that is closed at the end of the test. One that is
    left for Python to collect ends some other test with a warning."""
    with contextlib.ExitStack() as stack:

        def open_one(url: str, **settings: Any) -> Redis:
            return stack.enter_context(contextlib.closing(connect(url, **settings)))

        yield open_one


@pytest.fixture
def service(store: Store, server_url: str, opened: Callable[..., Redis]) -> Service:
    """A worker for MODEL whose threads are not started."""
    return Service(store.connection, opened(server_url), ServiceSettings((Group(MODEL),), name="mini"))
