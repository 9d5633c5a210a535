-- The time by the server's clock: seconds since the epoch, with a fraction; and the same in whole microseconds.
return function()
  local time = redis.call('TIME')
  return time[1] + time[2] / 1000000, time[1] * 1000000 + time[2]
end
