"""Batches that are held back (paused, or waiting for their start time), and priorities.

A batch that is held back is in progress like any other, but its jobs are in no queue: they pend, as they did before it
was committed. Lines that workers have begun are finished; the others of their shards come back and pend too.
"""

from __future__ import annotations

import logging
from typing import Any, cast

from jobs.batch import PRIORITIES
from jobs.errors import RefusedError
from jobs.redis.connect import refusing
from jobs.store.keys import STARTING, UPLOADING, BatchKeys
from jobs.store.steps import ENQUEUE, TAKE_OUT
from jobs.store.store import Store
from jobs.store.timed_lists import due

__all__ = ["pause", "prioritise", "resume_batch", "start_due"]

log = logging.getLogger("promptmill.jobs")

PAUSE = (
    TAKE_OUT
    + """
-- Hold a batch back; what it was before is returned.
-- KEYS: info, uploading, queues.  ARGV: batch id, now, pending prefix.
local status = redis.call('HGET', KEYS[1], 'status')
if status ~= 'in_progress' then return status end
if redis.call('ZSCORE', KEYS[2], ARGV[1]) then return 'retried' end
redis.call('HDEL', KEYS[1], '')  -- what removes goes first: after it, a server that is full takes the rest too
if redis.call('HSETNX', KEYS[1], 'paused_at', ARGV[2]) == 0 then return 'paused' end
take_out(KEYS[3], ARGV[1], function(queue, ids)
  for _, id in ipairs(ids) do redis.call('ZADD', ARGV[3] .. queue, id:sub(#ARGV[1] + 2), id) end
end)
return status
"""
)

RESUME = (
    ENQUEUE
    + """
-- Let a paused batch go on; what it was before is returned. One whose time has not come waits for it.
-- KEYS: info, queues, rq:queues.  ARGV: pending prefix.
local status = redis.call('HGET', KEYS[1], 'status')
if status ~= 'in_progress' or redis.call('HDEL', KEYS[1], 'paused_at') == 0 then return status end
if redis.call('HEXISTS', KEYS[1], 'starts_at') == 0 then enqueue(KEYS[2], KEYS[3], ARGV[1]) end
return 'paused'
"""
)

START = (
    ENQUEUE
    + """
-- Begin a batch whose time has come, by Redis' clock alone; what it was before is returned.
-- KEYS: info, starting, queues, rq:queues.  ARGV: batch id, now, pending prefix.
if redis.replicate_commands then redis.replicate_commands() end
local time = redis.call('TIME')
local status, at = unpack(redis.call('HMGET', KEYS[1], 'status', 'starts_at'))
if status == 'in_progress' and at and tonumber(at) > time[1] + time[2] / 1000000 then return 'early' end
redis.call('ZREM', KEYS[2], ARGV[1])
if status ~= 'in_progress' or not at then return status end
redis.call('HDEL', KEYS[1], 'starts_at')
redis.call('HSET', KEYS[1], 'in_progress_at', ARGV[2])
if redis.call('HEXISTS', KEYS[1], 'paused_at') == 0 then enqueue(KEYS[3], KEYS[4], ARGV[3]) end
return status
"""
)

PRIORITISE = (
    TAKE_OUT
    + """
-- Move a batch's jobs to the queues of another priority, waiting and pending ones; what it was before is returned.
-- Shards that workers hold are finished as they are; one that comes back goes to the new queue.
-- KEYS: info, uploading, queues, rq:queues.  ARGV: batch id, priority, pending prefix.
local status = redis.call('HGET', KEYS[1], 'status')
if status ~= 'in_progress' then return status end
if redis.call('ZSCORE', KEYS[2], ARGV[1]) then return 'retried' end
if redis.call('HGET', KEYS[1], 'priority') == ARGV[2] then return status end
redis.call('HDEL', KEYS[1], '')  -- as above
redis.call('HSET', KEYS[1], 'priority', ARGV[2])
local function moved(queue) return (queue:gsub('^(promptmill:)%a+', '%1' .. ARGV[2])) end
for _, queue in ipairs(redis.call('SMEMBERS', KEYS[3])) do
  local new = moved(queue)
  if new ~= queue then
    redis.call('SADD', KEYS[3], new)
    redis.call('SADD', KEYS[4], 'rq:queue:' .. new)
    local pending = redis.call('ZRANGE', ARGV[3] .. queue, 0, -1)
    for _, id in ipairs(pending) do
      redis.call('ZADD', ARGV[3] .. new, id:sub(#ARGV[1] + 2), id)
      redis.call('HSET', 'rq:job:' .. id, 'origin', new)
    end
    redis.call('DEL', ARGV[3] .. queue)
  end
end
take_out(KEYS[3], ARGV[1], function(queue, ids)
  local new = moved(queue)
  for _, id in ipairs(ids) do
    redis.call('RPUSH', 'rq:queue:' .. new, id)
    redis.call('HSET', 'rq:job:' .. id, 'origin', new)
  end
end)
return status
"""
)


def pause(store: Store, batch_id: str) -> bool:
    """Hold a batch back: its lines under way are finished, the others wait. False: it was paused already.

    Raises:
        BatchNotFoundError: there is no such batch.
        RefusedError: it is over, is still being submitted, or is about to be retried.
    """
    keys = BatchKeys(batch_id)
    arguments = [batch_id, repr(store.now()), keys.pending("")]
    before = _step(store, PAUSE, [keys.info, UPLOADING, keys.queues], batch_id, arguments)
    return _allowed(store, batch_id, before, "paused") == "in_progress"


def resume_batch(store: Store, batch_id: str) -> bool:
    """Let a paused batch go on. False: it was not paused.

    Raises:
        BatchNotFoundError: there is no such batch.
        RefusedError: it is over, or is still being submitted.
    """
    keys = BatchKeys(batch_id)
    before = _step(store, RESUME, [keys.info, keys.queues, "rq:queues"], batch_id, [keys.pending("")])
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
    before = _step(store, PRIORITISE, wanted, batch_id, [batch_id, priority, keys.pending("")])
    _allowed(store, batch_id, before, "moved")
    return batch.priority


def start_due(store: Store) -> list[str]:
    """Begin the batches whose time has come; their ids."""

    def start(batch_id: str) -> bool:
        keys = BatchKeys(batch_id)
        wanted = [keys.info, STARTING, keys.queues, "rq:queues"]
        arguments = [batch_id, repr(store.now()), keys.pending("")]
        return _step(store, START, wanted, batch_id, arguments) == "in_progress"

    return due(store, STARTING, start)


def _step(store: Store, script: str, keys: list[str], batch_id: str, arguments: list[Any]) -> str | None:
    with refusing(f"batch '{batch_id}'"):
        before = cast("bytes | None", store.connection.register_script(script)(keys=keys, args=arguments))
    return None if before is None else before.decode(errors="replace")


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
