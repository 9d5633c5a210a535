"""Ending a batch before its time: cancelled by its owner, or expired.

It takes one step in Redis and nobody's cooperation: from then on no shard of it can be claimed and no record
written. Lines that have none by then get theirs when they are read, see :mod:`submit.results.read`.
"""

from __future__ import annotations

from jobs.batch import Batch
from jobs.errors import RefusedError
from jobs.redis.connect import refusing
from jobs.store.keys import EXPIRING, STARTING, UPLOADING, BatchKeys
from jobs.store.store import Store


def cancel(store: Store, batch_id: str) -> bool:
    """Cancel a batch; every finished line is kept. False: it was cancelled already.

    Raises:
        BatchNotFoundError: there is no such batch.
        RefusedError: it is over, or is still being submitted.
    """
    before = _end(store, batch_id, "cancelled")
    if before in ("in_progress", "cancelled"):
        return before == "in_progress"
    if before is None:
        store.batch(batch_id)  # says that there is none
    if before == "validating":
        raise RefusedError(f"batch {batch_id} is still being submitted; stop its submit instead")
    raise RefusedError(f"batch {batch_id} is {before} already: there is nothing to cancel")


def cancel_line(store: Store, batch_id: str, number: int, index: int, record: bytes) -> bool:
    """Cancel one line, of shard ``number``: ``record`` is its error record. The worker that has it hears of it within a
    second or two. False: it has a record already, or the batch has ended."""
    keys = BatchKeys(batch_id)
    wanted = [keys.info, keys.compacted(number), keys.records(number), keys.finished, keys.dropped]
    with refusing(f"batch '{batch_id}'"):
        return bool(store.step("batch.drop_line", wanted, [number, index, record]))


def expire_due(store: Store) -> list[str]:
    """End the batches whose time is up, by Redis' clock; their ids."""
    return store.due(EXPIRING, lambda batch_id: _expire(store, batch_id))


def current(store: Store, batch_id: str) -> Batch:
    """The batch as it is now: one whose time is up has ended, although no worker may be there to end it.

    Raises:
        BatchNotFoundError: there is none.
    """
    batch = store.batch(batch_id)
    if batch.done or "expires" not in batch.times or store.server_time() < batch.times["expires"]:
        return batch
    return store.batch(batch_id) if _expire(store, batch_id) else batch


def _expire(store: Store, batch_id: str) -> bool:
    return _end(store, batch_id, "expired") == "in_progress"


def _end(store: Store, batch_id: str, status: str) -> str | None:
    """End it as ``status``; the status before."""
    keys = BatchKeys(batch_id)
    wanted = [keys.info, UPLOADING, EXPIRING, keys.queues, STARTING]
    return store.change("end", batch_id, wanted, status, repr(store.now()), keys.pending(""))
