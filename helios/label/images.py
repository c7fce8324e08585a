"""The Lua that saves each key's image from before in the same atomic unit as the write, and the layout of its log.

All keys of the log stand in database 0 under `helios:undo:{log}:`. The braces are a hash tag: on a Redis Cluster, where
a script may only touch keys of one slot, each slot would have a log under a tag of that slot; one Redis has one.

    ...runs             hash    run -> its scope now: the number that the last mark gave
    ...owners           hash    run -> who holds its lease
    ...sequence         number  the order of images of overlapping runs
    ...<run>:<scope>    hash    <database>:<key> -> the image from before the first write in this scope
    ...<run>:after      hash    <database>:<key> -> the scope of its newest image, and what the run's last write left

An image is `<sequence> <scope of the image before it, or -> <1 where that one's after was found unchanged> <absolute
expiry in ms, -1 for none, - for an absent key> <DUMP>`. What was left behind is a fingerprint: Redis has no transaction
ids, so this is how a change by somebody else is told from the run's own.
"""

import hashlib

PREFIX = "helios:undo:{log}:"
RUNS = f"{PREFIX}runs"
OWNERS = f"{PREFIX}owners"
SEQUENCE = f"{PREFIX}sequence"
OVER = "HELIOSOVER"

# Up to this size (of its DUMP, in bytes) a key's fingerprint covers its content; above it only type, length and expiry.
LARGEST_READ = 4096

# The functions that both sides of the log need. The first byte of a DUMP tells the encoding: hash tables (2 and 4, 22
# and above with fields that expire) list their content in any order, so it is sorted; everything else is stable, and
# ends with a CRC64. A HyperLogLog keeps a cached count in bytes 9 to 16, which PFCOUNT changes.
STATE = f"""
local PREFIX, RUNS, SEQUENCE = '{PREFIX}', '{RUNS}', '{SEQUENCE}'
local call = redis.call
local LENGTHS = {{string = 'STRLEN', list = 'LLEN', set = 'SCARD', zset = 'ZCARD', hash = 'HLEN', stream = 'XLEN'}}

local function rough(key, expiry)
  local kind = call('TYPE', key).ok
  return expiry .. ':~' .. kind .. (LENGTHS[kind] and call(LENGTHS[kind], key) or '')
end

local function lasting_fields(key)
  local names, lasting = call('HKEYS', key), {{}}
  if #names == 0 then return lasting end
  for i, at in ipairs(call('HPEXPIRETIME', key, 'FIELDS', #names, unpack(names))) do
    if at == -1 then
      lasting[#lasting + 1] = #names[i] .. ':' .. names[i] .. call('HGET', key, names[i])
    end
  end
  return lasting
end

local function unordered(key, encoding)
  local parts
  if encoding == 2 then
    parts = call('SMEMBERS', key)
    for i, member in ipairs(parts) do parts[i] = #member .. ':' .. member end
  elseif encoding == 4 then
    local flat = call('HGETALL', key)
    parts = {{}}
    for i = 1, #flat, 2 do parts[#parts + 1] = #flat[i] .. ':' .. flat[i] .. flat[i + 1] end
  else
    parts = lasting_fields(key)
  end
  table.sort(parts)
  return redis.sha1hex(table.concat(parts, ';'))
end

local function fingerprint(key, dump, expiry)
  if #dump > {LARGEST_READ} then return rough(key, expiry) end
  local encoding = string.byte(dump)
  if encoding == 0 and string.find(string.sub(dump, 1, 16), 'HYLL', 1, true) then
    local value = call('GET', key)
    return expiry .. ':' .. redis.sha1hex(string.sub(value, 1, 8) .. string.sub(value, 17))
  elseif encoding == 2 or encoding == 4 then
    return expiry .. ':' .. unordered(key, encoding)
  elseif encoding >= 22 and call('TYPE', key).ok == 'hash' then
    return expiry .. ':h' .. unordered(key, encoding)
  end
  return expiry .. ':' .. #dump .. string.sub(dump, -8)
end

-- the fingerprint of a key ('' if absent), its DUMP and its expiry; only the first where a rough one is enough
local function look(key, roughly)
  if roughly then
    local expiry = call('PEXPIRETIME', key)
    return expiry == -2 and '' or rough(key, expiry)
  end
  local dump = call('DUMP', key)
  if not dump then return '' end
  local expiry = call('PEXPIRETIME', key)
  return fingerprint(key, dump, expiry), dump, expiry
end

local function milliseconds()
  local time = call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- whether nobody changed the key since; that it, or all its fields, expired is no change by anybody
local function same(was, is)
  if was == is then return true end
  if is ~= '' or was == '' then return false end
  local expiry = tonumber(string.match(was, '^(%d+):'))
  return (expiry and expiry <= milliseconds()) or string.find(was, '^%-1:h') ~= nil
end

local function split(known)
  local space = string.find(known, ' ', 1, true)
  return string.sub(known, 1, space - 1), string.sub(known, space + 1)
end

local function others(run)
  local found = {{}}
  for _, id in ipairs(call('HKEYS', RUNS)) do
    if id ~= run then found[#found + 1] = id end
  end
  return found
end

local function left_by_another_run(run, field, is)
  for _, id in ipairs(others(run)) do
    local known = call('HGET', PREFIX .. id .. ':after', field)
    if known then
      local _, was = split(known)
      if was == is then return true end
    end
  end
  return false
end
"""

# KEYS: the runs, then the keys to be written. ARGV: mode, run, database, then of each command its length and its words.
# Modes: `one` and `many` run the commands and answer with one reply or all; `before` only saves, `after` only notes
# what is there now. An error before the commands ends the script, so that nothing is written without its image.
RECORD = (
    STATE
    + f"""
local mode, run, database = ARGV[1], ARGV[2], ARGV[3]
local elsewhere = database ~= '0'
local function at(number) if elsewhere then call('SELECT', number) end end

at('0')
local scope = call('HGET', RUNS, run)
if not scope then return redis.error_reply('{OVER}') end
local log, after = PREFIX .. run .. ':' .. scope, PREFIX .. run .. ':after'

local keys, fields, known = {{}}, {{}}, {{}}
for i = 2, #KEYS do
  keys[i - 1] = KEYS[i]
  fields[i - 1] = database .. ':' .. KEYS[i]
end
for first = 1, #fields, 1000 do
  local some = call('HMGET', after, unpack(fields, first, math.min(first + 999, #fields)))
  for i, each in ipairs(some) do known[first + i - 1] = each end
end

local scopes, left, roughly, sequence = {{}}, {{}}, {{}}, nil
for i = 1, #fields do
  if known[i] then
    scopes[i], left[i] = split(known[i])
    roughly[i] = scopes[i] == scope and string.find(left[i], ':~', 1, true) ~= nil
  end
end

local function save(i, unchanged, dump, expiry)
  sequence = sequence or call('INCR', SEQUENCE)
  local before = scopes[i] or '-'
  if before == scope then -- somebody else wrote in between: theirs is the state to go back to
    before = string.match(call('HGET', log, fields[i]), '^%d+ (%S+)')
  end
  local head = sequence .. ' ' .. before .. ' ' .. (unchanged and 1 or 0) .. ' '
  call('HSET', log, fields[i], head .. (expiry or '-') .. ' ' .. (dump or ''))
end

if mode ~= 'after' then
  at(database)
  local found = {{}}
  for i, key in ipairs(keys) do found[i] = {{look(key, roughly[i])}} end
  at('0')
  for i, key in ipairs(keys) do
    local is, dump, expiry = unpack(found[i], 1, 3)
    local unchanged = left[i] and same(left[i], is)
    if scopes[i] ~= scope then
      save(i, unchanged, dump, expiry)
    elseif not unchanged and not left_by_another_run(run, fields[i], is) then
      if roughly[i] then
        at(database)
        is, dump, expiry = look(key, false)
        at('0')
      end
      save(i, false, dump, expiry)
    end
  end
end

local replies, place = {{}}, 4
at(database)
while ARGV[place] do
  local length = tonumber(ARGV[place])
  replies[#replies + 1] = redis.pcall(unpack(ARGV, place + 1, place + length))
  place = place + length + 1
end

local now = {{}}
for i, key in ipairs(keys) do
  now[#now + 1] = fields[i]
  now[#now + 1] = scope .. ' ' .. look(key, roughly[i])
end
at('0')
for first = 1, #now, 1000 do call('HSET', after, unpack(now, first, math.min(first + 999, #now))) end
if mode == 'one' then return replies[1] end
return replies
"""
)

RECORD_SHA = hashlib.sha1(RECORD.encode(), usedforsecurity=False).hexdigest()
