-- Before every script. Offsets of the header are those of relay/core/record.py, plus one.
local ZEROS8, ZEROS16 = string.rep('\0', 8), string.rep('\0', 16)
local HAS_VALUE, UNKNOWN, DERIVED, KEEP = 1, 4, 8, 16

-- Milliseconds of the server's clock. Tests and simulations send another one.
local function now_ms(given)
  if given ~= '' then
    return tonumber(given)
  end
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- A key of a foreign type is as good as absent: one such key must not stop a consumer.
local function text_of(...)
  local found = redis.pcall(...)
  return type(found) == 'string' and found or nil
end

local function epoch_of(key)
  local epoch = text_of('GET', key)
  return epoch and #epoch == 8 and epoch or nil
end

local function is_record(data, epoch)
  return data and #data >= 64 and data:sub(1, 2) == 'R\1' and data:sub(9, 16) == epoch
end

-- The header, or nil for what is absent, foreign or of another epoch.
local function header_of(key, epoch)
  local head = text_of('GETRANGE', key, 0, 63)
  return is_record(head, epoch) and head or nil
end

local function has(flags, flag)
  return math.floor(flags / flag) % 2 == 1
end

local function number_at(data, first)
  -- In brackets, because unpack also says where it stopped.
  return (struct.unpack('>I8', data, first))
end
