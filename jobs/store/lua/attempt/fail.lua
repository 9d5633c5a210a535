-- Note that an attempt at one line failed, by itself, for a reason that may pass.
-- KEYS: fences, flights, tries.
-- ARGV: shard number, fence, index, the failed attempts before this one: sent twice it counts once.
-- Returns its failed attempts; 0: stale.
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[2], ARGV[3])
redis.call('HSET', KEYS[3], ARGV[3], ARGV[4] + 1, 'a' .. ARGV[3], 1)
return ARGV[4] + 1
