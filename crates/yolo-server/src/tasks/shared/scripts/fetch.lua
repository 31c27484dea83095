-- Reads a claimed task. Returns its fields, or nothing if it ended or was lost: then its entry leaves the queue, and
-- its bytes the sum.
-- KEYS: task, queue, bytes. ARGV: group, entry, the entry's bytes, then the fields' names.
local status = redis.call('HGET', KEYS[1], 'status')
if status ~= 'queued' and status ~= 'running' then
  redis.call('XACK', KEYS[2], ARGV[1], ARGV[2])
  if redis.call('XDEL', KEYS[2], ARGV[2]) == 1 then
    redis.call('DECRBY', KEYS[3], ARGV[3])
  end
  return false
end
return redis.call('HMGET', KEYS[1], unpack(ARGV, 4))
