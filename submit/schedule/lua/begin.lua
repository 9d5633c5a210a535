-- A run begins, unless another run or batch of the schedule is in its way.
-- KEYS: info, runs.
-- ARGV: id of the schedule, when the run was due by cron and when the next is due (nothing for a run by hand), the run,
-- 1 if it may overlap with batches that are not done, a run whose place it takes, or nothing.
-- Returns 'begun'; 'over': that was decided already, or the schedule was paused, replaced or removed; 'busy': another
-- run has begun and is not submitted; or a batch that is not done.
local runs_of = require("submit.schedule.lua.shared.runs")
local info, runs = unpack(KEYS)
local schedule, due, following, run, may_overlap, gone = unpack(ARGV)

if redis.call('HGET', info, 'id') ~= schedule then return 'over' end
local other = redis.call('HGET', info, 'run')
if other == run then return 'begun' end
if due ~= '' and (redis.call('HGET', info, 'next') ~= due or redis.call('HGET', info, 'paused')) then return 'over' end
if other and other ~= gone then return 'busy' end
local unfinished = may_overlap == '0' and runs_of.unfinished_batch(info, runs)
if unfinished then return unfinished end
redis.call('HSET', info, 'run', run)
if due ~= '' then redis.call('HSET', info, 'next', following) end
return 'begun'
