-- Lines that were begun and not ended when their worker died have had an attempt. Noted as well is whether the line had
-- nothing beside it then: only such an attempt proves something.
-- flights, tries, records: keys of the shard.  living: the worker instance whose lines are under way still.
return function(flights, tries, records, living)
  local begun = redis.call('HGETALL', flights)
  for i = 1, #begun, 2 do
    local index, worker = begun[i], begun[i + 1]
    local alone = worker:sub(-6) == ' alone'
    if alone then worker = worker:sub(1, -7) end
    if worker ~= living then
      if redis.call('HEXISTS', records, index) == 0 then
        redis.call('HDEL', tries, 'a' .. index)
        if alone then redis.call('HSET', tries, 'a' .. index, 1) end
        redis.call('HINCRBY', tries, index, 1)
        redis.call('HINCRBY', tries, 'd' .. index, 1)
      end
      redis.call('HDEL', flights, index)
    end
  end
end
