-- Make an uploaded batch live: list it, push its jobs to their queues and start its clock, in one step. One that
-- begins later has its jobs held back until then.
-- A client that lost the reply sends it again: a batch that is live already stays as it is.
-- keys: info, uploading, queues, rq:queues, batches, expiring, starting.
-- argv: batch id, now, pending prefix, when it begins by the server's clock, seconds from then until it expires, or
-- nothing for either; then info fields and values.
-- Returns 1: live; 0: the upload was swept.
local clock = require("jobs.store.lua.shared.clock")
local end_batch = require("jobs.store.lua.shared.end_batch")
local enqueue = require("jobs.store.lua.shared.enqueue")

return function(keys, argv)
  local info, uploading, queues, known, batches, expiring, starting = unpack(keys)
  local batch_id, now, prefix, start_at, expires_in = unpack(argv)
  local status = redis.call('HGET', info, 'status')
  if not status or status == 'failed' then return 0 end
  if status ~= 'validating' then return 1 end
  if not redis.call('ZSCORE', uploading, batch_id) then return 0 end
  -- A server that is out of memory refuses this line, and has changed nothing yet.
  redis.call('ZADD', batches, now, batch_id)
  redis.call('ZREM', uploading, batch_id)
  for i = 6, #argv, 2 do redis.call('HSET', info, argv[i], argv[i + 1]) end
  redis.call('HSET', info, 'status', 'in_progress', 'in_progress_at', now)
  if redis.call('HGET', info, 'shards') == redis.call('HGET', info, 'shards_done') then
    end_batch(info, 'completed', now)
    return 1
  end
  local at_once = clock()
  local begins = math.max(tonumber(start_at) or 0, at_once)
  if expires_in ~= '' then
    local at = string.format('%.6f', begins + tonumber(expires_in))
    redis.call('HSET', info, 'expires_at', at)
    redis.call('ZADD', expiring, at, batch_id)
  end
  if begins > at_once then
    local at = string.format('%.6f', begins)
    redis.call('HSET', info, 'starts_at', at)
    redis.call('ZADD', starting, at, batch_id)
  else
    enqueue(queues, known, prefix, redis.call('HGET', info, 'answers'))
  end
  return 1
end
