-- Give up an upload that is silent still: from here on it cannot be committed, and may be removed in peace.
-- KEYS: info, uploading.
-- ARGV: batch id, the time before which a sign of life is too old.
-- Returns 1: given up; 0: it is live, or its submitter has come back.
local seen = redis.call('ZSCORE', KEYS[2], ARGV[1])
if not seen or tonumber(seen) > tonumber(ARGV[2]) then return 0 end
-- A live batch is here while it is retried: that is gone on with, see jobs/store/retry.py.
if redis.call('HGET', KEYS[1], 'status') == 'in_progress' then return 0 end
redis.call('HSET', KEYS[1], 'status', 'failed')
return 1
