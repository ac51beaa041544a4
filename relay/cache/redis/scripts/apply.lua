-- KEYS: epoch, progress, records, stamps.  ARGV: token, tombstone_ms, unknown_ms, count of records, bumps, and for each
-- position: field, expected, offset. A bump is 9 bytes: a kind, and the version in big-endian.
--
-- All of it is idempotent, and the progress comes last: a batch that was cut short is applied again.
local token, tombstone_ms, count, bumps = ARGV[1], ARGV[2], tonumber(ARGV[4]), ARGV[5]
local epoch = epoch_of(KEYS[1])
if not epoch then
  return {false, 0}
end

local fields = {'epoch'}
for i = 6, #ARGV, 3 do
  fields[#fields + 1] = ARGV[i]
end
local offsets = redis.pcall('HMGET', KEYS[2], unpack(fields))
if offsets.err then
  return {epoch, 1}
end
local known = offsets[1] == epoch
for i = 2, #fields do
  offsets[i] = known and tonumber(offsets[i] or nil)
  if (offsets[i] or 0) < tonumber(ARGV[3 * i + 1]) then
    return {epoch, 1}
  end
end

local call, sub, pack = redis.call, string.sub, struct.pack
local VERSIONED, UNVERSIONED = 0, 1
local BLANK = 'R\1' .. string.rep('\0', 6) .. epoch
local ZEROS40 = string.rep('\0', 40)
local ABSENT = BLANK .. ZEROS8 .. ZEROS40
for i = 1, count do
  local key, at = KEYS[i + 2], 9 * i - 8
  local kind = bumps:byte(at)
  local head = header_of(key, epoch)
  if kind == VERSIONED and not head then
    call('SET', key, BLANK .. sub(bumps, at + 1, at + 8) .. ZEROS40, 'PX', tombstone_ms)
  elseif kind == VERSIONED then
    local flags, floor, version = head:byte(3), number_at(head, 17), number_at(bumps, at + 1)
    local raised = version > floor and sub(bumps, at + 1, at + 8) or sub(head, 17, 24)
    local drops = has(flags, HAS_VALUE) and not has(flags, KEEP) and number_at(head, 25) < math.max(floor, version)
    local clears = has(flags, UNKNOWN) and version >= floor
    if drops or clears or (version > floor and not has(flags, HAS_VALUE) and not has(flags, UNKNOWN)) then
      call('SET', key, BLANK .. raised .. ZEROS8 .. sub(head, 33, 48) .. ZEROS16, 'PX', tombstone_ms)
    elseif version > floor then
      -- In place, so that the value keeps its end.
      call('SETRANGE', key, 16, raised)
    end
  elseif kind == UNVERSIONED then
    -- Nothing can be compared with it: neither the value nor what is being loaded may stay.
    if head and sub(head, 17, 24) == ZEROS8 then
      call('DEL', key)
    elseif head and head ~= BLANK .. sub(head, 17, 24) .. ZEROS40 then
      call('SET', key, BLANK .. sub(head, 17, 24) .. ZEROS40, 'PX', tombstone_ms)
    end
  else
    head = head or ABSENT
    local floor = math.max(number_at(head, 17), number_at(bumps, at + 1))
    local after = 'R\1' .. string.char(UNKNOWN) .. sub(BLANK, 4) .. pack('>I8', floor) .. ZEROS40
    if after ~= head then
      call('SET', key, after, 'PX', ARGV[3])
    end
  end
end

for i = count + 3, #KEYS do
  -- A stamp that is missing makes every record that depends on it a miss already.
  call('SET', KEYS[i], token, 'XX', 'KEEPTTL')
end

if not known then
  call('DEL', KEYS[2])
end
local notes = {'epoch', epoch}
for i = 2, #fields do
  if not offsets[i] or tonumber(ARGV[3 * i + 2]) > offsets[i] then
    notes[#notes + 1] = fields[i]
    notes[#notes + 1] = ARGV[3 * i + 2]
  end
end
call('HSET', KEYS[2], unpack(notes))
return {epoch, 0}
