-- Remove a schedule.
-- KEYS: info, the set of names, runs.
-- ARGV: name.
-- Returns whether there was one.
local forget = require("submit.schedule.lua.shared.forget")
local removed = redis.call('SREM', KEYS[2], ARGV[1]) + forget(KEYS[1])
redis.call('UNLINK', KEYS[3])
return removed > 0
