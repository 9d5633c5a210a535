-- A batch has ended as `status`; note how long it is kept, and that its webhook is to be called.
-- What somebody else put where that is noted harms neither the batch nor others.
-- info: key of the batch's hash.  now: by the caller's clock.
local clock = require("jobs.store.lua.shared.clock")
local keys = require("jobs.store.lua.shared.keys")

return function(info, status, now)
  redis.call('HSET', info, 'status', status, status .. '_at', now)
  local id, wanted = info:match('[^:]*$'), redis.call('HMGET', info, 'keep_s', 'webhook')
  local time = math.floor(clock())
  local keep_s = tonumber(wanted[1] or '')
  if keep_s then redis.pcall('ZADD', keys.keeping, time + keep_s, id) end
  if wanted[2] and wanted[2] ~= '' then redis.pcall('ZADD', keys.webhooks, time, id) end
end
