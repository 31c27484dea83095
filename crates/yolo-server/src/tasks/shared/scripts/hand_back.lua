-- Hands a task back that its server will not end: whoever takes it over finds no server that died over it.
-- KEYS: task, queue. ARGV: group, entry, consumer.
local pending = redis.call('XPENDING', KEYS[2], ARGV[1], ARGV[2], ARGV[2], 1, ARGV[3])
if #pending == 1 and redis.call('HGET', KEYS[1], 'status') == 'running' then
  redis.call('HSET', KEYS[1], 'status', 'queued')
end
