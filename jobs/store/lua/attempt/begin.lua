-- Note that lines begin, before they do, or that they do not after all, unless the attempt is stale.
-- KEYS: fences, flights.
-- ARGV: shard number, fence, then per line: index, and the worker instance (with ' alone' where nothing is beside the
-- line), or nothing where it does not begin.
-- Returns 1: noted; 0: stale.
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
for i = 3, #ARGV, 2 do
  if ARGV[i + 1] == '' then
    redis.call('HDEL', KEYS[2], ARGV[i])
  else
    redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1])
  end
end
return 1
