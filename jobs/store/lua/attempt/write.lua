-- Store finished lines of a shard, unless the attempt is stale. Counts change with the record, in the same step.
-- KEYS: info, fences, records, finished, flights, compacted.
-- ARGV: shard number, fence, then per line: index, 1 or 0 (completed or failed), prompt, completion, cached, scored,
-- record.
-- Where somebody waits for the batch's records, each goes to them as well.
-- Returns 1: stored, or the shard is done; 0: stale.
local keys = require("jobs.store.lua.shared.keys")

if redis.call('HGET', KEYS[1], 'status') ~= 'in_progress' then return 0 end
if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then return 0 end
if redis.call('EXISTS', KEYS[6]) == 1 then return 1 end
-- Where something else lies in the way this fails, before anything is stored: what is stored is counted.
redis.call('LLEN', KEYS[4])
redis.call('HLEN', KEYS[5])
local waiter = redis.call('HGET', KEYS[1], 'answers')
local answers = waiter and waiter ~= '' and keys.answers .. waiter
local tokens = {'prompt_tokens', 'completion_tokens', 'cached_tokens', 'scored_tokens'}
local counts = {completed = 0, failed = 0}
for _, name in ipairs(tokens) do counts[name] = 0 end
for name in pairs(counts) do redis.call('HINCRBY', KEYS[1], name, 0) end
for i = 3, #ARGV, 7 do
  if redis.call('HSETNX', KEYS[3], ARGV[i], ARGV[i + 6]) == 1 then
    local outcome = ARGV[i + 1] == '1' and 'completed' or 'failed'
    counts[outcome] = counts[outcome] + 1
    for place, name in ipairs(tokens) do counts[name] = counts[name] + ARGV[i + 1 + place] end
    redis.call('RPUSH', KEYS[4], ARGV[1] .. ':' .. ARGV[i])
    if answers then
      redis.pcall('RPUSH', answers, KEYS[1]:match('[^:]*$') .. ':' .. ARGV[i] .. ':' .. ARGV[i + 6])
    end
  end
  redis.call('HDEL', KEYS[5], ARGV[i])
end
for name, count in pairs(counts) do redis.call('HINCRBY', KEYS[1], name, count) end
if answers then redis.pcall('EXPIRE', answers, 60) end
return 1
