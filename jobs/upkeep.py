"""What any process that uses Redis does for others now and then, since nobody in particular is in charge of it."""

from __future__ import annotations

from jobs.connect import refusing
from jobs.ending import expire_due
from jobs.retrying import resume
from jobs.store import Store

__all__ = ["upkeep"]


def upkeep(store: Store) -> None:
    """Remove dead uploads, go on with dead retries, and end batches whose time is up.

    Raises:
        RefusedError: somebody put something else where Redis keeps who is at it.
    """
    with refusing("uploads and batches that expire"):
        store.sweep()
        resume(store)
        expire_due(store)
