"""The fault matrix: what the cases share.

A case starts workers in ``pool`` (the flags of ``stub.py`` say what they do to themselves), submits, breaks something,
waits for the end, lets ``case.check`` audit each batch and notes its row with ``case.note``. One that is not
representative is marked ``faults``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.faults.pool import QUICK_LEASE_S, Pool
from tests.e2e.faults.table import Case

THOROUGH = "FAULTS" in os.environ
"""All cases, with leases of so many seconds: ``make faults`` has those of production."""
LEASE_S = int(os.environ.get("FAULTS", QUICK_LEASE_S))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the cases marked ``faults`` unless all are wanted."""
    if THOROUGH:
        return
    left_out = [item for item in items if item.get_closest_marker("faults")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    """A pool with a server and no worker yet."""
    with Pool(tmp_path, lease=LEASE_S) as made:
        yield made


@pytest.fixture
def case(pool: Pool) -> Case:
    """Audits the batches of a test and notes its row of the table."""
    return Case(pool)
