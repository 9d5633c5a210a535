-- A run ends without a batch: the one that has begun, or the one that is due and is skipped.
-- KEYS: info, runs.
-- ARGV: id of the schedule, 'run' or 'next', what that field has, what it has then (or nothing), the outcome (or
-- nothing), the newest outcome that it is one with (or nothing), and that one.
-- Returns 1; 0: it is over already.
-- luacheck: read globals record
if redis.call('HGET', KEYS[1], 'id') ~= ARGV[1] or redis.call('HGET', KEYS[1], ARGV[2]) ~= ARGV[3] then return 0 end
if ARGV[4] == '' then redis.call('HDEL', KEYS[1], ARGV[2]) else redis.call('HSET', KEYS[1], ARGV[2], ARGV[4]) end
if ARGV[6] ~= '' and redis.call('LINDEX', KEYS[2], 0) == ARGV[6] then
  redis.call('LSET', KEYS[2], 0, ARGV[7])
elseif ARGV[5] ~= '' then
  record(KEYS[2], ARGV[5])
end
return 1
