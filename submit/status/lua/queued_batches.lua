-- Which batches have shards in a queue, waiting or leased.
-- KEYS: the queue's list, RQ's list of what was just taken from it, its registry of leases.
-- ARGV: how many entries to look at, at each end.
-- Returns the batches' ids; '*' where the queue is too long to say.
local most = tonumber(ARGV[1])
if redis.call('LLEN', KEYS[1]) > 2 * most then return {'*'} end
local ids, known = {}, {}
local function add(entries)
  for _, entry in ipairs(entries) do
    local id = string.match(entry, '^([%w_]+)%-')
    if id and #id <= 64 and not known[id] then
      known[id] = true
      ids[#ids + 1] = id
    end
  end
end
add(redis.call('LRANGE', KEYS[1], 0, -1))
add(redis.call('LRANGE', KEYS[2], 0, most - 1))
add(redis.call('ZRANGE', KEYS[3], 0, most - 1))
return ids
