-- KEYS: epoch, progress.
local epoch = epoch_of(KEYS[1])
local found = redis.pcall('HGETALL', KEYS[2])
if not epoch or found.err or text_of('HGET', KEYS[2], 'epoch') ~= epoch then
  found = {}
end
return {epoch or false, found}
