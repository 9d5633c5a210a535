-- Renew leases by the server's clock, those that are still there. What is removed first frees memory, so that a full
-- server, which refuses to begin with anything that adds, lets the rest of the script through.
-- KEYS: per lease: started registry, job, execution, the job's executions.
-- ARGV: seconds, then per lease: the registry's entry, execution id.
local clock = require("jobs.store.lua.shared.clock")

local now = clock()
for i = 2, #ARGV, 2 do
  local registry, _, execution, executions = unpack(KEYS, 2 * i - 3, 2 * i)
  if redis.call('ZREM', registry, ARGV[i]) == 1 then
    redis.call('ZADD', registry, now + ARGV[1], ARGV[i])
    redis.call('HSET', execution, 'last_heartbeat', now)
    redis.call('EXPIRE', execution, ARGV[1])
    redis.call('ZADD', executions, now + ARGV[1], ARGV[i + 1])
    redis.call('EXPIRE', executions, ARGV[1])
  end
end
