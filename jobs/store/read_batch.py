"""Reading a batch's state from Redis, with bounds: the values may be anybody's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, cast

from jobs.batch import Batch, parse_batch
from jobs.errors import BatchNotFoundError, RefusedError
from jobs.redis.connect import refusing, replies
from jobs.store.keys import BatchKeys
from jobs.store.shard_table import read_rows
from jobs.store.steps import step

if TYPE_CHECKING:
    from redis import Redis

MAX_INFO_BYTES = 4 * 2**20
"""Nothing larger is loaded."""
MAX_GIVEN_BYTES = 2 * 2**20
"""Of that a batch's defaults and metadata; its name and models take the rest."""


def read_batch(connection: Redis, batch_id: str) -> Batch:
    """The batch of this id.

    Raises:
        BatchNotFoundError: there is none.
        RefusedError: what Redis keeps under its name is no batch.
    """
    read = step(connection, "jobs.store.lua.batch", "read")
    with refusing(f"batch '{batch_id}'"):
        return _batch(batch_id, read(keys=[BatchKeys(batch_id).info], args=[MAX_INFO_BYTES]))


def keys_of(connection: Redis, batch_id: str, shards: int = 0) -> Iterator[str]:
    """All keys that a batch of ``shards`` shards or more has or may have; those that name the others are first."""
    yield from common_keys(connection, batch_id)
    for number in {*range(shards), *(row.number for row in read_rows(connection, batch_id))}:
        yield from shard_keys(batch_id, number)


def common_keys(connection: Redis, batch_id: str) -> list[str]:
    """The keys of a batch as a whole."""
    keys = BatchKeys(batch_id)
    queues = cast("set[bytes]", connection.smembers(keys.queues))
    pending = [keys.pending(queue.decode()) for queue in queues]
    rare = [keys.dropped, keys.problems, keys.hidden]
    return [keys.info, keys.table, keys.queues, keys.fences, keys.finished, keys.retried, keys.orphans, *rare, *pending]


def shard_keys(batch_id: str, number: int) -> list[str]:
    """The keys that a shard has or may have."""
    keys = BatchKeys(batch_id)
    own = [keys.payload(number), keys.records(number), keys.compacted(number), keys.flights(number)]
    own += [keys.pieces(number), keys.reopened(number)]
    return [*own, keys.tries(number), keys.refusals(number), f"rq:job:{keys.job_id(number)}"]


def read_batches(connection: Redis, ids: Sequence[str]) -> list[Batch]:
    """Those of these batches that are there; what is none is left out."""
    read = step(connection, "jobs.store.lua.batch", "read")
    with connection.pipeline(transaction=False) as pipe:
        for batch_id in ids:
            read(keys=[BatchKeys(batch_id).info], args=[MAX_INFO_BYTES], client=pipe)
        found = replies(pipe)
    batches = []
    for batch_id, info in zip(ids, found, strict=True):
        if isinstance(info, list):
            with contextlib.suppress(RefusedError):
                batches.append(_batch(batch_id, info))
    return batches


def _batch(batch_id: str, stored: list[bytes]) -> Batch:
    """The batch of a flat hash."""
    fields = dict(zip(stored[::2], stored[1::2], strict=True))
    if b"status" not in fields:
        raise BatchNotFoundError(f"no batch '{batch_id}' here; `promptmill status` lists them")
    return parse_batch(batch_id, fields)
