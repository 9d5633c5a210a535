-- Begin a dequeued job: a lease by the server's clock, and what RQ's tools show of it. Sent twice it is one lease.
-- KEYS: started registry, job, execution, the job's executions, intermediate list.
-- ARGV: the registry's entry, execution id, job id, seconds, worker's name, the time as RQ writes it.
-- Returns 1: leased; 0: the job was given to another since it was dequeued.
local clock = require("jobs.store.lua.shared.clock")

if redis.call('ZSCORE', KEYS[1], ARGV[1]) then return 1 end
if redis.call('LREM', KEYS[5], 1, ARGV[3]) == 0 or redis.call('EXISTS', KEYS[2]) == 0 then return 0 end
local now = clock()
redis.call('ZADD', KEYS[1], now + ARGV[4], ARGV[1])
redis.call('HSET', KEYS[3], 'id', ARGV[2], 'created_at', now, 'last_heartbeat', now, 'worker_name', ARGV[5])
redis.call('EXPIRE', KEYS[3], ARGV[4])
redis.call('ZADD', KEYS[4], now + ARGV[4], ARGV[2])
redis.call('EXPIRE', KEYS[4], ARGV[4])
redis.call('HSET', KEYS[2], 'status', 'started', 'worker_name', ARGV[5])
redis.call('HSET', KEYS[2], 'started_at', ARGV[6], 'last_heartbeat', ARGV[6])
return 1
