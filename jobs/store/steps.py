"""Lua: the steps that must be one in Redis. Check and write happen together, so no stale attempt can write."""

from __future__ import annotations

from jobs.store.keys import KEEPING, WEBHOOKS

__all__ = [
    "BEGIN",
    "CLAIM",
    "COMMIT",
    "ENDED",
    "ENQUEUE",
    "FAIL",
    "FINISH",
    "REJECT",
    "RELEASE",
    "STOW",
    "SWEEP",
    "TAKE",
    "TAKE_OUT",
    "WRITE",
]

ENQUEUE = """
-- Part of scripts: push a batch's pending jobs to their queues, in order.
local function enqueue(queues, known, prefix)
  for _, queue in ipairs(redis.call('SMEMBERS', queues)) do
    local pending = prefix .. queue
    local key = 'rq:queue:' .. queue
    redis.call('SADD', known, key)
    -- Where somebody put something else there, they go on pending: pausing and resuming the batch queues them later.
    local kind = redis.call('TYPE', key).ok
    while kind == 'list' or kind == 'none' do
      local popped = redis.call('ZPOPMIN', pending, 1000)
      if #popped == 0 then break end
      local ids = {}
      for i = 1, #popped, 2 do ids[#ids + 1] = popped[i] end
      redis.call('RPUSH', key, unpack(ids))
    end
  end
end
"""

TAKE_OUT = """
-- Part of scripts: take a batch's jobs out of its queues and `use(queue, ids)` them; the others keep their order.
local function take_out(queues, batch_id, use)
  local prefix = batch_id .. '-'
  for _, queue in ipairs(redis.call('SMEMBERS', queues)) do
    local key = 'rq:queue:' .. queue
    local left = redis.call('TYPE', key).ok == 'list' and redis.call('LLEN', key) or 0
    while left > 0 do
      local own, kept = {}, {}
      for _, id in ipairs(redis.call('LPOP', key, math.min(left, 1000))) do
        left = left - 1
        if id:sub(1, #prefix) == prefix then own[#own + 1] = id else kept[#kept + 1] = id end
      end
      if #kept > 0 then redis.call('RPUSH', key, unpack(kept)) end
      if #own > 0 then use(queue, own) end
    end
  end
end
"""

ENDED = f"""
-- Part of scripts: a batch has ended as `status`; note how long it is kept, and that its webhook is to be told.
-- What somebody else put where that is noted harms neither the batch nor others.
local function ended(info, status, now)
  redis.call('HSET', info, 'status', status, status .. '_at', now)
  local id, wanted = info:match('[^:]*$'), redis.call('HMGET', info, 'keep_s', 'webhook')
  local time = tonumber(redis.call('TIME')[1])
  local keep_s = tonumber(wanted[1] or '')
  if keep_s then redis.pcall('ZADD', '{KEEPING}', time + keep_s, id) end
  if wanted[2] and wanted[2] ~= '' then redis.pcall('ZADD', '{WEBHOOKS}', time, id) end
end
"""

COMMIT = (
    ENQUEUE
    + ENDED
    + """
-- Make an uploaded batch live: list it, push its jobs to their queues and start its clock, in one step. One that
-- begins later has its jobs held back until then.
-- A client that lost the reply sends it again: a batch that is live already stays as it is.
-- KEYS: info, uploading, queues, rq:queues, batches, expiring, starting.
-- ARGV: batch id, now, pending prefix, when it begins by this clock, seconds from then until it expires, or nothing for
-- either; then info fields and values.
if redis.replicate_commands then redis.replicate_commands() end
local status = redis.call('HGET', KEYS[1], 'status')
if not status or status == 'failed' then return 0 end
if status ~= 'validating' then return 1 end
if not redis.call('ZSCORE', KEYS[2], ARGV[1]) then return 0 end
-- A server that is out of memory refuses this line, and has changed nothing yet.
redis.call('ZADD', KEYS[5], ARGV[2], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
for i = 6, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('HSET', KEYS[1], 'status', 'in_progress', 'in_progress_at', ARGV[2])
if redis.call('HGET', KEYS[1], 'shards') == redis.call('HGET', KEYS[1], 'shards_done') then
  ended(KEYS[1], 'completed', ARGV[2])
  return 1
end
local time = redis.call('TIME')
local at_once = time[1] + time[2] / 1000000
local begins = math.max(tonumber(ARGV[4]) or 0, at_once)
if ARGV[5] ~= '' then
  local at = string.format('%.6f', begins + tonumber(ARGV[5]))
  redis.call('HSET', KEYS[1], 'expires_at', at)
  redis.call('ZADD', KEYS[6], at, ARGV[1])
end
if begins > at_once then
  local at = string.format('%.6f', begins)
  redis.call('HSET', KEYS[1], 'starts_at', at)
  redis.call('ZADD', KEYS[7], at, ARGV[1])
else
  enqueue(KEYS[3], KEYS[4], ARGV[3])
end
return 1
"""
)

SWEEP = """
-- Give up an upload that is silent still: from here on it cannot be committed, and may be removed in peace.
-- KEYS: info, uploading.  ARGV: batch id, the time before which a sign of life is too old.
local seen = redis.call('ZSCORE', KEYS[2], ARGV[1])
if not seen or tonumber(seen) > tonumber(ARGV[2]) then return 0 end
-- A live batch is here while it is retried: that is gone on with, see jobs/store/retry.py.
if redis.call('HGET', KEYS[1], 'status') == 'in_progress' then return 0 end
redis.call('HSET', KEYS[1], 'status', 'failed')
return 1
"""

REJECT = """
-- Store the error records of lines refused at submission, once however often it is sent.
-- KEYS: info, table, finished, compacted.
-- ARGV: shard number, table row, number of lines, their indices, then each piece behind the index of its last record.
if redis.call('EXISTS', KEYS[4]) == 1 then return 0 end
local lines = tonumber(ARGV[3])
for i = 4 + lines, #ARGV, 2 do redis.call('ZADD', KEYS[4], ARGV[i], ARGV[i + 1]) end
redis.call('ZADD', KEYS[2], ARGV[1], ARGV[2])
for i = 4, 3 + lines do redis.call('RPUSH', KEYS[3], ARGV[1] .. ':' .. ARGV[i]) end
redis.call('HINCRBY', KEYS[1], 'failed', lines)
redis.call('HINCRBY', KEYS[1], 'rejected', lines)
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

_CHARGE = """
-- Lines that were begun and not ended when their worker died have had an attempt. Noted as well is whether the line had
-- nothing beside it then: only such an attempt proves something.
local function charge(flights, tries, records, living)
  local begun = redis.call('HGETALL', flights)
  for i = 1, #begun, 2 do
    local index, life = begun[i], begun[i + 1]
    local alone = life:sub(-6) == ' alone'
    if alone then life = life:sub(1, -7) end
    if life ~= living then
      if redis.call('HEXISTS', records, index) == 0 then
        redis.call('HDEL', tries, 'a' .. index)
        if alone then redis.call('HSET', tries, 'a' .. index, 1) end
        redis.call('HINCRBY', tries, index, 1)
        redis.call('HINCRBY', tries, 'd' .. index, 1)
      end
      redis.call('HDEL', flights, index)
    end
  end
end
"""

CLAIM = (
    _CHARGE
    + """
-- Begin an attempt at a shard: a new fence shuts out every earlier attempt.
-- KEYS: info, fences, tries, compacted, records, flights.  ARGV: shard number, now, the claiming worker's life.
-- Returns {fence, indices that have a record, tries as a flat hash}; {0} if nothing is to do; {-1} if it is paused.
-- Who claims its own shard again, as after a sleep, has not died: its lines are still under way.
if redis.replicate_commands then redis.replicate_commands() end
local status = redis.call('HGET', KEYS[1], 'status')
if status ~= 'in_progress' or redis.call('EXISTS', KEYS[4]) == 1 then return {0} end
if redis.call('HEXISTS', KEYS[1], 'paused_at') == 1 then return {-1} end
redis.call('HSETNX', KEYS[1], 'started_at', ARGV[2])
-- A server that lost its last second, as in a power cut, has forgotten fences too: the time makes this one new.
local time = redis.call('TIME')
local fence = math.max((redis.call('HGET', KEYS[2], ARGV[1]) or 0) + 1, time[1] * 1000000 + time[2])
redis.call('HSET', KEYS[2], ARGV[1], string.format('%.0f', fence))
charge(KEYS[6], KEYS[3], KEYS[5], ARGV[3])
return {fence, redis.call('HKEYS', KEYS[5]), redis.call('HGETALL', KEYS[3])}
"""
)

BEGIN = """
-- Note that lines begin, before they do, or that they do not after all, unless the attempt is stale.
-- KEYS: fences, flights.
-- ARGV: shard number, fence, then per line: index, and the worker's life (with ' alone' where nothing is beside the
-- line), or nothing.
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
for i = 3, #ARGV, 2 do
  if ARGV[i + 1] == '' then
    redis.call('HDEL', KEYS[2], ARGV[i])
  else
    redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1])
  end
end
return 1
"""

FAIL = """
-- Note that an attempt at one line failed, by itself, for a reason that may pass.
-- KEYS: fences, flights, tries.  ARGV: shard number, fence, index, the failed attempts before this one: sent twice it
-- counts once.  Returns its failed attempts; 0: stale.
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[2], ARGV[3])
redis.call('HSET', KEYS[3], ARGV[3], ARGV[4] + 1, 'a' .. ARGV[3], 1)
return ARGV[4] + 1
"""

RELEASE = (
    _CHARGE
    + """
-- End an attempt without a result: its later writes are stale. One that is stale already changes nothing.
-- KEYS: fences, flights, tries, records.
-- ARGV: shard number, fence, what becomes of its lines under way: 0 nothing, 1 suspicion, 2 they have been tried.
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
local begun = redis.call('HKEYS', KEYS[2])
-- What removes goes first: after it, a server that is full takes the rest of a script too.
redis.call('HDEL', KEYS[2], '')
redis.call('HINCRBY', KEYS[1], ARGV[1], 1)
if ARGV[3] == '2' then charge(KEYS[2], KEYS[3], KEYS[4], '') end
if ARGV[3] == '1' then
  for _, index in ipairs(begun) do
    redis.call('HDEL', KEYS[3], 'a' .. index)
    redis.call('HINCRBY', KEYS[3], 's' .. index, 1)
  end
end
redis.call('DEL', KEYS[2])
return 1
"""
)

WRITE = """
-- Store finished lines of a shard, unless the attempt is stale. Counts change with the record, in the same step.
-- KEYS: info, fences, records, finished, flights, compacted.
-- ARGV: shard number, fence, then per line: index, 1 or 0 (completed or failed), prompt, completion, cached, record.
if redis.call('HGET', KEYS[1], 'status') ~= 'in_progress' then return 0 end
if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then return 0 end
if redis.call('EXISTS', KEYS[6]) == 1 then return 1 end
-- Where something else lies in the way this fails, before anything is stored: what is stored is counted.
redis.call('LLEN', KEYS[4])
redis.call('HLEN', KEYS[5])
for _, count in ipairs({'completed', 'failed', 'prompt_tokens', 'completion_tokens', 'cached_tokens'}) do
  redis.call('HINCRBY', KEYS[1], count, 0)
end
local completed, failed, prompt, completion, cached = 0, 0, 0, 0, 0
for i = 3, #ARGV, 6 do
  if redis.call('HSETNX', KEYS[3], ARGV[i], ARGV[i + 5]) == 1 then
    if ARGV[i + 1] == '1' then completed = completed + 1 else failed = failed + 1 end
    prompt = prompt + tonumber(ARGV[i + 2])
    completion = completion + tonumber(ARGV[i + 3])
    cached = cached + tonumber(ARGV[i + 4])
    redis.call('RPUSH', KEYS[4], ARGV[1] .. ':' .. ARGV[i])
  end
  redis.call('HDEL', KEYS[5], ARGV[i])
end
redis.call('HINCRBY', KEYS[1], 'completed', completed)
redis.call('HINCRBY', KEYS[1], 'failed', failed)
redis.call('HINCRBY', KEYS[1], 'prompt_tokens', prompt)
redis.call('HINCRBY', KEYS[1], 'completion_tokens', completion)
redis.call('HINCRBY', KEYS[1], 'cached_tokens', cached)
return 1
"""

STOW = """
-- Put a piece of a shard's records aside, for FINISH, unless the attempt is stale.
-- KEYS: info, fences, compacted, pieces.
-- ARGV: shard number, fence, pieces before this one, index of its last record, piece.
if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then return 0 end
if redis.call('EXISTS', KEYS[3]) == 1 then return 1 end
if redis.call('HGET', KEYS[1], 'status') ~= 'in_progress' then return 0 end
-- What removes goes first: a server that is full then takes the rest, and has more room once the shard is done.
if ARGV[3] == '0' then redis.call('DEL', KEYS[4]) else redis.call('ZREM', KEYS[4], '') end
redis.call('ZADD', KEYS[4], ARGV[4], ARGV[5])
return 2
"""

FINISH = (
    ENDED
    + """
-- Compact a shard whose lines all have records: the pieces put aside and this last one take their place. The last shard
-- completes its batch.
-- KEYS: info, fences, compacted, pieces, records, flights, tries, reopened.
-- ARGV: shard number, fence, pieces put aside, index of the last one's last record, last piece, lines, now.
-- Returns 1: done; 0: stale; -1: a record is missing; -2: not all pieces are there, as after a crash of the server.
if redis.replicate_commands then redis.replicate_commands() end
if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then return 0 end
if redis.call('EXISTS', KEYS[3]) == 1 then return 1 end
-- Only now: a finish that is sent again may have completed the batch already.
if redis.call('HGET', KEYS[1], 'status') ~= 'in_progress' then return 0 end
if ARGV[3] == '0' then redis.call('DEL', KEYS[4]) else redis.call('ZREM', KEYS[4], '') end
if redis.call('HLEN', KEYS[5]) ~= tonumber(ARGV[6]) then
  redis.call('DEL', KEYS[4])
  return -1
end
redis.call('ZADD', KEYS[4], ARGV[4], ARGV[5])
if redis.call('ZCARD', KEYS[4]) ~= ARGV[3] + 1 then
  redis.call('DEL', KEYS[4])
  return -2
end
-- This first: it fails where something else is counted there.
local done = redis.call('HINCRBY', KEYS[1], 'shards_done', 1)
redis.call('RENAME', KEYS[4], KEYS[3])
redis.call('DEL', KEYS[5], KEYS[6], KEYS[7], KEYS[8])
if done == tonumber(redis.call('HGET', KEYS[1], 'shards')) then
  redis.call('HSET', KEYS[1], 'finalizing_at', ARGV[7])
  ended(KEYS[1], 'completed', ARGV[7])
end
return 1
"""
)
