"""Running a batch's failed lines once more, in the same batch, under their ids and indices.

BEGIN makes the batch live again and every earlier attempt stale; REOPEN takes one shard's failures back, so that each
line either has its record or waits (UNPACK puts its other records aside for it, some at a time); SEND queues all
reopened shards at once. Whoever retries gives a sign of life
with each step: :func:`resume` goes on for one that died, and a step sent twice changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Any, cast

import orjson

from jobs.batch import Batch, queue_name
from jobs.errors import PromptmillError, RefusedError
from jobs.lines.line import Defaults, check_line
from jobs.record_head import head_of
from jobs.redis.connect import refusing
from jobs.redis.rq_jobs import RqJobs
from jobs.shard import Group, decode_lines
from jobs.store.cancel import CLEAR
from jobs.store.keys import EXPIRING, KEEPING, UPLOADING, WEBHOOKS, BatchKeys
from jobs.store.shard_records import PIECE_BYTES, ShardRecords, loaded, stored
from jobs.store.steps import ENDED, ENQUEUE
from jobs.store.store import REJECTED_GROUP, UPLOAD_LEASE_S, Store

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

GOING_ON = """
-- Part of scripts: whether a batch's retry, named by the time of its beginning, is under way.
local function going_on(info, uploading, id, which)
  return redis.call('HGET', info, 'status') == 'in_progress' and (redis.call('HGET', info, 'retried_at') or '') == which
    and redis.call('ZSCORE', uploading, id)
end
"""

UNPACK = (
    GOING_ON
    + """
-- Put records of a shard aside that are to be its own again, for REOPEN; -1 where the retry is over.
-- KEYS: info, uploading, reopened.  ARGV: batch id, now, the retry, then index and record of each.
if not going_on(KEYS[1], KEYS[2], ARGV[1], ARGV[3]) then return -1 end
redis.call('ZADD', KEYS[2], ARGV[2], ARGV[1])
if redis.call('HGET', KEYS[3], '') ~= ARGV[3] then
  redis.call('DEL', KEYS[3])  -- an earlier retry's, which was given up
  redis.call('HSET', KEYS[3], '', ARGV[3])
end
for i = 4, #ARGV, 2 do redis.call('HSET', KEYS[3], ARGV[i], ARGV[i + 1]) end
return 0
"""
)

REOPEN = (
    GOING_ON
    + """
-- Take back a shard's failures and have its job pend; -1 where the retry is over, -2 where its records lie elsewhere
-- than was thought, or not all were put aside.
-- KEYS: info, uploading, finished, retried, compacted, records, tries, refusals, pending, queues, the job's
-- executions, flights, reopened.
-- ARGV: batch id, now, shard number, job id, the retry, records put aside, or nothing where the shard runs, then index
-- and attempt of each failure.
if not going_on(KEYS[1], KEYS[2], ARGV[1], ARGV[5]) then return -1 end
redis.call('ZADD', KEYS[2], ARGV[2], ARGV[1])
local packed = redis.call('EXISTS', KEYS[5]) == 1
if packed then
  local aside = redis.call('HGET', KEYS[13], '') == ARGV[5] and redis.call('HLEN', KEYS[13]) - 1 or 0
  if ARGV[6] == '' or aside ~= tonumber(ARGV[6]) then
    redis.call('DEL', KEYS[13])
    return -2
  end
  redis.call('DEL', KEYS[5])
  redis.call('HDEL', KEYS[13], '')
  if aside > 0 then redis.call('RENAME', KEYS[13], KEYS[6]) end
  redis.call('HINCRBY', KEYS[1], 'shards_done', -1)
end
redis.call('DEL', KEYS[13])
local length, taken = redis.call('LLEN', KEYS[3]), 0
for i = 7, #ARGV, 2 do
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
)

SEND = (
    ENQUEUE
    + ENDED
    + GOING_ON
    + """
-- Queue what was reopened, all at once: until then no worker can complete the batch.
-- KEYS: info, uploading, queues, rq:queues.  ARGV: batch id, now, pending prefix, the retry.
if not going_on(KEYS[1], KEYS[2], ARGV[1], ARGV[4]) then return 0 end
redis.call('ZREM', KEYS[2], ARGV[1])
enqueue(KEYS[3], KEYS[4], ARGV[3])
if redis.call('HGET', KEYS[1], 'shards') == redis.call('HGET', KEYS[1], 'shards_done') then
  ended(KEYS[1], 'completed', ARGV[2])
end
return 1
"""
)


OVER, MOVED = -1, -2
"""What REOPEN says where it does nothing."""


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
    which = (cast("bytes | None", store.connection.hget(keys.info, "retried_at")) or b"").decode()
    try:
        with refusing(f"batch '{batch_id}'"):
            _reopen_all(store, batch, which)
    except (ValueError, LookupError, TypeError) as error:
        raise RefusedError(f"what Redis keeps of batch '{batch_id}' is damaged: {error}") from None
    waiting = store.batch(batch_id)
    arguments = [batch_id, repr(store.now()), keys.pending(""), which]
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
    """A shard with lines to run: its queue, its lines, its failures' attempts by index, and how many other records it
    has. ``packed`` says that it is done."""

    number: int
    queue: str
    lines: int
    failures: dict[int, int]
    others: int
    packed: bool


def _reopen_all(store: Store, batch: Batch, which: str) -> None:
    """Reopen the shards that have a failed line, or are not done, for the retry ``which``."""
    keys, queues = BatchKeys(batch.id), dict[int, str]()
    for row in cast("list[bytes]", store.connection.zrange(keys.table, 0, -1)):
        number, group, _first, lines = map(int, orjson.loads(row))
        reply = MOVED if group != REJECTED_GROUP else 0
        while reply == MOVED:
            packed, failures, others = _outcomes(store, batch.id, number)
            if packed and not (failures and store.connection.exists(keys.payload(number))):
                break  # lines whose prompts are lost stay failed
            if group not in queues:
                queues[group] = queue_name(group_of(store, batch, number).key, batch.priority, batch.pool)
            reply = _reopen(store, batch.id, _Shard(number, queues[group], lines, failures, others, packed), which)
        if reply == OVER:
            return  # the next step finds out why


def _outcomes(store: Store, batch_id: str, number: int) -> tuple[bool, dict[int, int], int]:
    """Whether a shard is done, its failures' attempts by index, and how many other records it has."""
    packed, failures, others = False, dict[int, int](), 0
    for part in ShardRecords(store.connection, batch_id).parts(number):
        packed = not part.live
        for index, value in part.records:
            head = head_of(loaded(value))
            if head.error is None:
                others += 1
            else:
                failures[index] = head.attempt
    return packed, failures, others


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


def _reopen(store: Store, batch_id: str, shard: _Shard, which: str) -> int:
    """One shard of the retry ``which``: what REOPEN says."""
    keys, number = BatchKeys(batch_id), shard.number
    job_id = keys.job_id(number)
    if shard.packed:
        for records in _portions(store, batch_id, number, shard.failures):
            unpacked = [batch_id, repr(store.server_time()), which, *records]
            if _run(store, UNPACK, [keys.info, UPLOADING, keys.reopened(number)], unpacked) == OVER:
                return OVER
    wanted = [keys.info, UPLOADING, keys.finished, keys.retried, keys.compacted(number), keys.records(number)]
    wanted += [keys.tries(number), keys.refusals(number), keys.pending(shard.queue)]
    wanted += [keys.queues, f"rq:executions:{job_id}", keys.flights(number), keys.reopened(number)]
    aside = shard.others if shard.packed else ""
    arguments: list[Any] = [batch_id, repr(store.server_time()), number, job_id, which, aside]
    for index, attempt in shard.failures.items():
        arguments += [index, attempt]
    reply = _run(store, REOPEN, wanted, arguments)
    if reply >= 0:
        with store.connection.pipeline(transaction=False) as pipe:
            RqJobs(store.connection, shard.queue, batch_id).save(pipe, number, shard.lines)
            pipe.execute()
    return reply


def _portions(store: Store, batch_id: str, number: int, failures: Container[int]) -> Iterator[list[Any]]:
    """Index and record of all but the failures, as many at a time as are sent in one step."""
    records: list[Any] = []
    size = 0
    for index, raw in ShardRecords(store.connection, batch_id).all(number):
        if index in failures:
            continue
        value = stored(raw)
        if records and size + len(value) > PIECE_BYTES:
            yield records
            records, size = [], 0
        records += [index, value]
        size += len(value)
    if records:
        yield records
