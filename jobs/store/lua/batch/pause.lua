-- Hold a batch back: its queued jobs pend.
-- KEYS: info, uploading, queues.
-- ARGV: batch id, now, pending prefix.
-- Returns its status before; 'retried' where a retry is under way, 'paused' where it was so already.
local take_out = require("jobs.store.lua.shared.take_out")

local status = redis.call('HGET', KEYS[1], 'status')
if status ~= 'in_progress' then return status end
if redis.call('ZSCORE', KEYS[2], ARGV[1]) then return 'retried' end
redis.call('HDEL', KEYS[1], '')  -- what removes goes first: after it, a server that is full takes the rest too
if redis.call('HSETNX', KEYS[1], 'paused_at', ARGV[2]) == 0 then return 'paused' end
take_out(KEYS[3], ARGV[1], function(queue, ids)
  for _, id in ipairs(ids) do redis.call('ZADD', ARGV[3] .. queue, id:sub(#ARGV[1] + 2), id) end
end)
return status
