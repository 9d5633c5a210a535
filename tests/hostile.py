"""What somebody who may write to a pool's Redis could put in the way of its workers."""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Callable
from typing import Any

import orjson
import zstandard
from redis import Redis

from jobs.batch import new_batch_id
from jobs.redis.rq_jobs import JOB_FUNCTION
from jobs.shard import pack
from jobs.store.keys import BatchKeys

HUGE = 300_000_000


class Canary:
    """Unpickled, it would write to stdout and end the process."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("import os; os.write(1, b'executed'); os._exit(66)",)


def job_data(batch_id: str, number: Any = 0, lines: Any = 1) -> bytes:
    """The data of a shard's job as RQ packs it."""
    return zlib.compress(orjson.dumps([JOB_FUNCTION, None, [batch_id, number, lines], {}]))


def put_job(connection: Redis, queue: str, job_id: str | bytes, data: bytes | None, **fields: bytes) -> None:
    """An entry of a queue, with a job's hash of these fields when there is data."""
    key = b"rq:job:" + (job_id.encode() if isinstance(job_id, str) else job_id)
    if data is not None:
        connection.hset(key, mapping={"data": data, "status": "queued", "origin": queue, **fields})
    connection.rpush(f"rq:queue:{queue}", job_id)


def put_shard(connection: Redis, queue: str, payload: bytes | None = None, **info: bytes) -> BatchKeys:
    """A job that is in order, of a live batch that may not be."""
    keys = BatchKeys(new_batch_id())
    connection.hset(keys.info, mapping={"status": "in_progress", "shards": 1, **info})
    if payload is not None:
        connection.set(keys.payload(0), payload)
    callback = {
        "success_callback_name": b"os.abort",
        "failure_callback_name": b"os.abort",
        "meta": pickle.dumps(Canary()),
    }
    put_job(connection, queue, keys.job_id(0), job_data(keys.batch_id), **callback, result=pickle.dumps(Canary()))
    return keys


def _id() -> str:
    return f"{new_batch_id()}-0"


def _hash_of_another_type(connection: Redis, queue: str) -> None:
    job_id = _id()
    connection.rpush(f"rq:job:{job_id}", "x")
    put_job(connection, queue, job_id, None)


def _executions_of_another_type(connection: Redis, queue: str) -> None:
    batch_id = new_batch_id()
    connection.set(f"rq:executions:{batch_id}-0", "x")
    put_job(connection, queue, f"{batch_id}-0", job_data(batch_id))


def _batch_of_another_type(connection: Redis, queue: str) -> None:
    keys = put_shard(connection, queue)
    connection.delete(keys.info)
    connection.rpush(keys.info, "x")


def _fences_of_another_type(connection: Redis, queue: str) -> None:
    connection.set(put_shard(connection, queue, pack(b'{"runs":[[0,1,1]]}\n{}')).fences, "x")


def _fence_that_is_no_number(connection: Redis, queue: str) -> None:
    connection.hset(put_shard(connection, queue, pack(b'{"runs":[[0,1,1]]}\n{}')).fences, "0", "x")


def _payload_of_another_type(connection: Redis, queue: str) -> None:
    connection.rpush(put_shard(connection, queue).payload(0), "x")


def _giant_payload(connection: Redis, queue: str) -> None:
    connection.setrange(put_shard(connection, queue).payload(0), HUGE, "x")


def _zstd_bomb(connection: Redis, queue: str) -> None:
    put_shard(connection, queue, pack(b"\0" * HUGE))


def _unsized_zstd_bomb(connection: Redis, queue: str) -> None:
    put_shard(connection, queue, zstandard.ZstdCompressor(write_content_size=False).compress(b"\0" * HUGE))


def _giant_data(connection: Redis, queue: str) -> None:
    put_job(connection, queue, _id(), b"x" * (HUGE // 4))


def _job(job_id: str | bytes, data: bytes) -> Callable[[Redis, str], None]:
    return lambda connection, queue: put_job(connection, queue, job_id, data)


def _payload(payload: bytes) -> Callable[[Redis, str], None]:
    return lambda connection, queue: void(put_shard(connection, queue, payload))


def _info(**fields: bytes) -> Callable[[Redis, str], None]:
    return lambda connection, queue: void(put_shard(connection, queue, pack(b'{"runs":[[0,1,1]]}\n{}'), **fields))


def void(_value: object) -> None:
    """For lambdas that give nothing."""


def _runs(*runs: list[Any], lines: int = 2) -> Callable[[Redis, str], None]:
    return _payload(pack(orjson.dumps({"runs": runs}) + b"\n{}" * lines))


ENTRIES: dict[str, Callable[[Redis, str], None]] = {
    "a foreign function": _job(_id(), zlib.compress(orjson.dumps(["os.abort", None, [], {}]))),
    "a pickle": _job(_id(), zlib.compress(pickle.dumps(Canary()))),
    "a bare pickle": _job(_id(), pickle.dumps(Canary())),
    "giant data": _giant_data,
    "a zlib bomb": _job(_id(), zlib.compress(b"[" * 900_000, 9)),
    "deep JSON": _job(_id(), zlib.compress(b"[" * 100_000)),
    "an id that is none": _job("../../etc", job_data("../../etc")),
    "an id with a line break": _job("b_\n\x1b[2J-0", job_data("b_")),
    "an id that is no text": _job(b"\xff\xfe\x00-0", b"x"),
    "an id of Unicode's digits": _job(f"{new_batch_id()}-\u0663", b"x"),
    "an id with a huge number": _job(f"{new_batch_id()}-{'9' * 30}", b"x"),
    "a giant id": lambda connection, queue: put_job(connection, queue, b"b" * 50_000_000, None),
    "a job that is a list": _hash_of_another_type,
    "executions that are a string": _executions_of_another_type,
    "a batch that is a list": _batch_of_another_type,
    "a batch with a bad time": _info(in_progress_at=b"1e300"),
    "a batch with bad defaults": _info(defaults=b"[1]"),
    "a batch with deep defaults": _info(defaults=b"[" * 100_000),
    "a batch that is no text": _info(name=b"\xff\xfe"),
    "a batch with a bad count": _info(total=b"9" * 5000),
    "fences that are a string": _fences_of_another_type,
    "a fence that is no number": _fence_that_is_no_number,
    "a payload that is a list": _payload_of_another_type,
    "a giant payload": _giant_payload,
    "a pickled payload": _payload(pickle.dumps(Canary())),
    "a zstd bomb": _zstd_bomb,
    "a zstd bomb of no size": _unsized_zstd_bomb,
    "a million lines": _payload(pack(b'{"runs":[[0,1,1000000]]}' + b"\n" * 1_000_000)),
    "a header of deep JSON": _payload(pack(b"[" * 100_000 + b"\n{}")),
    "the same index twice": _runs([0, 1, 1], [0, 2, 1]),
    "overlapping runs": _runs([0, 1, 2], [1, 2, 1], lines=3),
    "a huge index": _runs([2**63, 1, 2]),
    "an index near the end": _runs([2**63 - 1, 1, 2]),
    "a negative index": _runs([-5, 1, 2]),
    "an index that is true": _runs([True, 1, 2]),
    "a count of nothing": _runs([0, 1, 0], [0, 1, 2]),
    "more lines than there are": _runs([0, 1, 2**31]),
}
"""By name: each puts one entry into a queue, which a worker is to refuse."""
