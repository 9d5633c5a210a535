-- A batch's hash, unless it is larger than any of ours.
-- KEYS: info.
-- ARGV: most bytes of its fields and values.
local size = 0
if redis.call('HLEN', KEYS[1]) > 64 then return redis.error_reply('FOREIGN it has too many fields') end
for _, name in ipairs(redis.call('HKEYS', KEYS[1])) do size = size + #name + redis.call('HSTRLEN', KEYS[1], name) end
if size > tonumber(ARGV[1]) then return redis.error_reply('FOREIGN it has ' .. size .. ' bytes') end
return redis.call('HGETALL', KEYS[1])
