-- A run ends without a batch: the one that has begun, or the one that is due and is skipped.
-- KEYS: info, runs.
-- ARGV: id of the schedule, 'run' or 'next', what that field has, what it has then (or nothing), the outcome (or
-- nothing), the newest outcome that it is one with (or nothing), and the two as one.
-- Returns 1; 0: it is over already.
local runs_of = require("submit.schedule.lua.shared.runs")
local info, runs = unpack(KEYS)
local schedule, field, value, following, outcome, newest, both = unpack(ARGV)

if redis.call('HGET', info, 'id') ~= schedule or redis.call('HGET', info, field) ~= value then return 0 end
if following == '' then redis.call('HDEL', info, field) else redis.call('HSET', info, field, following) end
if newest ~= '' and redis.call('LINDEX', runs, 0) == newest then
  redis.call('LSET', runs, 0, both)
elseif outcome ~= '' then
  runs_of.record(runs, outcome)
end
return 1
