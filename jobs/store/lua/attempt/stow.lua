-- Put a piece of a shard's records aside, for finish.lua, unless the attempt is stale.
-- KEYS: info, fences, compacted, pieces.
-- ARGV: shard number, fence, pieces before this one, index of its last record, piece.
-- Returns 2: put aside; 1: the shard is done; 0: stale.
if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then return 0 end
if redis.call('EXISTS', KEYS[3]) == 1 then return 1 end
if redis.call('HGET', KEYS[1], 'status') ~= 'in_progress' then return 0 end
-- What removes goes first: a server that is full then takes the rest, and has more room once the shard is done.
if ARGV[3] == '0' then redis.call('DEL', KEYS[4]) else redis.call('ZREM', KEYS[4], '') end
redis.call('ZADD', KEYS[4], ARGV[4], ARGV[5])
return 2
