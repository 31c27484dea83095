-- Begins a claimed task. Returns its attempts so far and its fields, or nothing if it ended or was lost: then its entry
-- leaves the queue.
-- KEYS: task, queue. ARGV: group, entry, then the fields' names.
local status = redis.call('HGET', KEYS[1], 'status')
if status ~= 'queued' and status ~= 'running' then
  redis.call('XACK', KEYS[2], ARGV[1], ARGV[2])
  redis.call('XDEL', KEYS[2], ARGV[2])
  return false
end
redis.call('HSET', KEYS[1], 'status', 'running')
local attempts = redis.call('HINCRBY', KEYS[1], 'attempts', 1)
return {attempts, unpack(redis.call('HMGET', KEYS[1], unpack(ARGV, 3)))}
