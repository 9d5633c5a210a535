-- Those of a running batch's shards that are not done and in none of its queues, as number by job id.
-- None of one that is held back: its jobs pend. Where it runs, what still pends is nowhere.
-- info, uploading: keys.  compacted: prefix of compacted records.  queues, numbers: lists.
return function(info, uploading, batch_id, compacted, queues, numbers)
  local state = redis.call('HMGET', info, 'status', 'paused_at', 'starts_at')
  if state[1] ~= 'in_progress' or state[2] or state[3] or redis.call('ZSCORE', uploading, batch_id) then return {} end
  local missing = {}
  for _, number in ipairs(numbers) do
    if redis.call('EXISTS', compacted .. number) == 0 then missing[batch_id .. '-' .. number] = number end
  end
  for _, queue in ipairs(queues) do
    for _, list in ipairs({'rq:queue:' .. queue, 'rq:queue:' .. queue .. ':intermediate'}) do
      local length = redis.call('TYPE', list).ok == 'list' and redis.call('LLEN', list) or 0
      for start = 0, length - 1, 1000 do
        for _, id in ipairs(redis.call('LRANGE', list, start, start + 999)) do missing[id] = nil end
      end
    end
    local leases = 'rq:wip:' .. queue
    if redis.call('TYPE', leases).ok == 'zset' then
      for _, entry in ipairs(redis.call('ZRANGE', leases, 0, -1)) do missing[entry:match('^[^:]*')] = nil end
    end
  end
  return missing
end
