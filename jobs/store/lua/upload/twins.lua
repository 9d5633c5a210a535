-- Store the places of lines that are not run because earlier ones are equal, once however often they are sent.
-- KEYS: info, table, compacted.
-- ARGV: shard number, table row, number of lines, then each piece behind the index of its last line.
-- Returns 1: stored; 0: they were stored before.
if redis.call('EXISTS', KEYS[3]) == 1 then return 0 end
for i = 4, #ARGV, 2 do redis.call('ZADD', KEYS[3], ARGV[i], ARGV[i + 1]) end
redis.call('ZADD', KEYS[2], ARGV[1], ARGV[2])
redis.call('HINCRBY', KEYS[1], 'twins', ARGV[3])
redis.call('HINCRBY', KEYS[1], 'shards_done', 1)
return 1
