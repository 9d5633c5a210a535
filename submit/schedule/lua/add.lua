-- Make a schedule of a name that is free, or take the place of the one that has it: the list of its runs stays, and
-- which of its batches are not done; a run that is being submitted ends.
-- A client that lost the reply sends it again: a schedule that is there already stays as it is.
-- KEYS: info, the set of names, runs, the file.
-- ARGV: name, 1 to replace, 1 with a file, now, then fields and values, the id first.
-- Returns 1; 0: the name is taken; -1: the file's time was up.
local runs_of = require("submit.schedule.lua.shared.runs")
local forget = require("submit.schedule.lua.shared.forget")
local info, names, runs, file = unpack(KEYS)
local name, replace, with_file, now, _, id = unpack(ARGV)

local before = redis.call('EXISTS', info) == 1
local is_hash = before and redis.call('TYPE', info).ok == 'hash'
if is_hash and redis.call('HGET', info, 'id') == id then return 1 end
if replace == '0' and before then return 0 end
if with_file == '1' and redis.call('EXISTS', file) == 0 then return -1 end
local open = is_hash and runs_of.open_batches(info) or ''
local run = is_hash and redis.call('HGET', info, 'run') or ''
redis.call('SADD', names, name)
if before then forget(info) end
redis.call('HSET', info, unpack(ARGV, 5))
if open ~= '' then redis.call('HSET', info, 'open', open) end
local due, asked, missed = run:match('^{"due":(%d+),"asked":(%a+),"missed":(%d+),')
if due then
  local outcome = '{"due":%s,"at":%s,"state":"skipped","batch_id":null,"why":"%s","asked":%s,"missed":%s}'
  local why = 'the schedule was replaced while this run was being submitted'
  runs_of.record(runs, outcome:format(due, now, why, asked, missed))
end
if with_file == '1' then redis.call('PERSIST', file) end
return 1
