-- KEYS: epoch, record.  ARGV: lease.
local epoch = epoch_of(KEYS[1])
local head = epoch and header_of(KEYS[2], epoch)
if head and ARGV[1] ~= ZEROS8 and head:sub(33, 40) == ARGV[1] then
  if head:byte(3) == 0 and head:sub(17, 24) == ZEROS8 then
    redis.call('DEL', KEYS[2])
  else
    redis.call('SETRANGE', KEYS[2], 32, ZEROS16)
  end
end
return 'ok'
