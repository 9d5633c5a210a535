-- A run begins, unless another run or batch of the schedule is in its way.
-- KEYS: info, runs.
-- ARGV: id of the schedule, when the run was due by cron and when the next is due (nothing for a run by hand), the run,
-- 1 if it may overlap with batches that are not done, a run whose place it takes, or nothing.
-- Returns 'begun'; 'over': that was decided already, or the schedule was replaced or removed; 'busy': another run has
-- begun and is not submitted; or a batch that is not done.
-- luacheck: read globals unfinished_batch
if redis.call('HGET', KEYS[1], 'id') ~= ARGV[1] then return 'over' end
local run = redis.call('HGET', KEYS[1], 'run')
if run == ARGV[4] then return 'begun' end
if ARGV[2] ~= '' and redis.call('HGET', KEYS[1], 'next') ~= ARGV[2] then return 'over' end
if run and run ~= ARGV[6] then return 'busy' end
local batch = ARGV[5] == '0' and unfinished_batch(KEYS[1], KEYS[2])
if batch then return batch end
redis.call('HSET', KEYS[1], 'run', ARGV[4])
if ARGV[2] ~= '' then redis.call('HSET', KEYS[1], 'next', ARGV[3]) end
return 'begun'
