-- Store the error records of lines refused at submission, once however often it is sent.
-- KEYS: info, table, finished, compacted.
-- ARGV: shard number, table row, number of lines, their indices, then each piece behind the index of its last record.
-- Returns 1: stored; 0: they were stored before.
if redis.call('EXISTS', KEYS[4]) == 1 then return 0 end
local lines = tonumber(ARGV[3])
for i = 4 + lines, #ARGV, 2 do redis.call('ZADD', KEYS[4], ARGV[i], ARGV[i + 1]) end
redis.call('ZADD', KEYS[2], ARGV[1], ARGV[2])
for i = 4, 3 + lines do redis.call('RPUSH', KEYS[3], ARGV[1] .. ':' .. ARGV[i]) end
redis.call('HINCRBY', KEYS[1], 'failed', lines)
redis.call('HINCRBY', KEYS[1], 'rejected', lines)
redis.call('HINCRBY', KEYS[1], 'shards_done', 1)
return 1
