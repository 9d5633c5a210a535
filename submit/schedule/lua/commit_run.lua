-- Make the batch of a run live, and record the run, in one step: a batch of a schedule is live if and only if its
-- schedule knows it, however long whoever uploaded it slept.
-- A client that lost the reply sends it again: what is done already stays so.
-- KEYS: info and runs of the schedule, then those of the commit, the batch's info first.
-- ARGV: id of the schedule, the run that has begun (or nothing), its outcome, then those of the commit, the batch's id
-- first.
-- Returns 1; 0: the upload was swept; -1: the run is another's or over, or its schedule is gone.
local runs_of = require("submit.schedule.lua.shared.runs")
local commit = require("jobs.store.lua.shared.commit")
local info, runs, batch = unpack(KEYS)
local schedule, run, outcome, batch_id = unpack(ARGV)

local status = redis.call('HGET', batch, 'status')
if status and status ~= 'validating' and status ~= 'failed' then return 1 end
if redis.call('HGET', info, 'id') ~= schedule then return -1 end
if run ~= '' and redis.call('HGET', info, 'run') ~= run then return -1 end
if commit({unpack(KEYS, 3)}, {unpack(ARGV, 4)}) == 0 then return 0 end
if run ~= '' then redis.call('HDEL', info, 'run') end
redis.call('HSET', info, 'open', runs_of.open_batches(info, batch_id))
runs_of.record(runs, outcome)
return 1
