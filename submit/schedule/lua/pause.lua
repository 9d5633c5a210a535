-- Pause a schedule: no run of it begins by cron. Or let it go on: what was due meanwhile is not made up for.
-- KEYS: info.
-- ARGV: id of the schedule, when it is paused (or nothing, to let it go on), when the next run is due then.
-- Returns 1; 0: it was so already; -1: it was replaced or removed.
local info = KEYS[1]
local schedule, at, following = unpack(ARGV)

if redis.call('HGET', info, 'id') ~= schedule then return -1 end
local paused = redis.call('HGET', info, 'paused')
if at ~= '' then
  if not paused then redis.call('HSET', info, 'paused', at) end
  return paused and 0 or 1
end
if not paused then return 0 end
redis.call('HDEL', info, 'paused')
redis.call('HSET', info, 'next', following)
return 1
