-- The rows of a batch's shards that are not done.
-- KEYS: table.
-- ARGV: prefix of compacted records, first and last position.
local open = {}
for _, row in ipairs(redis.call('ZRANGE', KEYS[1], ARGV[2], ARGV[3])) do
  local number = row:match('^%[(%d+),')
  if number and redis.call('EXISTS', ARGV[1] .. number) == 0 then open[#open + 1] = row end
end
return open
