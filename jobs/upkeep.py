"""What any process that uses Redis does for others now and then, since nobody in particular is in charge of it."""

from __future__ import annotations

from jobs.connect import refusing
from jobs.ending import expire_due
from jobs.retrying import resume
from jobs.store import Store

__all__ = ["upkeep"]


def upkeep(store: Store) -> None:
    """End batches whose time is up, remove dead uploads, and go on with dead retries.

    Raises:
        RefusedError: somebody put something else where Redis keeps who is at it.
    """
    with refusing("uploads and batches that expire"):
        expire_due(store)
        store.sweep()
        resume(store)
