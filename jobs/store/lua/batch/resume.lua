-- Let a paused batch go on. One whose time has not come waits for it.
-- KEYS: info, queues, rq:queues.
-- ARGV: batch id, pending prefix.
-- Returns 'paused', or its status where it was not.
local enqueue = require("jobs.store.lua.shared.enqueue")

local status = redis.call('HGET', KEYS[1], 'status')
if status ~= 'in_progress' or redis.call('HDEL', KEYS[1], 'paused_at') == 0 then return status end
if redis.call('HEXISTS', KEYS[1], 'starts_at') == 0 then enqueue(KEYS[2], KEYS[3], ARGV[2]) end
return 'paused'
