-- Note what came of a try, unless the webhook is no longer this claim's.
-- KEYS: webhooks, info.
-- ARGV: batch id, the claim's place, state, answer, time of the next try or nothing.
-- Returns 1; 0: it is another's, or nobody's.
local webhooks, info = unpack(KEYS)
local batch_id, claimed, state, answer, following = unpack(ARGV)
local place = redis.call('ZSCORE', webhooks, batch_id)
if not place or tonumber(place) ~= tonumber(claimed) then return 0 end
local exists = redis.call('EXISTS', info) == 1
if following == '' or not exists then
  redis.call('ZREM', webhooks, batch_id)
else
  redis.call('ZADD', webhooks, following, batch_id)
end
if exists then
  redis.call('HSET', info, 'webhook_state', state, 'webhook_answer', answer, 'webhook_next', following)
end
return 1
