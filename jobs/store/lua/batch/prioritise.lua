-- Move a batch's jobs to the queues of another priority, waiting and pending ones.
-- Shards that workers hold are finished as they are; one that comes back goes to the new queue.
-- KEYS: info, uploading, queues, rq:queues.
-- ARGV: batch id, priority, pending prefix.
-- Returns its status before; 'retried' where a retry is under way.
local take_out = require("jobs.store.lua.shared.take_out")

local status = redis.call('HGET', KEYS[1], 'status')
if status ~= 'in_progress' then return status end
if redis.call('ZSCORE', KEYS[2], ARGV[1]) then return 'retried' end
if redis.call('HGET', KEYS[1], 'priority') == ARGV[2] then return status end
redis.call('HDEL', KEYS[1], '')  -- what removes goes first: after it, a server that is full takes the rest too
redis.call('HSET', KEYS[1], 'priority', ARGV[2])
local function moved(queue) return (queue:gsub('^(promptmill:)%a+', '%1' .. ARGV[2])) end
for _, queue in ipairs(redis.call('SMEMBERS', KEYS[3])) do
  local new = moved(queue)
  if new ~= queue then
    redis.call('SADD', KEYS[3], new)
    redis.call('SADD', KEYS[4], 'rq:queue:' .. new)
    local pending = redis.call('ZRANGE', ARGV[3] .. queue, 0, -1)
    for _, id in ipairs(pending) do
      redis.call('ZADD', ARGV[3] .. new, id:sub(#ARGV[1] + 2), id)
      redis.call('HSET', 'rq:job:' .. id, 'origin', new)
    end
    redis.call('DEL', ARGV[3] .. queue)
  end
end
take_out(KEYS[3], ARGV[1], function(queue, ids)
  local new = moved(queue)
  for _, id in ipairs(ids) do
    redis.call('RPUSH', 'rq:queue:' .. new, id)
    redis.call('HSET', 'rq:job:' .. id, 'origin', new)
  end
end)
return status
