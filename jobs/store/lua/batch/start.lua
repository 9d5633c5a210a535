-- Begin a batch whose time has come, by Redis' clock alone.
-- KEYS: info, starting, queues, rq:queues.
-- ARGV: batch id, now, pending prefix.
-- Returns its status before; 'early' where its time has not come.
local clock = require("jobs.store.lua.shared.clock")
local enqueue = require("jobs.store.lua.shared.enqueue")

local status, at = unpack(redis.call('HMGET', KEYS[1], 'status', 'starts_at'))
if status == 'in_progress' and at and tonumber(at) > clock() then return 'early' end
redis.call('ZREM', KEYS[2], ARGV[1])
if status ~= 'in_progress' or not at then return status end
redis.call('HDEL', KEYS[1], 'starts_at')
redis.call('HSET', KEYS[1], 'in_progress_at', ARGV[2])
if redis.call('HEXISTS', KEYS[1], 'paused_at') == 0 then enqueue(KEYS[3], KEYS[4], ARGV[3]) end
return status
