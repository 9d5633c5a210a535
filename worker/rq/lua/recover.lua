-- Give jobs whose workers died back to their queue, each once: those whose leases have run out, unless another lease on
-- them lives, and those dequeued but never begun for some time. All by the server's clock.
-- RQ's own clean-up does this in several steps, and calls functions that it finds named in the job's hash.
-- Where nobody looked for a while, as after an outage, a sleep of all machines or a step of the clock, every lease may
-- look abandoned although its holder lives: the holders get the time of a lease to renew them.
-- KEYS: started registry, queue list, intermediate list, hash of when jobs were first seen there, hash of the watch.
-- ARGV: the prefix of jobs' hashes, seconds for which a job may be dequeued and not begun, seconds of a lease, seconds
-- after which nobody looked, then the registry's entries of workers that are known to be dead.
-- Returns the jobs given back.
local clock = require("jobs.store.lua.shared.clock")
local put_back = require("worker.rq.lua.put_back")

local now = clock()
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
