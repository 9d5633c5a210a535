"""How long batches are kept once they are done, how they are removed, and what they take in Redis."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.errors import RefusedError
from jobs.redis.connect import replies
from jobs.store.keys import BATCHES, KEEPING, UPLOADING, BatchKeys
from jobs.store.read_batch import common_keys, shard_keys
from jobs.store.shard_table import read_rows

if TYPE_CHECKING:
    from redis import Redis

    from jobs.store.store import Store

KEEP_S = 14 * 86400.0
"""What a batch is kept for where nothing else is said: seconds from its end."""
MEASURED_SHARDS = 200


def purge(store: Store, batch_id: str) -> None:
    """Remove a batch that is done, with its prompts and records.

    Raises:
        BatchNotFoundError: there is no such batch.
        RefusedError: it is not done.
    """
    before = _take_off(store, batch_id, only_due=False)
    if before in ("completed", "cancelled", "expired", "failed"):
        store.discard(batch_id)
        return
    batch = store.batch(batch_id)  # says so where there is none
    if batch.status == "validating":
        raise RefusedError(f"batch {batch_id} is still being submitted; stop its submit instead")
    raise RefusedError(f"batch {batch_id} is {batch.status}: cancel it first, `promptmill cancel {batch_id}`")


def purge_due(store: Store) -> list[str]:
    """Remove the batches that were kept for as long as they should be; their ids."""

    def remove(batch_id: str) -> bool:
        if _take_off(store, batch_id, only_due=True) not in ("completed", "cancelled", "expired", "failed"):
            return False
        store.discard(batch_id)
        return True

    return store.due(KEEPING, remove)


def _take_off(store: Store, batch_id: str, *, only_due: bool) -> str | None:
    return store.change("purge", batch_id, [BatchKeys(batch_id).info, UPLOADING, BATCHES, KEEPING], int(only_due))


def memory(connection: Redis, batch_id: str) -> int:
    """Bytes of Redis' memory that a batch takes: prompts, records, RQ's jobs and books.

    Of many shards some are measured, spread evenly, and the others are taken to be like them.
    """
    rows = read_rows(connection, batch_id)
    some = rows[:: max(1, len(rows) // MEASURED_SHARDS)]
    shards = [key for row in some for key in shard_keys(batch_id, row.number)]
    common = common_keys(connection, batch_id)
    with connection.pipeline(transaction=False) as pipe:
        for key in (*common, *shards):
            pipe.memory_usage(key)
        sizes = [size if isinstance(size, int) else 0 for size in replies(pipe)]
    scale = len(rows) / len(some) if some else 1.0
    return sum(sizes[: len(common)]) + round(scale * sum(sizes[len(common) :]))
