"""Refusals in Redis: which workers have refused a shard, and whether a shard is its batch's own."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, cast

from jobs.errors import RefusedError
from jobs.redis.connect import refusing
from jobs.store.keys import BatchKeys

if TYPE_CHECKING:
    from redis import Redis

__all__ = ["is_listed", "note_refusal"]

REFUSALS_S = 30 * 86400


def is_listed(connection: Redis, batch_id: str, number: int) -> bool:
    """Whether a batch has a shard of this number; what is queued beside a batch's own shards is somebody else's."""
    try:
        with refusing(f"batch {batch_id}"):
            return bool(connection.zcount(BatchKeys(batch_id).table, number, number))
    except RefusedError:
        return False


def note_refusal(connection: Redis, batch_id: str, number: int, worker: str, workers: Collection[str]) -> bool:
    """Remember that ``worker`` refuses a shard; whether all of ``workers`` have."""
    key = BatchKeys(batch_id).refusals(number)
    with refusing(f"shard {batch_id}-{number}"), connection.pipeline() as pipe:
        pipe.sadd(key, worker)
        pipe.expire(key, REFUSALS_S)  # the batch may be gone by now
        pipe.smismember(key, [worker, *workers])
        return all(cast("list[int]", pipe.execute()[-1]))
