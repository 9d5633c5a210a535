-- A schedule, unless it is larger than any of ours.
-- KEYS: info, runs.
-- ARGV: most bytes of the fields, runs wanted, most bytes of one, then fields.
-- Returns {values, runs} or nothing.
if redis.call('EXISTS', KEYS[1]) == 0 then return false end
local size = 0
for i = 4, #ARGV do size = size + redis.call('HSTRLEN', KEYS[1], ARGV[i]) end
if size > tonumber(ARGV[1]) then return redis.error_reply('FOREIGN it has ' .. size .. ' bytes') end
local runs = {}
if tonumber(ARGV[2]) > 0 then
  for _, run in ipairs(redis.call('LRANGE', KEYS[2], 0, ARGV[2] - 1)) do
    if #run <= tonumber(ARGV[3]) then runs[#runs + 1] = run end
  end
end
return {redis.call('HMGET', KEYS[1], unpack(ARGV, 4)), runs}
