-- End an attempt without a result: its later writes are stale. One that is stale already changes nothing.
-- KEYS: fences, flights, tries, records.
-- ARGV: shard number, fence, what becomes of its lines under way: 0 nothing, 1 suspicion, 2 they have been tried.
-- Returns 1: released; 0: stale.
local charge_attempts = require("jobs.store.lua.shared.charge_attempts")

if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
local begun = redis.call('HKEYS', KEYS[2])
-- What removes goes first: after it, a server that is full takes the rest of a script too.
redis.call('HDEL', KEYS[2], '')
redis.call('HINCRBY', KEYS[1], ARGV[1], 1)
if ARGV[3] == '2' then charge_attempts(KEYS[2], KEYS[3], KEYS[4], '') end
if ARGV[3] == '1' then
  for _, index in ipairs(begun) do
    redis.call('HDEL', KEYS[3], 'a' .. index)
    redis.call('HINCRBY', KEYS[3], 's' .. index, 1)
  end
end
redis.call('DEL', KEYS[2])
return 1
