-- Claim the first due webhook; what is listed and is none is taken off.
-- A client that lost the reply sends it again: it gets the claim that it has.
-- KEYS: webhooks, this claim's.
-- ARGV: now, the lease's end, prefix of the batches' hashes, most to look at, most bytes of a URL, seconds in which a
-- client sends again.
-- Returns {entries taken off}, and where one was claimed its batch, place, webhook id, tries and URL.
local webhooks, claim = unpack(KEYS)
local now, lease_end, prefix, most, most_bytes, resent_s = unpack(ARGV)
local removed = {}

local function claimed(id)
  local found = redis.call('HMGET', prefix .. id, 'webhook_id', 'webhook_tries', 'webhook')
  return {removed, id, redis.call('ZSCORE', webhooks, id), unpack(found)}
end

-- The status of a batch that has ended and has a webhook, or nothing.
local function ended(id)
  local info = prefix .. id
  if #id ~= 28 or not id:find('^b_[0-9A-Z]+$') or redis.call('TYPE', info).ok ~= 'hash' then return nil end
  local status = redis.call('HGET', info, 'status')
  if status ~= 'completed' and status ~= 'cancelled' and status ~= 'expired' then return nil end
  local size = redis.call('HSTRLEN', info, 'webhook')
  local sound = size > 0 and size <= tonumber(most_bytes) and redis.call('HSTRLEN', info, status .. '_at') < 40
  return sound and status
end

local before = redis.call('GET', claim)
if before and redis.call('ZSCORE', webhooks, before) then return claimed(before) end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', webhooks, '-inf', now, 'LIMIT', 0, most)) do
  local status = ended(id)
  if status then
    local info = prefix .. id
    redis.call('ZADD', webhooks, lease_end, id)
    local name = 'msg_' .. id:sub(3) .. '_' .. (redis.call('HGET', info, status .. '_at') or ''):gsub('[^0-9]', '')
    local tries = 0
    if redis.call('HGET', info, 'webhook_id') == name then
      tries = tonumber(redis.call('HGET', info, 'webhook_tries') or '') or 0
    end
    tries = string.format('%d', math.max(0, math.min(tries, 1000)) + 1)
    redis.call('HSET', info, 'webhook_id', name, 'webhook_tries', tries, 'webhook_state', 'waiting')
    redis.call('SET', claim, id, 'EX', resent_s)
    return claimed(id)
  end
  redis.call('ZREM', webhooks, id)
  removed[#removed + 1] = id:sub(1, 80)
end
return {removed}
