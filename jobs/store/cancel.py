"""Ending a batch before its time: cancelled by its owner, or expired.

It takes one step in Redis and nobody's cooperation: from then on no shard of it can be claimed and no record
written. Lines that have none by then get theirs when they are read, see :mod:`submit.results.read`.
"""

from __future__ import annotations

from typing import cast

from jobs.batch import Batch
from jobs.errors import RefusedError
from jobs.redis.connect import refusing
from jobs.store.keys import EXPIRING, STARTING, UPLOADING, BatchKeys
from jobs.store.steps import ENDED, TAKE_OUT
from jobs.store.store import Store
from jobs.store.timed_lists import due

__all__ = ["CLEAR", "cancel", "current", "expire_due"]

CLEAR = (
    TAKE_OUT
    + """
-- Part of scripts: remove a batch's jobs from its queues.
local function clear(queues, batch_id)
  take_out(queues, batch_id, function(_, ids)
    for _, id in ipairs(ids) do redis.call('DEL', 'rq:job:' .. id) end
  end)
end
"""
)

END = (
    CLEAR
    + ENDED
    + """
-- End a batch that is in progress; what it was before is returned.
-- KEYS: info, uploading, expiring, queues, starting.  ARGV: batch id, cancelled or expired, now, pending prefix.
if redis.replicate_commands then redis.replicate_commands() end
local status = redis.call('HGET', KEYS[1], 'status')
if status ~= 'in_progress' then
  redis.call('ZREM', KEYS[3], ARGV[1])
  return status
end
if ARGV[2] == 'expired' then
  -- Redis' clock alone counts, and it may have been retried since somebody looked.
  local time = redis.call('TIME')
  local at = redis.call('HGET', KEYS[1], 'expires_at')
  if not at or tonumber(at) > time[1] + time[2] / 1000000 then return 'early' end
end
local counted = redis.call('HMGET', KEYS[1], 'total', 'completed', 'failed')
local unrun = (counted[1] or 0) - (counted[2] or 0) - (counted[3] or 0)
-- What only removes goes first: after it, a server that is out of memory takes the rest of a script too.
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('ZREM', KEYS[5], ARGV[1])
redis.call('HDEL', KEYS[1], 'starts_at', 'paused_at')
redis.call('HSET', KEYS[1], 'unrun', string.format('%d', unrun))
ended(KEYS[1], ARGV[2], ARGV[3])
if ARGV[2] == 'cancelled' then redis.call('HSET', KEYS[1], 'cancelling_at', ARGV[3]) end
redis.call('HINCRBY', KEYS[1], 'failed', unrun)
-- Jobs pend while it is held back, or retried and not queued yet.
for _, queue in ipairs(redis.call('SMEMBERS', KEYS[4])) do
  while true do
    local popped = redis.call('ZPOPMIN', ARGV[4] .. queue, 1000)
    if #popped == 0 then break end
    for i = 1, #popped, 2 do
      if popped[i]:sub(1, #ARGV[1] + 1) == ARGV[1] .. '-' then redis.call('DEL', 'rq:job:' .. popped[i]) end
    end
  end
end
clear(KEYS[4], ARGV[1])
return status
"""
)


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


def expire_due(store: Store) -> list[str]:
    """End the batches whose time is up, by Redis' clock; their ids."""
    return due(store, EXPIRING, lambda batch_id: _expire(store, batch_id))


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
    """One step; the status before it."""
    keys = BatchKeys(batch_id)
    with refusing(f"batch '{batch_id}'"):
        before = cast(
            "bytes | None",
            store.connection.register_script(END)(
                keys=[keys.info, UPLOADING, EXPIRING, keys.queues, STARTING],
                args=[batch_id, status, repr(store.now()), keys.pending("")],
            ),
        )
    return None if before is None else before.decode(errors="replace")
