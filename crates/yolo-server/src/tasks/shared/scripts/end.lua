-- Ends a task that has not ended: its answer is stored, and with that its entry leaves the queue. The tasks that ended
-- first are forgotten if there is no room for all. Returns the status it has now and whether this ended it, or nothing if
-- there is no such task.
-- KEYS: task, queue, bytes, ended tasks (each "bytes task"), their bytes. ARGV: group, status, answer, seconds to keep it,
-- bytes of it, most bytes of all that ended.
local held = redis.call('HMGET', KEYS[1], 'status', 'entry', 'bytes', 'idempotency')
if held[1] ~= 'queued' and held[1] ~= 'running' then
  return held[1] and {held[1], 0}
end
redis.call('HDEL', KEYS[1], 'picture')
redis.call('HSET', KEYS[1], 'status', ARGV[2], 'answer', ARGV[3])
redis.call('EXPIRE', KEYS[1], ARGV[4])
if held[4] then
  redis.call('EXPIRE', held[4], ARGV[4])
end
redis.call('XACK', KEYS[2], ARGV[1], held[2])
-- With the queue lost, the sum was lost too.
if redis.call('XDEL', KEYS[2], held[2]) == 1 then
  redis.call('DECRBY', KEYS[3], held[3])
end

redis.call('RPUSH', KEYS[4], ARGV[5] .. ' ' .. KEYS[1])
local bytes = redis.call('INCRBY', KEYS[5], ARGV[5])
while redis.call('LLEN', KEYS[4]) > 1 do
  local first_bytes, first = string.match(redis.call('LINDEX', KEYS[4], 0), '^(%d+) (.*)$')
  if bytes <= tonumber(ARGV[6]) and redis.call('EXISTS', first) == 1 then
    break
  end
  local key = redis.call('HGET', first, 'idempotency')
  redis.call('DEL', first, key or first)
  redis.call('LPOP', KEYS[4])
  bytes = redis.call('DECRBY', KEYS[5], first_bytes)
end
redis.call('EXPIRE', KEYS[4], ARGV[4])
redis.call('EXPIRE', KEYS[5], ARGV[4])
return {ARGV[2], 1}
