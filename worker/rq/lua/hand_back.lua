-- Give up a lease and put its job back; a lease that was taken back already changes nothing.
-- KEYS: started registry, job, execution, the job's executions, queue list.
-- ARGV: the registry's entry, job id, LPUSH or RPUSH.
-- Returns 1: put back; 0: nothing was changed, or the job is gone.
local put_back = require("worker.rq.lua.put_back")

if redis.call('ZREM', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('DEL', KEYS[3], KEYS[4])
if redis.call('EXISTS', KEYS[2]) == 0 then return 0 end
put_back(KEYS[5], KEYS[2], ARGV[2], ARGV[3])
return 1
