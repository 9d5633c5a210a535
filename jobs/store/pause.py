"""Batches that are held back (paused, or waiting for their start time), and priorities.

A batch that is held back is in progress like any other, but its jobs are in no queue: they pend, as they did before it
was committed. Lines that workers have begun are finished; the others of their shards come back and pend too.
"""

from __future__ import annotations

import logging

from jobs.batch import PRIORITIES
from jobs.errors import RefusedError
from jobs.store.keys import STARTING, UPLOADING, BatchKeys
from jobs.store.store import Store

log = logging.getLogger("promptmill.jobs")


def pause(store: Store, batch_id: str) -> bool:
    """Hold a batch back: its lines under way are finished, the others wait. False: it was paused already.

    Raises:
        BatchNotFoundError: there is no such batch.
        RefusedError: it is over, is still being submitted, or is about to be retried.
    """
    keys = BatchKeys(batch_id)
    wanted = [keys.info, UPLOADING, keys.queues]
    before = store.change("pause", batch_id, wanted, repr(store.now()), keys.pending(""))
    return _allowed(store, batch_id, before, "paused") == "in_progress"


def resume_batch(store: Store, batch_id: str) -> bool:
    """Let a paused batch go on. False: it was not paused.

    Raises:
        BatchNotFoundError: there is no such batch.
        RefusedError: it is over, or is still being submitted.
    """
    keys = BatchKeys(batch_id)
    before = store.change("resume", batch_id, [keys.info, keys.queues, "rq:queues"], keys.pending(""))
    return _allowed(store, batch_id, before, "resumed") == "paused"


def prioritise(store: Store, batch_id: str, priority: str) -> str:
    """Give a batch another priority, also while it runs; the one it had.

    Raises:
        BatchNotFoundError: there is no such batch.
        RefusedError: there is no such priority, or the batch is over, being submitted or about to be retried.
    """
    if priority not in PRIORITIES:
        raise RefusedError(f"priority must be one of {', '.join(PRIORITIES)}, not {priority!r:.40}")
    batch, keys = store.batch(batch_id), BatchKeys(batch_id)
    wanted = [keys.info, UPLOADING, keys.queues, "rq:queues"]
    before = store.change("prioritise", batch_id, wanted, priority, keys.pending(""))
    _allowed(store, batch_id, before, "moved")
    return batch.priority


def start_due(store: Store) -> list[str]:
    """Begin the batches whose time has come; their ids."""

    def start(batch_id: str) -> bool:
        keys = BatchKeys(batch_id)
        wanted = [keys.info, STARTING, keys.queues, "rq:queues"]
        return store.change("start", batch_id, wanted, repr(store.now()), keys.pending("")) == "in_progress"

    return store.due(STARTING, start)


def _allowed(store: Store, batch_id: str, before: str | None, what: str) -> str:
    """What a batch was before a step, where that did something or found it done."""
    if before in ("in_progress", "paused"):
        return before
    if before is None:
        store.batch(batch_id)  # says that there is none
    if before == "validating":
        raise RefusedError(f"batch {batch_id} is still being submitted; it can be {what} when it is")
    if before == "retried":
        raise RefusedError(f"batch {batch_id} is about to be retried; it can be {what} in a moment")
    raise RefusedError(f"batch {batch_id} is {before} already: there is nothing to be {what}")
