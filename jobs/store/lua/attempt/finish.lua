-- Compact a shard whose lines all have records: the pieces put aside and this last one take their place. The last shard
-- completes its batch.
-- KEYS: info, fences, compacted, pieces, records, flights, tries, reopened.
-- ARGV: shard number, fence, pieces put aside, index of the last one's last record, last piece, lines, now.
-- Returns 1: done; 0: stale; -1: a record is missing; -2: not all pieces are there, as after a crash of the server.
local end_batch = require("jobs.store.lua.shared.end_batch")

if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then return 0 end
if redis.call('EXISTS', KEYS[3]) == 1 then return 1 end
-- Only now: a finish that is sent again may have completed the batch already.
if redis.call('HGET', KEYS[1], 'status') ~= 'in_progress' then return 0 end
if ARGV[3] == '0' then redis.call('DEL', KEYS[4]) else redis.call('ZREM', KEYS[4], '') end
if redis.call('HLEN', KEYS[5]) ~= tonumber(ARGV[6]) then
  redis.call('DEL', KEYS[4])
  return -1
end
redis.call('ZADD', KEYS[4], ARGV[4], ARGV[5])
if redis.call('ZCARD', KEYS[4]) ~= ARGV[3] + 1 then
  redis.call('DEL', KEYS[4])
  return -2
end
-- This first: it fails where something else is counted there.
local done = redis.call('HINCRBY', KEYS[1], 'shards_done', 1)
redis.call('RENAME', KEYS[4], KEYS[3])
redis.call('DEL', KEYS[5], KEYS[6], KEYS[7], KEYS[8])
if done == tonumber(redis.call('HGET', KEYS[1], 'shards')) then
  redis.call('HSET', KEYS[1], 'finalizing_at', ARGV[7])
  end_batch(KEYS[1], 'completed', ARGV[7])
end
return 1
