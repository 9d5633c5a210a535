-- Take back a shard's failures and have its job pend.
-- KEYS: info, uploading, finished, retried, compacted, records, tries, refusals, pending, queues, the job's
-- executions, flights, reopened.
-- ARGV: batch id, now, shard number, job id, the retry, records put aside, or nothing where the shard runs, then index
-- and attempt of each failure.
-- Returns the failures taken back; -1: the retry is over; -2: the shard's records lie elsewhere than was thought, or
-- not all were put aside.
local retrying = require("jobs.store.lua.shared.retrying")

if not retrying(KEYS[1], KEYS[2], ARGV[1], ARGV[5]) then return -1 end
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
