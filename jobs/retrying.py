"""Running a batch's failed lines once more, in the same batch, under their ids and indices.

BEGIN makes the batch live again and every earlier attempt stale; REOPEN takes one shard's failures back, so that each
line either has its record or waits; SEND queues all reopened shards at once. Whoever retries gives a sign of life
with each step: :func:`resume` goes on for one that died, and a step sent twice changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import orjson

from jobs.batch import Batch, queue_name
from jobs.connect import refusing
from jobs.ending import CLEAR
from jobs.errors import PromptmillError, RefusedError
from jobs.keys import EXPIRING, KEEPING, UPLOADING, WEBHOOKS, BatchKeys
from jobs.line import Defaults, check_line
from jobs.rqjobs import RqJobs
from jobs.scripts import ENDED, ENQUEUE
from jobs.shard import MAX_SHARD_BYTES, Group, decode_lines, unpack
from jobs.store import REJECTED_GROUP, UPLOAD_LEASE_S, Store

__all__ = ["group_of", "resume", "retry"]

log = logging.getLogger("promptmill.jobs")

BEGIN = (
    CLEAR
    + """
-- Make a batch that is done live again, with nothing to do yet; 0 where it runs, or was never live.
-- KEYS: info, uploading, expiring, queues, fences, keeping, webhooks.  ARGV: batch id, now.
local status = redis.call('HGET', KEYS[1], 'status')
if status == 'in_progress' and redis.call('ZSCORE', KEYS[2], ARGV[1]) then
  redis.call('ZADD', KEYS[2], ARGV[2], ARGV[1])
  return 1
end
if status ~= 'completed' and status ~= 'cancelled' and status ~= 'expired' then return 0 end
redis.call('ZADD', KEYS[2], ARGV[2], ARGV[1])
for _, listed in ipairs({KEYS[3], KEYS[6], KEYS[7]}) do redis.call('ZREM', listed, ARGV[1]) end
local counted = redis.call('HMGET', KEYS[1], 'completed', 'completion_tokens', 'unrun')
-- Lines that never got a record wait from here on; the others as their shards are reopened.
redis.call('HINCRBY', KEYS[1], 'failed', 0 - (counted[3] or 0))  -- not -0, which is no integer
redis.call('HDEL', KEYS[1], 'unrun', 'completed_at', 'cancelled_at', 'cancelling_at', 'expired_at', 'expires_at',
  'finalizing_at', 'started_at', 'starts_at', 'paused_at')
redis.call('HSET', KEYS[1], 'status', 'in_progress', 'retried_at', ARGV[2], 'carried', counted[1] or 0,
  'carried_tokens', counted[2] or 0)
for _, shard in ipairs(redis.call('HKEYS', KEYS[5])) do redis.call('HINCRBY', KEYS[5], shard, 1) end
clear(KEYS[4], ARGV[1])
return 1
"""
)

REOPEN = """
-- Take back a shard's failures and have its job pend; -1 where the retry is over.
-- KEYS: info, uploading, finished, retried, compacted, records, tries, refusals, pending, queues, the job's
-- executions, flights.
-- ARGV: batch id, now, shard number, job id, failures, then index and attempt of each, then index and record of others.
if redis.call('HGET', KEYS[1], 'status') ~= 'in_progress' or not redis.call('ZSCORE', KEYS[2], ARGV[1]) then
  return -1
end
redis.call('ZADD', KEYS[2], ARGV[2], ARGV[1])
local others = 6 + 2 * tonumber(ARGV[5])
local packed = redis.call('DEL', KEYS[5]) == 1
if packed then
  for i = others, #ARGV, 2 do redis.call('HSET', KEYS[6], ARGV[i], ARGV[i + 1]) end
  redis.call('HINCRBY', KEYS[1], 'shards_done', -1)
end
local length, taken = redis.call('LLEN', KEYS[3]), 0
for i = 6, others - 1, 2 do
  if packed or redis.call('HDEL', KEYS[6], ARGV[i]) == 1 then
    taken = taken + 1
    redis.call('HSET', KEYS[4], ARGV[3] .. ':' .. ARGV[i], length)
    redis.call('HSET', KEYS[7], ARGV[i], ARGV[i + 1], 'b' .. ARGV[i], ARGV[i + 1])
    redis.call('HDEL', KEYS[7], 'd' .. ARGV[i], 's' .. ARGV[i], 'a' .. ARGV[i])
  end
end
redis.call('HINCRBY', KEYS[1], 'failed', 0 - taken)
redis.call('DEL', KEYS[8], KEYS[11], KEYS[12])
-- A worker that still holds the old lease must not acknowledge the new job away.
for _, queue in ipairs(redis.call('SMEMBERS', KEYS[10])) do
  local registry = 'rq:wip:' .. queue
  for _, entry in ipairs(redis.call('ZRANGE', registry, 0, -1)) do
    if entry:sub(1, #ARGV[4] + 1) == ARGV[4] .. ':' then redis.call('ZREM', registry, entry) end
  end
end
redis.call('ZADD', KEYS[9], ARGV[3], ARGV[4])
return taken
"""

SEND = (
    ENQUEUE
    + ENDED
    + """
-- Queue what was reopened, all at once: until then no worker can complete the batch.
-- KEYS: info, uploading, queues, rq:queues.  ARGV: batch id, now, pending prefix.
if redis.call('HGET', KEYS[1], 'status') ~= 'in_progress' or redis.call('ZREM', KEYS[2], ARGV[1]) == 0 then
  return 0
end
enqueue(KEYS[3], KEYS[4], ARGV[3])
if redis.call('HGET', KEYS[1], 'shards') == redis.call('HGET', KEYS[1], 'shards_done') then
  ended(KEYS[1], 'completed', ARGV[2])
end
return 1
"""
)


def retry(store: Store, batch_id: str) -> int:
    """Have a batch's failed lines run again; how many wait now. Lines refused at submission are left alone.

    Raises:
        BatchNotFoundError: there is no such batch.
        RefusedError: it is not done, or was cancelled meanwhile; or what Redis keeps of it is damaged.
    """
    batch = store.batch(batch_id)
    if batch.done and batch.failed == batch.rejected:
        return 0
    keys = BatchKeys(batch_id)
    wanted = [keys.info, UPLOADING, EXPIRING, keys.queues, keys.fences, KEEPING, WEBHOOKS]
    if not _run(store, BEGIN, wanted, [batch_id, repr(store.server_time())]):
        raise RefusedError(f"batch {batch_id} is {batch.status}: retry it when it is done")
    try:
        with refusing(f"batch '{batch_id}'"):
            for shard in _open_shards(store, batch):
                if not _reopen(store, batch_id, shard):
                    break  # the next step finds out why
    except (ValueError, LookupError, TypeError) as error:
        raise RefusedError(f"what Redis keeps of batch '{batch_id}' is damaged: {error}") from None
    waiting = store.batch(batch_id)
    arguments = [batch_id, repr(store.now()), keys.pending("")]
    if not _run(store, SEND, [keys.info, UPLOADING, keys.queues, "rq:queues"], arguments):
        latest = store.batch(batch_id)
        if latest.ended:
            raise RefusedError(f"batch {batch_id} {latest.fate} while it was retried; retry it again")
    return waiting.total - waiting.finished


def resume(store: Store) -> list[str]:
    """Go on with retries whose client has been silent for the time of an upload's lease; their batches' ids.

    One that cannot be read ends nobody who looks after all of them: it is looked at again after that time. What is no
    batch at all is taken off the list.
    """
    silent, resumed = store.server_time() - UPLOAD_LEASE_S, []
    for item in cast("list[bytes]", store.connection.zrangebyscore(UPLOADING, 0, silent)):
        try:
            batch = store.batch(item.decode())
        except (RefusedError, ValueError) as error:
            log.warning("%.80r is no upload or retry: %s", item, error, extra={"action": "refuse_retry"})
            store.connection.zrem(UPLOADING, item)
            continue
        if batch.status != "in_progress":
            continue
        try:
            with refusing(f"batch '{batch.id}'"):
                retry(store, batch.id)
            resumed.append(batch.id)
        except PromptmillError as error:
            message = "the retry of %s cannot go on: %s; cancel it, and retry it once that is mended"
            log.warning(message, batch.id, error, extra={"action": "retry_stuck"})
    return resumed


def _run(store: Store, script: str, keys: list[str], arguments: list[Any]) -> int:
    return cast("int", store.connection.register_script(script)(keys=keys, args=arguments))


@dataclass(frozen=True, slots=True)
class _Shard:
    """A shard with lines to run: its queue, its lines, its failures' attempts and its other records, by index."""

    number: int
    queue: str
    lines: int
    failures: dict[int, int]
    others: dict[int, bytes]


def _open_shards(store: Store, batch: Batch) -> Iterator[_Shard]:
    """The shards that have a failed line, or are not done."""
    keys, queues = BatchKeys(batch.id), dict[int, str]()
    for row in cast("list[bytes]", store.connection.zrange(keys.table, 0, -1)):
        number, group, _first, lines = map(int, orjson.loads(row))
        if group == REJECTED_GROUP:
            continue
        packed = _packed(store, keys, number)
        if packed is not None:
            raws = unpack(packed).split(b"\n")
        else:
            raws = list(cast("dict[bytes, bytes]", store.connection.hgetall(keys.records(number))).values())
        records = [(orjson.loads(raw), raw) for raw in raws]
        failures = {int(record["index"]): int(record.get("attempt", 0)) for record, _ in records if "error" in record}
        others = {int(record["index"]): raw for record, raw in records if "error" not in record}
        if packed is not None and not (failures and store.connection.exists(keys.payload(number))):
            continue  # lines whose prompts are lost stay failed
        if group not in queues:
            queues[group] = queue_name(group_of(store, batch, number).key, batch.priority, batch.pool)
        yield _Shard(number, queues[group], lines, failures, others)


def _packed(store: Store, keys: BatchKeys, number: int) -> bytes | None:
    """A shard's compressed records; None where it is not done."""
    size = store.connection.strlen(keys.compacted(number))
    if size > MAX_SHARD_BYTES:
        raise RefusedError(f"the records of shard {keys.job_id(number)} have {size} bytes: more than any has")
    return cast("bytes | None", store.connection.get(keys.compacted(number)))


def group_of(store: Store, batch: Batch, number: int) -> Group:
    """What all lines of a shard share, read from its first one.

    Raises:
        RefusedError, IndexError: its prompts are not in Redis, or are none of ours.
    """
    payload = store.payload(batch.id, number)
    if payload is None:
        raise RefusedError(f"the prompts of batch {batch.id} are no longer in Redis: submit them again")
    line = decode_lines(payload)[0]  # IndexError: it is none of ours
    defaults = Defaults(batch.defaults)
    job = check_line(line.raw).job(index=line.index, line=line.line, batch_id=batch.id, defaults=defaults)
    return Group(job.model, job.adapter_path)


def _reopen(store: Store, batch_id: str, shard: _Shard) -> bool:
    keys, number = BatchKeys(batch_id), shard.number
    job_id = keys.job_id(number)
    wanted = [keys.info, UPLOADING, keys.finished, keys.retried, keys.compacted(number), keys.records(number)]
    wanted += [keys.tries(number), keys.refusals(number), keys.pending(shard.queue)]
    wanted += [keys.queues, f"rq:executions:{job_id}", keys.flights(number)]
    arguments: list[Any] = [batch_id, repr(store.server_time()), number, job_id, len(shard.failures)]
    for index, attempt in shard.failures.items():
        arguments += [index, attempt]
    for index, raw in shard.others.items():
        arguments += [index, raw]
    if _run(store, REOPEN, wanted, arguments) < 0:
        return False
    with store.connection.pipeline(transaction=False) as pipe:
        RqJobs(store.connection, shard.queue, batch_id).save(pipe, number, shard.lines)
        pipe.execute()
    return True
