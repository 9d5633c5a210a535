-- Let RQ's tools show a refused job as failed, if there is one.
-- KEYS: job.
if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('HSET', KEYS[1], 'status', 'failed') end
