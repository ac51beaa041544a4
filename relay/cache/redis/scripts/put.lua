-- KEYS: epoch, record, stamps.  ARGV: clock, lease, first 8 bytes, version (8 bytes), last 8 bytes of the header, hard_ms,
-- payload, lease_ms, stamps.
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
    if text_of('GET', KEYS[i]) ~= ARGV[i + 6] then
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
-- The age of a value counts from its load, and the way of the put is part of it: nothing was loaded before the lease.
local now, granted = now_ms(ARGV[1]), number_at(head, 41) - tonumber(ARGV[8])
local load_ms = math.min(math.max(struct.unpack('>I4', ARGV[5], 5), now - granted), 4294967295)
local times = struct.pack('>I8', now) .. ARGV[5]:sub(1, 4) .. struct.pack('>I4', load_ms)
local record = ARGV[3] .. epoch .. head:sub(17, 24) .. ARGV[4] .. ZEROS16 .. times .. ARGV[7]
redis.call('SET', KEYS[2], record, 'PX', ARGV[6])
return 'ok'
