-- Cancel one line of a running batch: an error record takes the place of what a worker may still write.
-- KEYS: info, compacted, records, finished, dropped.
-- ARGV: shard number, index, record.
-- Returns 1: cancelled; 0: it has a record, or the batch has ended.
if redis.call('HGET', KEYS[1], 'status') ~= 'in_progress' or redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
local place = ARGV[1] .. ':' .. ARGV[2]
redis.call('SCARD', KEYS[5])
if redis.call('HSETNX', KEYS[3], ARGV[2], ARGV[3]) == 0 then return 0 end
redis.call('HINCRBY', KEYS[1], 'failed', 1)
redis.call('RPUSH', KEYS[4], place)
redis.call('SADD', KEYS[5], place)
return 1
