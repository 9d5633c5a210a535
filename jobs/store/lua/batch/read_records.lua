-- The next records of a shard in the order of their indices, or those of the indices given, in that order: as many as
-- fit, one at least.
-- KEYS: records, compacted, retried.
-- ARGV: most bytes, the index above which to begin, shard number, what a frame begins with, then indices or none.
-- Returns what is in `retried` of each index given, and then: 0, index, record, ... while the shard runs; 1, and the
-- piece that has the first index above with the index of its last record, if there is one, once it is done; 2, frame
-- where an earlier version made one of them all.
local retried = {}
for i = 5, #ARGV do retried[i - 4] = redis.call('HGET', KEYS[3], ARGV[3] .. ':' .. ARGV[i]) end
local kind = redis.call('TYPE', KEYS[2]).ok
if kind == 'string' then
  if redis.call('GETRANGE', KEYS[2], 0, 3) ~= ARGV[4] then return redis.error_reply('FOREIGN it is no zstd frame') end
  return {retried, 2, redis.call('GET', KEYS[2])}
end
if kind ~= 'none' then
  local piece = redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. ARGV[2], '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
  return {retried, 1, piece[1], piece[2]}
end
local wanted, found, size = {}, {retried, 0}, 0
for i = 5, #ARGV do wanted[i - 4] = ARGV[i] end
if #wanted == 0 then
  local above, names = tonumber(ARGV[2]), {}
  for _, name in ipairs(redis.call('HKEYS', KEYS[1])) do
    local index = tonumber(name)
    if index > above then
      wanted[#wanted + 1] = index
      names[index] = name
    end
  end
  table.sort(wanted)
  for i, index in ipairs(wanted) do wanted[i] = names[index] end
end
for _, index in ipairs(wanted) do
  local record = redis.call('HGET', KEYS[1], index)
  if record then
    size = size + #record
    if #found > 2 and size > tonumber(ARGV[1]) then break end
    found[#found + 1] = index
    found[#found + 1] = record
  end
end
return found
