-- Remove a batch's jobs from its queues.
-- queues: key of the batch's set of queues.
local take_out = require("jobs.store.lua.shared.take_out")

return function(queues, batch_id)
  take_out(queues, batch_id, function(_, ids)
    for _, id in ipairs(ids) do redis.call('DEL', 'rq:job:' .. id) end
  end)
end
