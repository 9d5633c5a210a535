"""Lua: the steps of schedules that must be one in Redis. Check and write happen together, so each may be repeated."""

from __future__ import annotations

from jobs.store.keys import PREFIX
from jobs.store.steps import load

__all__ = ["ADD", "ASK", "BEGIN", "COMMIT_RUN", "END", "HOLD", "KEPT_RUNS", "NAMES", "READ", "REMOVE"]

KEPT_RUNS = 20
MOST_OPEN = 100

RECORD = f"""
-- Part of scripts: note what became of a run. What somebody else put where that is noted stops no run.
local function record(runs, outcome)
  redis.pcall('LPUSH', runs, outcome)
  redis.pcall('LTRIM', runs, 0, {KEPT_RUNS - 1})
end
"""

OPEN = f"""
-- Part of scripts: batches of a schedule that are not done, `first` and those that were not at its last run.
local function open(info, first)
  local kept = {{first}}
  for id in (redis.call('HGET', info, 'open') or ''):gmatch('%S+') do
    if #kept < {MOST_OPEN} and #id == 28 and id:find('^b_[0-9A-Z]+$') then
      local status = redis.pcall('HGET', '{PREFIX}b:' .. id, 'status')
      local done = status == 'completed' or status == 'cancelled' or status == 'expired' or status == 'failed'
      if type(status) == 'string' and not done then kept[#kept + 1] = id end
    end
  end
  return table.concat(kept, ' ')
end
"""

READ = """
-- A schedule, unless it is larger than any of ours.  KEYS: info, runs.
-- ARGV: most bytes of the fields, runs wanted, most bytes of one, then fields.  Returns {values, runs} or nothing.
if redis.call('EXISTS', KEYS[1]) == 0 then return false end
local size = 0
for i = 4, #ARGV do size = size + redis.call('HSTRLEN', KEYS[1], ARGV[i]) end
if size > tonumber(ARGV[1]) then return redis.error_reply('FOREIGN it has ' .. size .. ' bytes') end
local runs = {}
if tonumber(ARGV[2]) > 0 then
  for _, run in ipairs(redis.call('LRANGE', KEYS[2], 0, ARGV[2] - 1)) do
    if #run <= tonumber(ARGV[3]) then runs[#runs + 1] = run end
  end
end
return {redis.call('HMGET', KEYS[1], unpack(ARGV, 4)), runs}
"""

NAMES = """
-- The names of schedules; what can be none is removed.  KEYS: the set.  ARGV: most characters of a name.
if redis.replicate_commands then redis.replicate_commands() end
local names = {}
for _, name in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  if #name <= tonumber(ARGV[1]) and name:find('^%w[%w_-]*$') then names[#names + 1] = name
  else redis.call('SREM', KEYS[1], name) end
end
return names
"""

_FORGET = """
-- Part of scripts: remove a schedule and its file, whatever lies there.
local function forget(info)
  local id = redis.pcall('HGET', info, 'id')
  if type(id) == 'string' and #id < 100 then redis.call('UNLINK', info .. ':prompts:' .. id) end
  return redis.call('UNLINK', info)
end
"""

ADD = (
    RECORD
    + OPEN
    + _FORGET
    + """
-- Make a schedule of a name that is free, or take the place of the one that has it: the list of its runs stays, and
-- which of its batches are not done.
-- A client that lost the reply sends it again: a schedule that is there already stays as it is.
-- KEYS: info, the set, runs, the file.  ARGV: name, 1 to replace, 1 with a file, a run that has begun and what becomes
-- of it (or nothing), then fields and values, the id first.
local before = redis.call('EXISTS', KEYS[1]) == 1
local hash = before and redis.call('TYPE', KEYS[1]).ok == 'hash'
if hash and redis.call('HGET', KEYS[1], 'id') == ARGV[7] then return 1 end
if ARGV[2] == '0' and before then return 0 end
if ARGV[3] == '1' and redis.call('EXISTS', KEYS[4]) == 0 then return -1 end
local left = hash and open(KEYS[1]) or ''
local ended = hash and ARGV[4] ~= '' and redis.call('HGET', KEYS[1], 'run') == ARGV[4]
redis.call('SADD', KEYS[2], ARGV[1])
if before then forget(KEYS[1]) end
redis.call('HSET', KEYS[1], unpack(ARGV, 6))
if left ~= '' then redis.call('HSET', KEYS[1], 'open', left) end
if ended then record(KEYS[3], ARGV[5]) end
if ARGV[3] == '1' then redis.call('PERSIST', KEYS[4]) end
return 1
"""
)

REMOVE = (
    _FORGET
    + """
-- Remove a schedule.  KEYS: info, the set, runs.  ARGV: name.  Returns whether there was one.
local removed = redis.call('SREM', KEYS[2], ARGV[1]) + forget(KEYS[1])
redis.call('UNLINK', KEYS[3])
return removed > 0
"""
)

BEGIN = (
    RECORD
    + """
-- A run begins, or is passed over, unless somebody else has seen to it.  KEYS: info, runs.
-- ARGV: id of the schedule, 'next' or 'asked', when it was due, when the next is due, the run or nothing, the open
-- batches that were looked at or '*', what became of it or nothing, the newest outcome or nothing, and what becomes of
-- both.  Returns 1; 0: it was seen to; -1: another run has begun, or batches of the schedule came.
if redis.call('HGET', KEYS[1], 'id') ~= ARGV[1] or redis.call('HGET', KEYS[1], ARGV[2]) ~= ARGV[3] then return 0 end
if ARGV[5] ~= '' then
  if ARGV[6] ~= '*' and (redis.call('HGET', KEYS[1], 'open') or '') ~= ARGV[6] then return -1 end
  if redis.call('HSETNX', KEYS[1], 'run', ARGV[5]) == 0 then return -1 end
end
if ARGV[2] == 'next' then redis.call('HSET', KEYS[1], 'next', ARGV[4])
else redis.call('HDEL', KEYS[1], 'asked', 'asked_overlap') end
if ARGV[7] ~= '' then
  if ARGV[8] ~= '' and redis.call('LINDEX', KEYS[2], 0) == ARGV[8] then
    redis.call('LSET', KEYS[2], 0, ARGV[9])
  else
    record(KEYS[2], ARGV[7])
  end
end
return 1
"""
)

HOLD = """
-- A run by hand begins.  KEYS: info.  ARGV: id of the schedule, the run, the open batches that were looked at, a run
-- whose maker is gone, or nothing.
-- Returns 1; 0: another run has begun, or batches of the schedule came; -1: it was replaced or removed.
if redis.call('HGET', KEYS[1], 'id') ~= ARGV[1] then return -1 end
local run = redis.call('HGET', KEYS[1], 'run')
if run == ARGV[2] then return 1 end
if (run and run ~= ARGV[4]) or (redis.call('HGET', KEYS[1], 'open') or '') ~= ARGV[3] then return 0 end
redis.call('HSET', KEYS[1], 'run', ARGV[2])
return 1
"""

COMMIT_RUN = (
    RECORD
    + OPEN
    + f"local commit = (function()\n{load('jobs.store.lua.shared', 'commit')}end)()\n"
    + """
-- Make the batch of a run live, and record the run, in one step: a batch of a schedule is live if and only if that
-- knows it, however long whoever uploaded it slept.
-- A client that lost the reply sends it again: what is done already stays so.
-- KEYS: info and runs of the schedule, then those of the commit, the batch's first.  ARGV: id of the schedule, the run
-- that has begun or nothing, what became of it, then those of the commit, the batch's id first.
-- Returns 1; 0: the upload was swept; -1: the run is another's or over, or its schedule is gone.
local status = redis.call('HGET', KEYS[3], 'status')
if status and status ~= 'validating' and status ~= 'failed' then return 1 end
if redis.call('HGET', KEYS[1], 'id') ~= ARGV[1] then return -1 end
if ARGV[2] ~= '' and redis.call('HGET', KEYS[1], 'run') ~= ARGV[2] then return -1 end
if commit({unpack(KEYS, 3)}, {unpack(ARGV, 4)}) == 0 then return 0 end
if ARGV[2] ~= '' then redis.call('HDEL', KEYS[1], 'run') end
redis.call('HSET', KEYS[1], 'open', open(KEYS[1], ARGV[4]))
record(KEYS[2], ARGV[3])
return 1
"""
)

END = (
    RECORD
    + """
-- The run that has begun ends without a batch.  KEYS: info, runs.
-- ARGV: id of the schedule, the run, what became of it or nothing.
if redis.call('HGET', KEYS[1], 'id') ~= ARGV[1] or redis.call('HGET', KEYS[1], 'run') ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[1], 'run')
if ARGV[3] ~= '' then record(KEYS[2], ARGV[3]) end
return 1
"""
)

ASK = """
-- Ask the scheduler for a run now; asked twice before it begins, it is one.  KEYS: info.
-- ARGV: id, now, 1 if it may overlap.  Returns when it is due, in seconds that no other run that was asked for has.
if redis.call('HGET', KEYS[1], 'id') ~= ARGV[1] then return false end
if ARGV[3] == '1' then redis.call('HSET', KEYS[1], 'asked_overlap', 1) end
local asked = redis.call('HGET', KEYS[1], 'asked')
if asked then return asked end
local due = math.max(tonumber(ARGV[2]), (redis.call('HGET', KEYS[1], 'last_asked') or 0) + 1)
redis.call('HSET', KEYS[1], 'asked', string.format('%.0f', due), 'last_asked', string.format('%.0f', due))
return string.format('%.0f', due)
"""
