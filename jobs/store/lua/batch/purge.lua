-- Take a batch that is done off the lists, to be removed. It is an upload given up from here on: should who removes it
-- die, it is swept like one.
-- KEYS: info, uploading, batches, keeping.
-- ARGV: batch id, 1 if its time must have come.
-- Returns its status before; 'early' where its time has not come.
local clock = require("jobs.store.lua.shared.clock")

local status = redis.call('HGET', KEYS[1], 'status')
local refused = status == 'failed' and redis.call('ZSCORE', KEYS[4], ARGV[1])
if status ~= 'completed' and status ~= 'cancelled' and status ~= 'expired' and not refused then
  if status ~= 'validating' and ARGV[2] == '1' then redis.call('ZREM', KEYS[4], ARGV[1]) end
  return status
end
local at = redis.call('ZSCORE', KEYS[4], ARGV[1])
if ARGV[2] == '1' and (not at or tonumber(at) > clock()) then return 'early' end
redis.call('ZREM', KEYS[4], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('HSET', KEYS[1], 'status', 'failed')
redis.call('ZADD', KEYS[2], 0, ARGV[1])
return status
