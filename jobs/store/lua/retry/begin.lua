-- Make a batch that is done live again, with nothing to do yet.
-- KEYS: info, uploading, expiring, queues, fences, keeping, webhooks.
-- ARGV: batch id, now.
-- Returns 1: live, or its retry was under way; 0: it runs, or was never live.
local remove_jobs = require("jobs.store.lua.shared.remove_jobs")

local status = redis.call('HGET', KEYS[1], 'status')
if status == 'in_progress' and redis.call('ZSCORE', KEYS[2], ARGV[1]) then
  redis.call('ZADD', KEYS[2], ARGV[2], ARGV[1])
  return 1
end
if status ~= 'completed' and status ~= 'cancelled' and status ~= 'expired' then return 0 end
redis.call('ZADD', KEYS[2], ARGV[2], ARGV[1])
for _, listed in ipairs({KEYS[3], KEYS[6], KEYS[7]}) do redis.call('ZREM', listed, ARGV[1]) end
local counted = redis.call('HMGET', KEYS[1], 'completed', 'completion_tokens', 'unrun')
-- Lines that never got a record wait from here on; the others as their shards are reopened.
redis.call('HINCRBY', KEYS[1], 'failed', 0 - (counted[3] or 0))  -- not -0, which is no integer
redis.call('HDEL', KEYS[1], 'unrun', 'completed_at', 'cancelled_at', 'cancelling_at', 'expired_at', 'expires_at',
  'finalizing_at', 'started_at', 'starts_at', 'paused_at')
redis.call('HSET', KEYS[1], 'status', 'in_progress', 'retried_at', ARGV[2], 'carried', counted[1] or 0,
  'carried_tokens', counted[2] or 0)
for _, shard in ipairs(redis.call('HKEYS', KEYS[5])) do redis.call('HINCRBY', KEYS[5], shard, 1) end
remove_jobs(KEYS[4], ARGV[1])
return 1
