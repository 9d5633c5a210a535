"""Lua: the steps that must be one in Redis. Check and write happen together, so no stale attempt can write."""

from __future__ import annotations

__all__ = ["CLAIM", "COMMIT", "FINISH", "REJECT", "RELEASE", "SWEEP", "TAKE", "WRITE"]

COMMIT = """
-- Make an uploaded batch live: list it, push its jobs to their queues and start its clock, in one step.
-- A client that lost the reply sends it again: a batch that is live already stays as it is.
-- KEYS: info, uploading, queues, rq:queues, batches.
-- ARGV: batch id, now, pending prefix, then info fields and values.
local status = redis.call('HGET', KEYS[1], 'status')
if not status or status == 'failed' then return 0 end
if status ~= 'validating' then return 1 end
if not redis.call('ZSCORE', KEYS[2], ARGV[1]) then return 0 end
-- A server that is out of memory refuses this line, and has changed nothing yet.
redis.call('ZADD', KEYS[5], ARGV[2], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
for i = 4, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
status = 'in_progress'
if redis.call('HGET', KEYS[1], 'shards') == redis.call('HGET', KEYS[1], 'shards_done') then
  status = 'completed'
  redis.call('HSET', KEYS[1], 'completed_at', ARGV[2])
end
redis.call('HSET', KEYS[1], 'status', status, 'in_progress_at', ARGV[2])
for _, queue in ipairs(redis.call('SMEMBERS', KEYS[3])) do
  local pending = ARGV[3] .. queue
  local key = 'rq:queue:' .. queue
  redis.call('SADD', KEYS[4], key)
  while true do
    local popped = redis.call('ZPOPMIN', pending, 1000)
    if #popped == 0 then break end
    local ids = {}
    for i = 1, #popped, 2 do ids[#ids + 1] = popped[i] end
    redis.call('RPUSH', key, unpack(ids))
  end
end
return 1
"""

SWEEP = """
-- Give up an upload that is silent still: from here on it cannot be committed, and may be removed in peace.
-- KEYS: info, uploading.  ARGV: batch id, the time before which a sign of life is too old.
local seen = redis.call('ZSCORE', KEYS[2], ARGV[1])
if not seen or tonumber(seen) > tonumber(ARGV[2]) then return 0 end
redis.call('HSET', KEYS[1], 'status', 'failed')
return 1
"""

REJECT = """
-- Store the error records of lines refused at submission, once however often it is sent.
-- KEYS: info, table, finished, compacted.  ARGV: shard number, table row, packed records, then the lines' indices.
if not redis.call('SET', KEYS[4], ARGV[3], 'NX') then return 0 end
redis.call('ZADD', KEYS[2], ARGV[1], ARGV[2])
for i = 4, #ARGV do redis.call('RPUSH', KEYS[3], ARGV[1] .. ':' .. ARGV[i]) end
redis.call('HINCRBY', KEYS[1], 'failed', #ARGV - 3)
redis.call('HINCRBY', KEYS[1], 'rejected', #ARGV - 3)
redis.call('HINCRBY', KEYS[1], 'shards_done', 1)
return 1
"""

TAKE = """
-- The first job of the first non-empty queue, moved to its intermediate list as RQ's own safe dequeue does.
-- A queue one of whose keys is of a foreign type is passed over: it must not stop the others.
-- An entry that can be no job's id is removed here: it may be too long to be loaded.
-- KEYS: queue lists in order of preference.  ARGV: most bytes of an id.
-- Returns {position, job id, 1 if it was removed} or nothing.
local function is(key, kind)
  local found = redis.call('TYPE', key).ok
  return found == 'none' or found == kind
end
for position, key in ipairs(KEYS) do
  local moved = key .. ':intermediate'
  if is(key, 'list') and is(moved, 'list') and is('rq:wip:' .. key:sub(10), 'zset') then
    local id = redis.call('LMOVE', key, moved, 'LEFT', 'RIGHT')
    if id and (#id > tonumber(ARGV[1]) or id:find('[^%w_-]')) then
      redis.call('RPOP', moved)
      return {position, id:sub(1, 40), 1}
    end
    if id then return {position, id, 0} end
  end
end
return false
"""

CLAIM = """
-- Begin an attempt at a shard: a new fence shuts out every earlier attempt.
-- KEYS: info, fences, attempts, compacted, records.  ARGV: shard number, now.
-- Returns {fence, attempt, index, index, ...} with the lines that already have a record; {0} if nothing is to do.
local status = redis.call('HGET', KEYS[1], 'status')
if status ~= 'in_progress' or redis.call('EXISTS', KEYS[4]) == 1 then return {0} end
redis.call('HSETNX', KEYS[1], 'started_at', ARGV[2])
local fence = redis.call('HINCRBY', KEYS[2], ARGV[1], 1)
local attempt = redis.call('HINCRBY', KEYS[3], ARGV[1], 1)
local reply = {fence, attempt}
for _, index in ipairs(redis.call('HKEYS', KEYS[5])) do reply[#reply + 1] = tonumber(index) end
return reply
"""

RELEASE = """
-- End an attempt without a result: its later writes are stale. One that is stale already changes nothing.
-- KEYS: fences, attempts.  ARGV: shard number, fence, 1 if it shall not count as an attempt.
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HINCRBY', KEYS[1], ARGV[1], 1)
if ARGV[3] == '1' then redis.call('HINCRBY', KEYS[2], ARGV[1], -1) end
return 1
"""

WRITE = """
-- Store finished lines of a shard, unless the attempt is stale. Counts change with the record, in the same step.
-- KEYS: info, fences, records, finished.
-- ARGV: shard number, fence, then per line: index, 1 or 0 (completed or failed), prompt, completion, cached, record.
if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then return 0 end
local completed, failed, prompt, completion, cached = 0, 0, 0, 0, 0
for i = 3, #ARGV, 6 do
  if redis.call('HSETNX', KEYS[3], ARGV[i], ARGV[i + 5]) == 1 then
    if ARGV[i + 1] == '1' then completed = completed + 1 else failed = failed + 1 end
    prompt = prompt + tonumber(ARGV[i + 2])
    completion = completion + tonumber(ARGV[i + 3])
    cached = cached + tonumber(ARGV[i + 4])
    redis.call('RPUSH', KEYS[4], ARGV[1] .. ':' .. ARGV[i])
  end
end
redis.call('HINCRBY', KEYS[1], 'completed', completed)
redis.call('HINCRBY', KEYS[1], 'failed', failed)
redis.call('HINCRBY', KEYS[1], 'prompt_tokens', prompt)
redis.call('HINCRBY', KEYS[1], 'completion_tokens', completion)
redis.call('HINCRBY', KEYS[1], 'cached_tokens', cached)
return 1
"""

FINISH = """
-- Compact a shard whose lines all have records; the last shard completes its batch.
-- KEYS: info, fences, records, compacted.  ARGV: shard number, fence, lines, now, compacted records.
if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then return 0 end
if redis.call('EXISTS', KEYS[4]) == 1 then return 1 end
if redis.call('HLEN', KEYS[3]) ~= tonumber(ARGV[3]) then return -1 end
redis.call('SET', KEYS[4], ARGV[5])
redis.call('DEL', KEYS[3])
if redis.call('HINCRBY', KEYS[1], 'shards_done', 1) == tonumber(redis.call('HGET', KEYS[1], 'shards')) then
  redis.call('HSET', KEYS[1], 'status', 'completed', 'finalizing_at', ARGV[4], 'completed_at', ARGV[4])
end
return 1
"""
