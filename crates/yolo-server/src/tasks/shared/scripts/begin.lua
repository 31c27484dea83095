-- Begins a task that was read. Returns how many servers ended while they ran it, or nothing if it ended meanwhile.
-- One that was handed back is queued again: only who ends without a word leaves it running.
-- KEYS: task.
local status = redis.call('HGET', KEYS[1], 'status')
if status == 'running' then
  return redis.call('HINCRBY', KEYS[1], 'ended_servers', 1)
end
if status ~= 'queued' then
  return false
end
redis.call('HSET', KEYS[1], 'status', 'running')
return tonumber(redis.call('HGET', KEYS[1], 'ended_servers') or '0')
