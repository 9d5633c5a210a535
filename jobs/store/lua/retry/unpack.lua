-- Put records of a shard aside that are to be its own again, for reopen.lua.
-- KEYS: info, uploading, reopened.
-- ARGV: batch id, now, the retry, then index and record of each.
-- Returns 0: put aside; -1: the retry is over.
local retrying = require("jobs.store.lua.shared.retrying")

if not retrying(KEYS[1], KEYS[2], ARGV[1], ARGV[3]) then return -1 end
redis.call('ZADD', KEYS[2], ARGV[2], ARGV[1])
if redis.call('HGET', KEYS[3], '') ~= ARGV[3] then
  redis.call('DEL', KEYS[3])  -- an earlier retry's, which was given up
  redis.call('HSET', KEYS[3], '', ARGV[3])
end
for i = 4, #ARGV, 2 do redis.call('HSET', KEYS[3], ARGV[i], ARGV[i + 1]) end
return 0
