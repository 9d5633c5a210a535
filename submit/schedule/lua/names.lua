-- The names of schedules; what can be none is removed.
-- KEYS: the set.
-- ARGV: most characters of a name.
if redis.replicate_commands then redis.replicate_commands() end
local names = {}
for _, name in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  if #name <= tonumber(ARGV[1]) and name:find('^%w[%w_-]*$') then
    names[#names + 1] = name
  else
    redis.call('SREM', KEYS[1], name)
  end
end
return names
