-- Hold the first order that nobody holds.
-- KEYS: orders.
-- ARGV: seconds for which it is held.
-- Returns its id, or nothing.
local clock = require("jobs.store.lua.shared.clock")

local now = clock()
local found = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, 1)
if not found[1] then return false end
redis.call('ZADD', KEYS[1], now + ARGV[1], found[1])
return found[1]
