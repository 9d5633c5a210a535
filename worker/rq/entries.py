"""What lies in RQ's queues and registries, read with bounds: whoever may write to Redis may have put anything there.

Nothing here unpickles, imports or calls what it reads, and no value is loaded before its size is known.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import orjson
from rq.job import Job
from rq.serializers import JSONSerializer

from jobs.batch import is_batch_id
from jobs.errors import RefusedError
from jobs.redis.connect import refusing
from jobs.redis.rq_jobs import JOB_FUNCTION
from jobs.shard import MAX_INDEX, MAX_SHARD_LINES
from jobs.store.keys import BatchKeys

if TYPE_CHECKING:
    from redis import Redis

MAX_DATA_BYTES = 1024
"""Of a job's data, packed and unpacked: ours has a hundred."""


@dataclass(frozen=True, slots=True)
class ShardJob:
    """A dequeued RQ job, checked to be one of ours.

    ``refusal`` says what is wrong with the job of a shard that a batch has, as when a newer version wrote it.
    """

    job: Job
    queue: str
    batch_id: str
    number: int
    refusal: str | None = None


def read_job(connection: Redis, queue: str, job_id: str) -> ShardJob | None:
    """The shard that a queue's entry stands for; None when its job is gone.

    RQ's own ``Job.fetch`` would unpack and parse every field of the hash, whatever its size.

    Raises:
        RefusedError: it is no job of ours.
    """
    batch_id, _, digits = job_id.rpartition("-")
    if not (is_batch_id(batch_id) and digits.isascii() and digits.isdecimal() and len(digits) <= 15):
        raise RefusedError("its id is no shard's")
    refusal = None
    with refusing(f"job {job_id}"):
        # RQ is about to keep its leases there.
        connection.zcard(f"rq:executions:{job_id}")
        if not connection.hexists(f"rq:job:{job_id}", "data"):
            return None
    try:
        _check(short_field(connection, f"rq:job:{job_id}", "data", MAX_DATA_BYTES) or b"", batch_id, digits)
    except RefusedError as error:
        if str(int(digits)) != digits or not is_listed(connection, batch_id, int(digits)):
            raise
        refusal = str(error)
    job = Job(id=job_id, connection=connection, serializer=JSONSerializer)
    job.origin = queue
    return ShardJob(job, queue, batch_id, int(digits), refusal)


def _check(data: bytes, batch_id: str, digits: str) -> None:
    """See that a job's data, as RQ packs it, names the shard of its id."""
    try:
        function, instance, (named, number, lines), keywords = orjson.loads(_inflated(data))
    except (TypeError, ValueError):
        raise RefusedError("its data is not a shard's") from None
    if function != JOB_FUNCTION:
        raise RefusedError(f"its function is {str(function)[:80]!r}, not promptmill's")
    if type(number) is not int or type(lines) is not int or (instance, keywords) != (None, {}):
        raise RefusedError("its arguments are not a shard's")
    if (named, str(number)) != (batch_id, digits) or number > MAX_INDEX or not 0 < lines <= MAX_SHARD_LINES:
        raise RefusedError("its arguments are not its shard's")


def _inflated(data: bytes) -> bytes:
    stream = zlib.decompressobj()
    try:
        content = stream.decompress(data, MAX_DATA_BYTES)
    except zlib.error:
        raise RefusedError("its data is not packed as RQ packs it") from None
    if not stream.eof:
        raise RefusedError(f"its data is torn, or unpacks to more than {MAX_DATA_BYTES} bytes")
    return content


def short_field(connection: Redis, key: str, field: str, limit: int) -> bytes | None:
    """A field of a hash; None where there is none.

    Raises:
        RefusedError: it has more than ``limit`` bytes, and was not loaded.
    """
    size = connection.hstrlen(key, field)
    if size > limit:
        raise RefusedError(f"its {field} has {size} bytes; at most {limit} are taken")
    return cast("bytes | None", connection.hget(key, field)) if size else None


def is_listed(connection: Redis, batch_id: str, number: int) -> bool:
    """Whether a batch has a shard of this number; what is queued beside a batch's own shards is somebody else's."""
    try:
        with refusing(f"batch {batch_id}"):
            return bool(connection.zcount(BatchKeys(batch_id).table, number, number))
    except RefusedError:
        return False
