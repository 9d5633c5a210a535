"""What tests on a server share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from jobs.connect import connect
from jobs.shard import Group
from jobs.store import Store
from tests.pool import MODEL
from worker.service import Service, ServiceSettings


@pytest.fixture
def service(store: Store, server_url: str) -> Iterator[Service]:
    """A worker for MODEL whose threads are not started."""
    connection = connect(server_url)
    yield Service(store.connection, connection, ServiceSettings((Group(MODEL),), name="mini"))
    connection.close()
