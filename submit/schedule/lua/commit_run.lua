-- Make the batch of a run live, and record the run, in one step: a batch of a schedule is live if and only if its
-- schedule knows it, however long whoever uploaded it slept.
-- A client that lost the reply sends it again: what is done already stays so.
-- KEYS: info and runs of the schedule, then those of the commit, the batch's info first.
-- ARGV: id of the schedule, the run that has begun (or nothing), its outcome, then those of the commit, the batch's id
-- first.
-- Returns 1; 0: the upload was swept; -1: the run is another's or over, or its schedule is gone.
-- luacheck: read globals record open_batches commit
local status = redis.call('HGET', KEYS[3], 'status')
if status and status ~= 'validating' and status ~= 'failed' then return 1 end
if redis.call('HGET', KEYS[1], 'id') ~= ARGV[1] then return -1 end
if ARGV[2] ~= '' and redis.call('HGET', KEYS[1], 'run') ~= ARGV[2] then return -1 end
if commit({unpack(KEYS, 3)}, {unpack(ARGV, 4)}) == 0 then return 0 end
if ARGV[2] ~= '' then redis.call('HDEL', KEYS[1], 'run') end
redis.call('HSET', KEYS[1], 'open', open_batches(KEYS[1], ARGV[4]))
record(KEYS[2], ARGV[3])
return 1
