-- Remove what can be no job of ours from a queue's intermediate list and its registry of leases, unread.
-- KEYS: started registry, intermediate list.
-- ARGV: most entries looked at.
-- Returns the removed, shortened.
local removed = {}
local function foreign(entry, pattern) return #entry > 128 or not entry:match(pattern) end
for _, entry in ipairs(redis.call('ZRANGE', KEYS[1], 0, ARGV[1] - 1)) do
  if foreign(entry, '^b_%w+%-%d+:[%w_-]+$') then
    redis.call('ZREM', KEYS[1], entry)
    removed[#removed + 1] = entry:sub(1, 40)
  end
end
for _, entry in ipairs(redis.call('LRANGE', KEYS[2], 0, ARGV[1] - 1)) do
  if foreign(entry, '^b_%w+%-%d+$') then
    redis.call('LREM', KEYS[2], 1, entry)
    removed[#removed + 1] = entry:sub(1, 40)
  end
end
return removed
