-- The first job of the first non-empty queue, moved to its intermediate list as RQ's own safe dequeue does.
-- A queue one of whose keys is of a foreign type is passed over: it must not stop the others.
-- An entry that can be no job's id is removed here: it may be too long to be loaded.
-- KEYS: queue lists in order of preference.
-- ARGV: most bytes of an id.
-- Returns {position, job id, 1 if it was removed} or nothing.
local function is(key, kind)
  local found = redis.call('TYPE', key).ok
  return found == 'none' or found == kind
end

for position, key in ipairs(KEYS) do
  local moved = key .. ':intermediate'
  if is(key, 'list') and is(moved, 'list') and is('rq:wip:' .. key:sub(10), 'zset') then
    local id = redis.call('LMOVE', key, moved, 'LEFT', 'RIGHT')
    if id and (#id > tonumber(ARGV[1]) or id:find('[^%w_-]')) then
      redis.call('RPOP', moved)
      return {position, id:sub(1, 40), 1}
    end
    if id then return {position, id, 0} end
  end
end
return false
