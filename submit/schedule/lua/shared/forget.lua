-- Remove a schedule and its file, whatever lies there.
return function(info)
  local id = redis.pcall('HGET', info, 'id')
  if type(id) == 'string' and #id < 100 then redis.call('UNLINK', info .. ':prompts:' .. id) end
  return redis.call('UNLINK', info)
end
