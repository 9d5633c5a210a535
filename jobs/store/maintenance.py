"""Maintenance that every process does now and then: expiry, starts, removals, recovery of orphans and retries."""

from __future__ import annotations

from jobs.redis.connect import refusing
from jobs.store.cancel import expire_due
from jobs.store.orphans import tend_orphans
from jobs.store.pause import start_due
from jobs.store.retention import purge_due
from jobs.store.retry import resume
from jobs.store.store import Store


def upkeep(store: Store, *, orphans: bool = True) -> None:
    """Begin batches whose time has come, end those whose time is up, remove those that were kept for long enough, and
    dead uploads, and go on with dead retries. With ``orphans`` also put back shards that are in no queue: for that all
    queues are read, which is for those who are there anyway.

    Raises:
        RefusedError: a key of the chores holds something that is not ours.
    """
    with refusing("uploads, and batches that begin, expire or are removed"):
        start_due(store)
        expire_due(store)
        purge_due(store)
        store.sweep()
        resume(store)
        if orphans:
            tend_orphans(store)
