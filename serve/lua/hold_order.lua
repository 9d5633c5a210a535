-- Go on holding an order that is there still.
-- KEYS: orders.
-- ARGV: its id, seconds for which it is held.
local clock = require("jobs.store.lua.shared.clock")

local now = clock()
redis.call('ZADD', KEYS[1], 'XX', now + ARGV[2], ARGV[1])
