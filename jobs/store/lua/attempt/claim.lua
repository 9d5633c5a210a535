-- Begin an attempt at a shard: a new fence shuts out every earlier attempt.
-- Who claims its own shard again, as after a sleep, has not died: its lines are still under way.
-- KEYS: info, fences, tries, compacted, records, flights.
-- ARGV: shard number, now, the claiming worker instance.
-- Returns {fence, indices that have a record, tries as a flat hash}; {0} if nothing is to do; {-1} if it is paused.
local charge_attempts = require("jobs.store.lua.shared.charge_attempts")
local clock = require("jobs.store.lua.shared.clock")

local status = redis.call('HGET', KEYS[1], 'status')
if status ~= 'in_progress' or redis.call('EXISTS', KEYS[4]) == 1 then return {0} end
if redis.call('HEXISTS', KEYS[1], 'paused_at') == 1 then return {-1} end
redis.call('HSETNX', KEYS[1], 'started_at', ARGV[2])
-- A server that lost its last second, as in a power cut, has forgotten fences too: the time makes this one new.
local _, micros = clock()
local fence = math.max((redis.call('HGET', KEYS[2], ARGV[1]) or 0) + 1, micros)
redis.call('HSET', KEYS[2], ARGV[1], string.format('%.0f', fence))
charge_attempts(KEYS[6], KEYS[3], KEYS[5], ARGV[3])
return {fence, redis.call('HKEYS', KEYS[5]), redis.call('HGETALL', KEYS[3])}
