-- Whether a batch's retry, named by the time of its beginning, is under way.
-- info, uploading: keys.
return function(info, uploading, batch_id, retry)
  return redis.call('HGET', info, 'status') == 'in_progress'
    and (redis.call('HGET', info, 'retried_at') or '') == retry
    and redis.call('ZSCORE', uploading, batch_id)
end
