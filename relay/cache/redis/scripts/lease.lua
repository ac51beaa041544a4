-- KEYS: epoch, record, stamps.  ARGV: clock, token, want, refresh, lease_ms, grace_ms, stamp_ms.
local now = now_ms(ARGV[1])
local token, want, lease_ms = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[5])
local epoch = epoch_of(KEYS[1])
if not epoch then
  return {'closed', 0, false, false, now}
end

local stamps = {}
for i = 3, #KEYS do
  local stamp = text_of('GET', KEYS[i])
  if not stamp or #stamp ~= 8 then
    stamp = token
  end
  redis.call('SET', KEYS[i], stamp, 'PX', ARGV[7])
  stamps[#stamps + 1] = stamp
end

local data = text_of('GET', KEYS[2])
if not is_record(data, epoch) then
  data = nil
end
local lease = token .. struct.pack('>I8', now + lease_ms)
local shortest = lease_ms + tonumber(ARGV[6])
local grant, floor = 'granted', 0
if not data then
  local fresh = 'R\1' .. string.rep('\0', 6) .. epoch .. ZEROS16 .. lease .. ZEROS16
  redis.call('SET', KEYS[2], fresh, 'PX', shortest)
else
  local flags, version = data:byte(3), number_at(data, 25)
  floor = number_at(data, 17)
  local usable = has(flags, HAS_VALUE)
  if has(flags, DERIVED) then
    usable = usable and version == want
  else
    usable = usable and version >= floor and version >= want
  end
  if has(flags, UNKNOWN) then
    grant = 'unknown'
  elseif usable and ARGV[4] == '0' then
    grant = 'usable'
  elseif data:sub(33, 40) ~= ZEROS8 and data:sub(33, 40) ~= token and number_at(data, 41) > now then
    grant = 'busy'
  else
    redis.call('SETRANGE', KEYS[2], 32, lease)
    -- The end of a value is a promise, and is not moved by those who want to load another one.
    if not has(flags, HAS_VALUE) and redis.call('PTTL', KEYS[2]) < shortest then
      redis.call('PEXPIRE', KEYS[2], shortest)
    end
  end
end
return {grant, floor, epoch, data or false, now, unpack(stamps)}
