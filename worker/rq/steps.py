"""Lua: the steps on RQ's books that must be one in Redis, and go by its clock."""

from __future__ import annotations

from jobs.store.keys import PREFIX

__all__ = ["ACKNOWLEDGE", "HAND_BACK", "LEASE", "MARK_FAILED", "RECOVER", "RENEW"]

LEASE = """
-- Begin a dequeued job: a lease by the server's clock, and what RQ's tools show of it. Sent twice it is one lease.
-- Returns 0 if the job was given to another since it was dequeued.
-- KEYS: started registry, intermediate list, job, execution, the job's executions.
-- ARGV: the registry's entry, execution id, job id, seconds, worker's name, the time as RQ writes it.
if redis.replicate_commands then redis.replicate_commands() end
if redis.call('ZSCORE', KEYS[1], ARGV[1]) then return 1 end
if redis.call('LREM', KEYS[2], 1, ARGV[3]) == 0 or redis.call('EXISTS', KEYS[3]) == 0 then return 0 end
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
redis.call('ZADD', KEYS[1], now + ARGV[4], ARGV[1])
redis.call('HSET', KEYS[4], 'id', ARGV[2], 'created_at', now, 'last_heartbeat', now, 'worker_name', ARGV[5])
redis.call('EXPIRE', KEYS[4], ARGV[4])
redis.call('ZADD', KEYS[5], now + ARGV[4], ARGV[2])
redis.call('EXPIRE', KEYS[5], ARGV[4])
redis.call('HSET', KEYS[3], 'status', 'started', 'worker_name', ARGV[5])
redis.call('HSET', KEYS[3], 'started_at', ARGV[6], 'last_heartbeat', ARGV[6])
return 1
"""

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

PUT_BACK = f"""
-- Part of scripts: a job goes back to its queue, or to that of its batch's priority if it has another one by now; where
-- its batch is held back, so is the job.
local function put_back(list, job, id, push)
  local info, queue = '{PREFIX}b:' .. (id:match('^(.*)%-%d+$') or ''), list:sub(10)
  local batch = redis.pcall('HMGET', info, 'paused_at', 'priority')
  local priority = (batch[2] or ''):match('^%l+$')
  if priority then queue = queue:gsub('^(promptmill:)%l+', '%1' .. priority) end
  redis.call('HSET', job, 'status', 'queued', 'origin', queue)
  local held = batch[1] and redis.pcall('ZADD', info .. ':p:' .. queue, id:match('%d+$'), id)
  if not held or type(held) == 'table' then redis.call(push, 'rq:queue:' .. queue, id) end
end
"""

RECOVER = (
    PUT_BACK
    + """
-- Give jobs whose workers died back to their queue, each once: those whose leases have run out, unless another lease on
-- them lives, and those dequeued but never begun for some time. All by the server's clock.
-- RQ's own clean-up does this in several steps, and calls functions that it finds named in the job's hash.
-- Where nobody looked for a while, as after an outage, a sleep of all machines or a step of the clock, every lease may
-- look abandoned although its holder lives: the holders get the time of a lease to renew them.
-- KEYS: started registry, queue list, intermediate list, hash of when jobs were first seen there, hash of the watch.
-- ARGV: the prefix of jobs' hashes, seconds for which a job may be dequeued and not begun, seconds of a lease, seconds
-- after which nobody looked, then the registry's entries of workers that are known to be dead.
-- Returns the jobs given back.
if redis.replicate_commands then redis.replicate_commands() end
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local held, back = {}, {}
local function give_back(id)
  if held[id] or redis.call('TYPE', ARGV[1] .. id).ok ~= 'hash' then return end
  held[id] = true
  put_back(KEYS[2], ARGV[1] .. id, id, 'LPUSH')
  back[#back + 1] = id
end
local watch = redis.call('HMGET', KEYS[5], 'seen', 'from')
local seen_at, from = tonumber(watch[1] or 0) or 0, tonumber(watch[2] or 0) or 0
if now - seen_at > tonumber(ARGV[4]) or seen_at > now then from = now + ARGV[3] end
redis.call('DEL', KEYS[5])
redis.call('HSET', KEYS[5], 'seen', now, 'from', from)
local dead = {}
for i = 5, #ARGV do
  if redis.call('ZREM', KEYS[1], ARGV[i]) == 1 then dead[#dead + 1] = ARGV[i] end
end
for _, entry in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. now, '+inf')) do
  held[entry:match('^[^:]*')] = true
end
for _, entry in ipairs(dead) do give_back(entry:match('^[^:]*')) end
local over = now >= from and redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now) or {}
for _, entry in ipairs(over) do
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
  elseif now >= from and now - (seen[id] or now) > tonumber(ARGV[2]) then
    redis.call('LREM', KEYS[3], 1, id)
    give_back(id)
  else
    redis.call('HSET', KEYS[4], id, seen[id] or now)
  end
end
return back
"""
)

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

HAND_BACK = (
    PUT_BACK
    + """
-- Give up a lease and put its job back; a lease that was taken back already changes nothing.
-- KEYS: started registry, queue list, job, execution, the job's executions.
-- ARGV: the registry's entry, job id, LPUSH or RPUSH.
if redis.call('ZREM', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('DEL', KEYS[4], KEYS[5])
if redis.call('EXISTS', KEYS[3]) == 0 then return 0 end
put_back(KEYS[2], KEYS[3], ARGV[2], ARGV[3])
return 1
"""
)
