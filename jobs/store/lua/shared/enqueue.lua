-- Push a batch's pending jobs to their queues, in order. Where somebody waits for its records, wake as many workers.
-- queues: key of the batch's set of queues.  known: key of RQ's set of queues.  prefix: of the batch's pending jobs.
-- waiter: who waits for its records, or nothing.
local keys = require("jobs.store.lua.shared.keys")

return function(queues, known, prefix, waiter)
  for _, queue in ipairs(redis.call('SMEMBERS', queues)) do
    local pending = prefix .. queue
    local key = 'rq:queue:' .. queue
    redis.call('SADD', known, key)
    -- Where somebody put something else there, they go on pending: pausing and resuming the batch queues them later.
    local kind = redis.call('TYPE', key).ok
    while kind == 'list' or kind == 'none' do
      local popped = redis.call('ZPOPMIN', pending, 1000)
      if #popped == 0 then break end
      local ids = {}
      for i = 1, #popped, 2 do ids[#ids + 1] = popped[i] end
      redis.call('RPUSH', key, unpack(ids))
      if waiter and waiter ~= '' then
        local nudges = keys.nudge .. queue
        for _ = 1, math.min(#ids, 16) do redis.pcall('RPUSH', nudges, '1') end
        redis.pcall('LTRIM', nudges, -16, -1)
        redis.pcall('EXPIRE', nudges, 2)
      end
    end
  end
end
