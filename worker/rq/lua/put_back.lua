-- A job goes back to its queue, or to that of its batch's priority if it has another one by now; where its batch is
-- held back, so is the job.
-- list, job: keys of the queue and of the job's hash.  push: LPUSH or RPUSH.
local keys = require("jobs.store.lua.shared.keys")

return function(list, job, id, push)
  local info, queue = keys.batch .. (id:match('^(.*)%-%d+$') or ''), list:sub(10)
  local batch = redis.pcall('HMGET', info, 'paused_at', 'priority')
  local priority = (batch[2] or ''):match('^%l+$')
  if priority then queue = queue:gsub('^(promptmill:)%l+', '%1' .. priority) end
  redis.call('HSET', job, 'status', 'queued', 'origin', queue)
  local held = batch[1] and redis.pcall('ZADD', info .. ':p:' .. queue, id:match('%d+$'), id)
  if not held or type(held) == 'table' then redis.call(push, 'rq:queue:' .. queue, id) end
end
