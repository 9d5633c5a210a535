-- Make a schedule of a name that is free, or take the place of the one that has it: the list of its runs stays, and
-- which of its batches are not done.
-- A client that lost the reply sends it again: a schedule that is there already stays as it is.
-- KEYS: info, the set of names, runs, the file.
-- ARGV: name, 1 to replace, 1 with a file, now, then fields and values, the id first.
-- Returns 1; 0: the name is taken; -1: the file's time was up.
-- luacheck: read globals record open_batches forget
local before = redis.call('EXISTS', KEYS[1]) == 1
local hash = before and redis.call('TYPE', KEYS[1]).ok == 'hash'
if hash and redis.call('HGET', KEYS[1], 'id') == ARGV[6] then return 1 end
if ARGV[2] == '0' and before then return 0 end
if ARGV[3] == '1' and redis.call('EXISTS', KEYS[4]) == 0 then return -1 end
local open = hash and open_batches(KEYS[1]) or ''
local run = hash and redis.call('HGET', KEYS[1], 'run') or ''
local due, asked, missed = run:match('^{"due":(%d+),"asked":(%a+),"missed":(%d+),')
redis.call('SADD', KEYS[2], ARGV[1])
if before then forget(KEYS[1]) end
redis.call('HSET', KEYS[1], unpack(ARGV, 5))
if open ~= '' then redis.call('HSET', KEYS[1], 'open', open) end
if due then
  local outcome = '{"due":%s,"at":%s,"state":"skipped","batch_id":null,"why":"%s","asked":%s,"missed":%s}'
  local why = 'the schedule was replaced while this run was being submitted'
  record(KEYS[3], outcome:format(due, ARGV[4], why, asked, missed))
end
if ARGV[3] == '1' then redis.call('PERSIST', KEYS[4]) end
return 1
