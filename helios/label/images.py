"""The Lua that saves each key's image from before in the same atomic unit as the write, and the layout of its log.

All keys of the log stand in database 0 under `helios:undo:{log}:`. The braces are a hash tag: on a Redis Cluster, where
a script may only touch keys of one slot, each slot has a log of its own under a tag of that slot (helios.label.slots);
one Redis has one.

    ...runs             hash    run -> who holds its lease
    ...sequence         number  the order of images of overlapping runs
    ...<run>            hash    scope -> the number that the last mark gave; <database>:<key> -> the scope of its newest
                                image, and the fingerprint of what the run's last write left
    ...<run>:turn       number  changes with every mark and undo, for WATCH
    ...<run>:<scope>    hash    <database>:<key> -> the image from before the first write in this scope

An image is `<sequence> <scope of the image before it, or -> <who left it so: another run, u the same run, n nobody or
somebody without a run> <absolute expiry in ms, -1 for none, - for an absent key> <length of the fingerprint>
<fingerprint of what the run had left before this scope><DUMP>`. Redis has no transaction ids: the fingerprint is how a
change by somebody else is told from the run's own.
"""

import hashlib

LOGS = "helios:undo:"
HOME = "{log}"  # the place of the log of one Redis
PREFIX = f"{LOGS}{HOME}:"
RUNS = f"{PREFIX}runs"
SEQUENCE = f"{PREFIX}sequence"
OVER = "HELIOSOVER"

# Up to this size (of its DUMP, in bytes) a key's fingerprint covers its content; above it only type, length and expiry.
LARGEST_READ = 4096

# Whether a DUMP no larger than that is itself the fingerprint: it ends with a CRC64.
QUICK = "(encoding > 5 and encoding < 22 or encoding == 0 and not string.find(dump, 'HYLL', 1, true))"

# The functions that both sides of the log need; PREFIX and RUNS say where it stands. The first byte of a DUMP tells the
# encoding: hash tables (2 and 4, 22 and above with fields that expire) list their content in any order, so it is
# sorted; everything else is stable, and ends with a CRC64. A HyperLogLog keeps a cached count in bytes 9 to 16, which
# PFCOUNT changes.
STATE = f"""
local call = redis.call
local LENGTHS = {{string = 'STRLEN', list = 'LLEN', set = 'SCARD', zset = 'ZCARD', hash = 'HLEN', stream = 'XLEN'}}

local function rough(key, expiry)
  local kind = call('TYPE', key).ok
  return expiry .. '~' .. kind .. (LENGTHS[kind] and call(LENGTHS[kind], key) or '')
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
  if encoding == 2 or encoding == 4 then
    return expiry .. ':' .. unordered(key, encoding)
  elseif encoding >= 22 and call('TYPE', key).ok == 'hash' then
    return expiry .. '*' .. unordered(key, encoding)
  elseif encoding == 0 then
    local value = call('GET', key)
    if string.sub(value, 1, 4) == 'HYLL' then
      return expiry .. ':' .. redis.sha1hex(string.sub(value, 1, 8) .. string.sub(value, 17))
    end
  end
  return expiry .. ':' .. string.sub(dump, -8)
end

-- the fingerprint of a key ('' if absent), its DUMP and its expiry; only the first where a rough one is enough
local function look(key, roughly)
  if roughly then
    local expiry = call('PEXPIRETIME', key)
    return expiry == -2 and '' or rough(key, expiry)
  end
  local dump = call('DUMP', key)
  if not dump then return '' end
  local expiry, encoding = call('PEXPIRETIME', key), string.byte(dump)
  if expiry == -1 then expiry = '-1' end -- Lua writes a number slowly
  if #dump <= {LARGEST_READ} and {QUICK} then return expiry .. ':' .. string.sub(dump, -8), dump, expiry end
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
  local expiry = tonumber(string.match(was, '^(%d+)[:~*]'))
  return (expiry and expiry <= milliseconds()) or string.find(was, '^%-1%*') ~= nil
end

local function split(known)
  local space = string.find(known, ' ', 1, true)
  return string.sub(known, 1, space - 1), string.sub(known, space + 1)
end

local beside -- asked for once in each call, not for each key
local function others(run)
  if beside then return beside end
  beside = {{}}
  for _, id in ipairs(call('HKEYS', RUNS)) do
    if id ~= run then beside[#beside + 1] = id end
  end
  return beside
end

-- the run that left a key as it is, but for one; `roughly` gives its rough fingerprint, where the run noted such a one
local function left_by_another_run(run, field, is, roughly)
  for _, id in ipairs(others(run)) do
    local known = call('HGET', PREFIX .. id, field)
    if known then
      local _, was = split(known)
      if same(was, is) then return id end
      if string.find(was, '^%-?%d+~') and was == roughly() then return id end
    end
  end
end

local function read(image)
  local ends, sequence, before, left, expiry, length =
    select(2, string.find(image, '^(%d+) (%S+) (%w+) (%S+) (%d+) '))
  return {{
    sequence = tonumber(sequence), before = before, left = left, expiry = tonumber(expiry),
    was = string.sub(image, ends + 1, ends + length), dump = string.sub(image, ends + length + 1),
  }}
end
"""

# KEYS: what may be written. ARGV: mode, run, database (or, on a Redis Cluster, the slot's tag with its braces), then of
# each command its length and its words.
# Modes: `one` and `many` run the commands and answer with one reply or all; `before` only saves, `after` only notes
# what is there now. `same` runs one command on each key: ARGV goes on with its name, how many words follow each key,
# and those words; where all answer with one status, it is given once. An error before the commands ends the script, so
# that nothing is written without its image.
RECORD = (
    f"""
local mode, run, database = ARGV[1], ARGV[2], ARGV[3]
local PREFIX, RUNS, SEQUENCE = '{PREFIX}', '{RUNS}', '{SEQUENCE}'
if string.byte(database) == 123 then
  PREFIX = '{LOGS}' .. database .. ':'
  RUNS, SEQUENCE, database = PREFIX .. 'runs', PREFIX .. 'sequence', '0'
end
local ran, reply, scope = false, nil, nil

-- One key, nothing unusual: what programs do most, without the price of all that follows.
if mode == 'one' and database == '0' and not KEYS[2] then
  local call, key, left = redis.call, KEYS[1], PREFIX .. run
  local field = '0:' .. key
  local found = call('HMGET', left, 'scope', field)
  scope = found[1]
  if not scope then return redis.error_reply('{OVER}') end
  local dump, expiry, is = call('DUMP', key), '-', ''
  if dump then is = '?' end
  if dump and #dump <= {LARGEST_READ} then
    local encoding = string.byte(dump)
    expiry = call('PEXPIRETIME', key)
    if expiry == -1 then expiry = '-1' end
    if {QUICK} then is = expiry .. ':' .. string.sub(dump, -8) end
  end
  if (not found[2] and is ~= '?' and call('HLEN', RUNS) == 1) or found[2] == scope .. ' ' .. is then
    if not found[2] then
      local image = call('INCR', SEQUENCE) .. ' - n ' .. expiry .. ' 0 ' .. (dump or '')
      call('HSET', left .. ':' .. scope, field, image)
    end
    reply, ran = redis.pcall(unpack(ARGV, 5)), true
    dump = call('DUMP', key)
    if dump and #dump <= {LARGEST_READ} then
      local encoding = string.byte(dump)
      if {QUICK} then
        expiry = call('PEXPIRETIME', key)
        if expiry == -1 then expiry = '-1' end
        call('HSET', left, field, scope .. ' ' .. expiry .. ':' .. string.sub(dump, -8))
        return reply
      end
    elseif not dump then
      call('HSET', left, field, scope .. ' ')
      return reply
    end
  end
end
"""
    + STATE
    + f"""
local left, elsewhere, sequence, images = PREFIX .. run, database ~= '0', nil, {{}}
if ran then
  call('HSET', left, '0:' .. KEYS[1], scope .. ' ' .. look(KEYS[1], false))
  return reply
end

if elsewhere then call('SELECT', 0) end
scope = call('HGET', left, 'scope')
if not scope then return redis.error_reply('{OVER}') end
local log, head = left .. ':' .. scope, scope .. ' '

local function save(field, before, left_by, was, dump, expiry)
  sequence = sequence or call('INCR', SEQUENCE)
  images[#images + 1] = field
  was = was or ''
  local head = sequence .. ' ' .. before .. ' ' .. left_by .. ' ' .. (expiry or '-')
  images[#images + 1] = head .. ' ' .. #was .. ' ' .. was .. (dump or '')
end

local function keep(name, flat)
  for first = 1, #flat, 1000 do call('HSET', name, unpack(flat, first, math.min(first + 999, #flat))) end
end

-- Saves the image of a key, if this scope has none, or if somebody else wrote since: then theirs is the state to go
-- back to. Tells whether a rough fingerprint is enough.
local function before(key, field, known)
  local roughly = known and string.find(known, '^%d+ %-?%d+~') and split(known) == scope
  if elsewhere then call('SELECT', database) end
  local is, dump, expiry = look(key, roughly)
  if known == head .. is then
    if elsewhere then call('SELECT', 0) end
    return roughly
  end
  local at, was
  if known then at, was = split(known) end
  local unchanged = was and same(was, is)
  if roughly and not unchanged then is, dump, expiry = look(key, false) end
  if elsewhere then call('SELECT', 0) end
  local left_by = unchanged and 'u' or others(run)[1] and left_by_another_run(run, field, is, function()
    if elsewhere then call('SELECT', database) end
    local found = look(key, true)
    if elsewhere then call('SELECT', 0) end
    return found
  end) or 'n'
  if at ~= scope then
    save(field, at or '-', left_by, was, dump, expiry)
  elseif left_by == 'n' then
    local image = read(call('HGET', log, field) or '0 - n - 0 ')
    save(field, image.before, left_by, image.was, dump, expiry)
  end
  return roughly
end

local fields, known, roughly = {{}}, {{}}, {{}}
for i, key in ipairs(KEYS) do fields[i] = database .. ':' .. key end
for first = 1, #fields, 1000 do
  local some = call('HMGET', left, unpack(fields, first, math.min(first + 999, #fields)))
  for i, each in ipairs(some) do known[first + i - 1] = each end
end
-- Keys that are all new, to everybody: one image serves them all.
local function all_new()
  for i = 1, #KEYS do
    if known[i] then return false end
  end
  for first = 1, #KEYS, 1000 do
    if call('EXISTS', unpack(KEYS, first, math.min(first + 999, #KEYS))) > 0 then return false end
  end
  return not others(run)[1]
end

if (mode == 'many' or mode == 'same') and not elsewhere and all_new() then
  local image = call('INCR', SEQUENCE) .. ' - n - 0 '
  for i = 1, #KEYS do
    images[2 * i - 1] = fields[i]
    images[2 * i] = image
  end
else
  for i, key in ipairs(KEYS) do
    if mode ~= 'after' then
      roughly[i] = before(key, fields[i], known[i])
    else
      roughly[i] = known[i] and string.find(known[i], ':~', 1, true) ~= nil
    end
  end
end
keep(log, images)

local replies, place, alike = {{}}, 4, true
if elsewhere then call('SELECT', database) end
if mode == 'same' then
  local name, more = ARGV[4], tonumber(ARGV[5])
  for i, key in ipairs(KEYS) do
    local answer = redis.pcall(name, key, unpack(ARGV, 6 + (i - 1) * more, 5 + i * more))
    alike = alike and type(answer) == 'table' and answer.ok and answer.ok == (replies[1] or answer).ok
    replies[i] = answer
  end
else
  while ARGV[place] do
    local length = tonumber(ARGV[place])
    replies[#replies + 1] = redis.pcall(unpack(ARGV, place + 1, place + length))
    place = place + length + 1
  end
end

local now = {{}}
for i, key in ipairs(KEYS) do
  local is = look(key, roughly[i])
  now[2 * i - 1] = fields[i]
  now[2 * i] = head .. is
end
if elsewhere then call('SELECT', 0) end
keep(left, now)
if mode == 'one' or mode == 'same' and alike then return replies[1] end
return replies
"""
)

RECORD_SHA = hashlib.sha1(RECORD.encode(), usedforsecurity=False).hexdigest()
