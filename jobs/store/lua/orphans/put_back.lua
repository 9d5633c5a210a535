-- Queue shards that are nowhere still, each once; what RQ's tools have noted of them goes.
-- KEYS: info, uploading, queues, rq:queues, marks.
-- ARGV: batch id, prefix of compacted records, JSON: queues, numbers of shards; pending prefix, the queue they go to.
-- Returns the numbers of those that were queued.
local nowhere = require("jobs.store.lua.shared.nowhere")

local list = 'rq:queue:' .. ARGV[6]
local kind = redis.call('TYPE', list).ok
if kind ~= 'list' and kind ~= 'none' then return {} end
local queues, numbers = cjson.decode(ARGV[3]), cjson.decode(ARGV[4])
local missing = nowhere(KEYS[1], KEYS[2], ARGV[1], ARGV[2], queues, numbers)
local queued, noted = {}, {}
for _, queue in ipairs(queues) do
  noted[#noted + 1] = redis.call('EXISTS', ARGV[5] .. queue) == 1 and ARGV[5] .. queue or nil
  for _, state in ipairs({'failed', 'canceled', 'deferred', 'scheduled', 'finished'}) do
    local registry = 'rq:' .. state .. ':' .. queue
    noted[#noted + 1] = redis.pcall('EXISTS', registry) == 1 and registry or nil
  end
end
for _, number in ipairs(numbers) do
  local id = ARGV[1] .. '-' .. number
  if missing[id] then
    redis.call('RPUSH', list, id)
    for _, registry in ipairs(noted) do redis.pcall('ZREM', registry, id) end
    queued[#queued + 1] = number
  end
  redis.call('HDEL', KEYS[5], number)
end
if #queued > 0 then
  redis.call('SADD', KEYS[3], ARGV[6])
  redis.call('SADD', KEYS[4], list)
end
return queued
