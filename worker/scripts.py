"""Lua: the steps on RQ's books that must be one in Redis, and go by its clock."""

from __future__ import annotations

__all__ = ["ACKNOWLEDGE", "HAND_BACK", "MARK_FAILED", "RECOVER", "RENEW", "UNDO"]

RENEW = """
-- Renew leases by the server's clock, those that are still there. What is removed first frees memory, so that a full
-- server, which refuses to begin with anything that adds, lets the rest of the script through.
-- KEYS: started registry, then per lease: execution, the job's executions.
-- ARGV: seconds, then per lease: the registry's entry, execution id.
if redis.replicate_commands then redis.replicate_commands() end
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
for i = 2, #ARGV, 2 do
  if redis.call('ZREM', KEYS[1], ARGV[i]) == 1 then
    redis.call('ZADD', KEYS[1], now + ARGV[1], ARGV[i])
    redis.call('HSET', KEYS[i], 'last_heartbeat', now)
    redis.call('EXPIRE', KEYS[i], ARGV[1])
    redis.call('ZADD', KEYS[i + 1], now + ARGV[1], ARGV[i + 1])
    redis.call('EXPIRE', KEYS[i + 1], ARGV[1])
  end
end
"""

RECOVER = """
-- Give jobs whose workers died back to their queue, each once: those whose leases have run out, unless another lease on
-- them lives, and those dequeued but never begun for some time. All by the server's clock.
-- RQ's own clean-up does this in several steps, and calls functions that it finds named in the job's hash.
-- KEYS: started registry, queue list, intermediate list, hash of when jobs were first seen there.
-- ARGV: the prefix of jobs' hashes, seconds for which a job may be dequeued and not begun, then the registry's entries
-- of workers that are known to be dead.  Returns the jobs given back.
if redis.replicate_commands then redis.replicate_commands() end
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local held, back = {}, {}
local function give_back(id)
  if held[id] or redis.call('TYPE', ARGV[1] .. id).ok ~= 'hash' then return end
  held[id] = true
  redis.call('HSET', ARGV[1] .. id, 'status', 'queued')
  redis.call('LPUSH', KEYS[2], id)
  back[#back + 1] = id
end
local dead = {}
for i = 3, #ARGV do
  if redis.call('ZREM', KEYS[1], ARGV[i]) == 1 then dead[#dead + 1] = ARGV[i] end
end
for _, entry in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. now, '+inf')) do
  held[entry:match('^[^:]*')] = true
end
for _, entry in ipairs(dead) do give_back(entry:match('^[^:]*')) end
for _, entry in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now)) do
  redis.call('ZREM', KEYS[1], entry)
  give_back(entry:match('^[^:]*'))
end
local seen = {}
local listed = redis.call('HGETALL', KEYS[4])
for i = 1, #listed, 2 do seen[listed[i]] = tonumber(listed[i + 1]) end
redis.call('DEL', KEYS[4])
for _, id in ipairs(redis.call('LRANGE', KEYS[3], 0, 999)) do
  if held[id] then
    redis.call('LREM', KEYS[3], 1, id)
  elseif now - (seen[id] or now) > tonumber(ARGV[2]) then
    redis.call('LREM', KEYS[3], 1, id)
    give_back(id)
  else
    redis.call('HSET', KEYS[4], id, seen[id] or now)
  end
end
return back
"""

ACKNOWLEDGE = """
-- End a lease and remove its job; a job that is another's by now (taken back, or retried) stays.
-- KEYS: started registry, job, execution, the job's executions.  ARGV: the registry's entry.
redis.call('DEL', KEYS[3])
if redis.call('ZREM', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('DEL', KEYS[2], KEYS[4])
return 1
"""

MARK_FAILED = """
-- Let RQ's tools show a refused job as failed, if there is one.
-- KEYS: job.
if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('HSET', KEYS[1], 'status', 'failed') end
"""

HAND_BACK = """
-- Give up a lease and put its job back into its queue; a lease that was taken back already changes nothing.
-- KEYS: started registry, queue list, job, execution, the job's executions.
-- ARGV: the registry's entry, job id, LPUSH or RPUSH.
if redis.call('ZREM', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('DEL', KEYS[4], KEYS[5])
if redis.call('EXISTS', KEYS[3]) == 0 then return 0 end
redis.call('HSET', KEYS[3], 'status', 'queued')
redis.call(ARGV[3], KEYS[2], ARGV[2])
return 1
"""

UNDO = """
-- Undo a lease on a job that was no longer this worker's to begin: another has it, or has finished it.
-- KEYS: started registry, job, execution, the job's executions.  ARGV: the registry's entry, execution id.
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('DEL', KEYS[3])
redis.call('ZREM', KEYS[4], ARGV[2])
if redis.call('HEXISTS', KEYS[2], 'data') == 0 then redis.call('DEL', KEYS[2]) end
"""
