-- Pause a worker, or the pool, also on a server that is full: it lets a step through that begins by removing something.
-- KEYS: the paused workers; for the pool also what RQ's workers look at.
-- ARGV: for a worker its name, now.
-- Returns 1 or OK; 0 or nothing where it was paused already.
redis.pcall('HDEL', KEYS[1], '')
if KEYS[2] then return redis.call('SET', KEYS[2], 1, 'NX') end
return redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2])
