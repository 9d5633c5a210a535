"""Shards that workers refuse: which shards are a batch's own, and which workers have refused one."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, cast

import orjson

from jobs.connect import refusing
from jobs.errors import RefusedError
from jobs.keys import BatchKeys
from jobs.shard import MAX_SHARD_LINES

if TYPE_CHECKING:
    from redis import Redis

__all__ = ["indices_of", "is_listed", "note_refusal"]

REFUSALS_S = 30 * 86400


def is_listed(connection: Redis, batch_id: str, number: int) -> bool:
    """Whether a batch has a shard of this number; what is queued beside a batch's own shards is somebody else's."""
    try:
        with refusing(f"batch {batch_id}"):
            return bool(connection.zcount(BatchKeys(batch_id).table, number, number))
    except RefusedError:
        return False


def indices_of(connection: Redis, batch_id: str, number: int) -> range | None:
    """The lines of a shard whose own list of them cannot be read; None where its batch's table does not tell.

    Shards before it that have exactly the lines before its first one, and a next one that begins where it would end,
    leave no other lines for it.

    Raises:
        RefusedError: the table is not ours.
    """
    with refusing(f"batch {batch_id}"):
        stored = cast("list[bytes]", connection.zrange(BatchKeys(batch_id).table, 0, -1))
    try:
        rows = sorted((int(row[2]), int(row[3]), int(row[0])) for row in map(orjson.loads, stored))
    except (ValueError, LookupError, TypeError) as error:
        raise RefusedError(f"what Redis keeps of batch '{batch_id}' is damaged: {error}") from None
    before = 0
    for place, (first, lines, shard) in enumerate(rows):
        end = before + lines
        if shard == number:
            exact = first == before and (place + 1 == len(rows) or rows[place + 1][0] == end)
            return range(first, end) if exact and 0 < lines <= MAX_SHARD_LINES else None
        before = end
    return None


def note_refusal(connection: Redis, batch_id: str, number: int, worker: str, workers: Collection[str]) -> bool:
    """Remember that ``worker`` refuses a shard; whether all of ``workers`` have."""
    key = BatchKeys(batch_id).refusals(number)
    with refusing(f"shard {batch_id}-{number}"), connection.pipeline() as pipe:
        pipe.sadd(key, worker)
        pipe.expire(key, REFUSALS_S)  # the batch may be gone by now
        pipe.smismember(key, [worker, *workers])
        return all(cast("list[int]", pipe.execute()[-1]))
