-- Renew leases by the server's clock, those that are still there. What is removed first frees memory, so that a full
-- server, which refuses to begin with anything that adds, lets the rest of the script through.
-- KEYS: started registry, then per lease: execution, the job's executions.
-- ARGV: seconds, then per lease: the registry's entry, execution id.
local clock = require("jobs.store.lua.shared.clock")

local now = clock()
for i = 2, #ARGV, 2 do
  if redis.call('ZREM', KEYS[1], ARGV[i]) == 1 then
    redis.call('ZADD', KEYS[1], now + ARGV[1], ARGV[i])
    redis.call('HSET', KEYS[i], 'last_heartbeat', now)
    redis.call('EXPIRE', KEYS[i], ARGV[1])
    redis.call('ZADD', KEYS[i + 1], now + ARGV[1], ARGV[i + 1])
    redis.call('EXPIRE', KEYS[i + 1], ARGV[1])
  end
end
