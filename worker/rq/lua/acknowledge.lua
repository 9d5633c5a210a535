-- End a lease and remove its job; a job that is another's by now (taken back, or retried) stays.
-- KEYS: started registry, job, execution, the job's executions.
-- ARGV: the registry's entry.
-- Returns 1: removed; 0: it is another's.
redis.call('DEL', KEYS[3])
if redis.call('ZREM', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('DEL', KEYS[2], KEYS[4])
return 1
