-- KEYS: epoch, record, stamps.  ARGV: clock, lease, first 8 bytes, version (8 bytes), last 8 bytes of the header, hard_ms,
-- payload, stamps.
local epoch = epoch_of(KEYS[1])
if not epoch then
  return 'closed'
end
local head = text_of('GETRANGE', KEYS[2], 0, 63)
if not head or #head < 64 or head:sub(1, 2) ~= 'R\1' then
  return 'lease'
end
if head:sub(9, 16) ~= epoch then
  return 'epoch'
end
local flags = head:byte(3)
if has(flags, UNKNOWN) then
  return 'unknown'
end
if ARGV[2] == ZEROS8 or head:sub(33, 40) ~= ARGV[2] then
  return 'lease'
end
if has(ARGV[3]:byte(3), DERIVED) then
  for i = 3, #KEYS do
    if text_of('GET', KEYS[i]) ~= ARGV[i + 5] then
      return 'stamps'
    end
  end
else
  local least = number_at(head, 17)
  if has(flags, HAS_VALUE) then
    least = math.max(least, number_at(head, 25))
  end
  if number_at(ARGV[4], 1) < least then
    return 'floor'
  end
end
local written = struct.pack('>I8', now_ms(ARGV[1]))
local record = ARGV[3] .. epoch .. head:sub(17, 24) .. ARGV[4] .. ZEROS16 .. written .. ARGV[5] .. ARGV[7]
redis.call('SET', KEYS[2], record, 'PX', ARGV[6])
return 'ok'
