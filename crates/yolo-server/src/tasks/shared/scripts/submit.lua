-- Takes a task on. Returns {outcome, id}: new, known (the key's task), conflict or full.
-- KEYS: task, queue, bytes, idempotency key. ARGV: id, fingerprint, whether there is a key, most tasks, most bytes,
-- this one's bytes, seconds it may exist unfinished, then its fields and values.
if ARGV[3] == '1' then
  local first = redis.call('HMGET', KEYS[4], 'id', 'fingerprint')
  if first[1] then
    if first[2] ~= ARGV[2] then
      return {'conflict', first[1]}
    end
    return {'known', first[1]}
  end
end
local waiting = redis.call('XLEN', KEYS[2])
if waiting == 0 then
  redis.call('DEL', KEYS[3]) -- what a lost queue left in the sum ends here
end
local bytes = tonumber(redis.call('GET', KEYS[3]) or '0')
if waiting >= tonumber(ARGV[4]) or bytes + tonumber(ARGV[6]) > tonumber(ARGV[5]) then
  return {'full', ''}
end
local entry = redis.call('XADD', KEYS[2], '*', 'id', ARGV[1], 'bytes', ARGV[6])
redis.call('HSET', KEYS[1], 'status', 'queued', 'entry', entry, 'bytes', ARGV[6], unpack(ARGV, 8))
redis.call('EXPIRE', KEYS[1], ARGV[7])
redis.call('INCRBY', KEYS[3], ARGV[6])
if ARGV[3] == '1' then
  redis.call('HSET', KEYS[1], 'idempotency', KEYS[4])
  redis.call('HSET', KEYS[4], 'id', ARGV[1], 'fingerprint', ARGV[2])
  redis.call('EXPIRE', KEYS[4], ARGV[7])
end
return {'new', ARGV[1]}
