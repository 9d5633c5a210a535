-- The list of a schedule's last runs, and which of its batches are not done.
local keys = require("jobs.store.lua.shared.keys")
local runs_of = {}

-- Note what became of a run. What somebody else put where that is noted stops no run.
function runs_of.record(runs, outcome)
  redis.pcall('LPUSH', runs, outcome)
  redis.pcall('LTRIM', runs, 0, 19)
end

local function is_running(id)
  if #id ~= 28 or not id:find('^b_[0-9A-Z]+$') then return false end
  local status = redis.pcall('HGET', keys.batch .. id, 'status')
  local done = status == 'completed' or status == 'cancelled' or status == 'expired' or status == 'failed'
  return type(status) == 'string' and not done
end

-- `first`, and the batches that were not done at the last run and are not done now: up to 100, with spaces between.
function runs_of.open_batches(info, first)
  local kept = {first}
  for id in (redis.call('HGET', info, 'open') or ''):gmatch('%S+') do
    if #kept < 100 and is_running(id) then kept[#kept + 1] = id end
  end
  return table.concat(kept, ' ')
end

-- A batch of the schedule that is not done, or nothing. One that was done and is retried is among the last runs.
function runs_of.unfinished_batch(info, runs)
  for id in (redis.call('HGET', info, 'open') or ''):gmatch('%S+') do
    if is_running(id) then return id end
  end
  for _, run in ipairs(redis.pcall('LRANGE', runs, 0, 19)) do
    local id = run:sub(1, 4096):match('"batch_id":"(b_%w+)"')
    if id and is_running(id) then return id end
  end
end

return runs_of
