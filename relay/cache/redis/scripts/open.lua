-- KEYS: epoch, progress.  ARGV: token, cause, and for each position: field, offset.
local epoch = epoch_of(KEYS[1])
if not epoch or text_of('HGET', KEYS[2], 'epoch') ~= epoch then
  redis.call('DEL', KEYS[2])
end
redis.call('HSET', KEYS[2], 'epoch', ARGV[1], 'cause', unpack(ARGV, 2))
-- Last: a tier that is open has its progress.
redis.call('SET', KEYS[1], ARGV[1])
return ARGV[1]
