-- Ends a task that has not ended: its answer is stored, and with that its entry leaves the queue. Returns the status it
-- has now, or nothing if there is no such task.
-- KEYS: task, queue, bytes. ARGV: group, status, answer, seconds to keep it.
local held = redis.call('HMGET', KEYS[1], 'status', 'entry', 'bytes', 'idempotency')
if held[1] ~= 'queued' and held[1] ~= 'running' then
  return held[1]
end
redis.call('HSET', KEYS[1], 'status', ARGV[2], 'answer', ARGV[3])
redis.call('HDEL', KEYS[1], 'picture')
redis.call('EXPIRE', KEYS[1], ARGV[4])
if held[4] then
  redis.call('EXPIRE', held[4], ARGV[4])
end
redis.call('XACK', KEYS[2], ARGV[1], held[2])
redis.call('XDEL', KEYS[2], held[2])
redis.call('DECRBY', KEYS[3], held[3])
return ARGV[2]
