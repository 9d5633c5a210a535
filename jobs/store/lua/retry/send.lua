-- Queue what was reopened, all at once: until then no worker can complete the batch.
-- KEYS: info, uploading, queues, rq:queues.
-- ARGV: batch id, now, pending prefix, the retry.
-- Returns 1: queued; 0: the retry is over.
local end_batch = require("jobs.store.lua.shared.end_batch")
local enqueue = require("jobs.store.lua.shared.enqueue")
local retrying = require("jobs.store.lua.shared.retrying")

if not retrying(KEYS[1], KEYS[2], ARGV[1], ARGV[4]) then return 0 end
redis.call('ZREM', KEYS[2], ARGV[1])
enqueue(KEYS[3], KEYS[4], ARGV[3])
if redis.call('HGET', KEYS[1], 'shards') == redis.call('HGET', KEYS[1], 'shards_done') then
  end_batch(KEYS[1], 'completed', ARGV[2])
end
return 1
