-- Take a batch's jobs out of its queues and `use(queue, ids)` them; the jobs of others keep their order.
-- queues: key of the batch's set of queues.
return function(queues, batch_id, use)
  local prefix = batch_id .. '-'
  for _, queue in ipairs(redis.call('SMEMBERS', queues)) do
    local key = 'rq:queue:' .. queue
    local left = redis.call('TYPE', key).ok == 'list' and redis.call('LLEN', key) or 0
    while left > 0 do
      local own, kept = {}, {}
      for _, id in ipairs(redis.call('LPOP', key, math.min(left, 1000))) do
        left = left - 1
        if id:sub(1, #prefix) == prefix then own[#own + 1] = id else kept[#kept + 1] = id end
      end
      if #kept > 0 then redis.call('RPUSH', key, unpack(kept)) end
      if #own > 0 then use(queue, own) end
    end
  end
end
