-- End a batch that is in progress.
-- KEYS: info, uploading, expiring, queues, starting.
-- ARGV: batch id, cancelled or expired, now, pending prefix.
-- Returns its status before; 'early' where its time to expire has not come.
local clock = require("jobs.store.lua.shared.clock")
local end_batch = require("jobs.store.lua.shared.end_batch")
local remove_jobs = require("jobs.store.lua.shared.remove_jobs")

local status = redis.call('HGET', KEYS[1], 'status')
if status ~= 'in_progress' then
  redis.call('ZREM', KEYS[3], ARGV[1])
  return status
end
if ARGV[2] == 'expired' then
  -- Redis' clock alone counts, and it may have been retried since somebody looked.
  local at = redis.call('HGET', KEYS[1], 'expires_at')
  if not at or tonumber(at) > clock() then return 'early' end
end
local counted = redis.call('HMGET', KEYS[1], 'total', 'completed', 'failed')
local unrun = (counted[1] or 0) - (counted[2] or 0) - (counted[3] or 0)
-- What only removes goes first: after it, a server that is out of memory takes the rest of a script too.
for _, listed in ipairs({KEYS[2], KEYS[3], KEYS[5]}) do redis.call('ZREM', listed, ARGV[1]) end
redis.call('HDEL', KEYS[1], 'starts_at', 'paused_at')
redis.call('HSET', KEYS[1], 'unrun', string.format('%d', unrun))
end_batch(KEYS[1], ARGV[2], ARGV[3])
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
remove_jobs(KEYS[4], ARGV[1])
return status
