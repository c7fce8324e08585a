"""A run begins, marks a point, and goes back to it, in batches of which each is whole or not at all."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from redis import Redis

from helios.errors import RecordingError
from helios.label.images import STATE
from helios.label.slots import prefix, tag
from helios.testing.redis_log.places import patiently, servers_of
from helios.testing.redis_log.scripts import Script, shown
from helios.testing.redis_log.slots import CLOSE, OPEN, logs_of, logs_there, release

BATCH = 200
OLDEST = 7

# ARGV: run, the first scope to undo, the scope and cursor to go on with, how many images to look at.
# Newest scope first. Answers with the scope and cursor to go on with (-1: done), how many keys were deleted, restored,
# and already as they were, and which were kept.
UNDO = Script(
    STATE
    + """
local run, since, scope, cursor, count = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], ARGV[5]
local left, rest = PREFIX .. run, others(run)
local deleted, restored, kept, chosen = 0, 0, {}, '0'

local function at(database)
  if chosen ~= database then
    call('SELECT', database)
    chosen = database
  end
end

local function newest()
  for each = tonumber(call('HGET', left, 'scope') or '-1'), since, -1 do
    if call('EXISTS', PREFIX .. run .. ':' .. each) == 1 then return each end
  end
  return -1
end

if scope < 0 then scope, cursor = newest(), '0' end
if scope < 0 then return {-1, '0', 0, 0, kept} end
local log = PREFIX .. run .. ':' .. scope

local function written(image)
  local head = image.sequence .. ' ' .. image.before .. ' ' .. image.left .. ' ' .. (image.expiry or '-')
  return head .. ' ' .. #image.was .. ' ' .. image.was .. (image.dump or '')
end

-- The images of a key that were left by a run, in the logs of the others; the earliest first.
local function saved_over(field)
  local found = {}
  for _, id in ipairs(rest) do
    local known = call('HGET', PREFIX .. id, field)
    local at = known and split(known) or '-'
    while at ~= '-' do
      local name = PREFIX .. id .. ':' .. at
      local theirs = call('HGET', name, field)
      if not theirs then break end
      local image = read(theirs)
      if image.left == run then found[#found + 1] = {run = id, known = known, log = name, image = image} end
      at = image.before
    end
  end
  table.sort(found, function(a, b) return a.image.sequence < b.image.sequence end)
  return found
end

-- The next image that another run saved over what is being undone takes this one's content; and the run takes over what
-- else there is of this run in the key, when that was all.
local function hand_over(field, image, was, is)
  local heir
  local found = saved_over(field)
  for _, each in ipairs(found) do
    if not heir and each.image.sequence > image.sequence then
      heir = each
      each.image.expiry, each.image.dump = image.expiry, image.dump
      each.image.left = image.left == 'u' and run or image.left
    elseif heir and image.before == '-' then
      each.image.left = each.run == heir.run and 'u' or heir.run
    end
  end
  if not heir then return false end
  for _, each in ipairs(found) do call('HSET', each.log, field, written(each.image)) end
  if same(was, is) then call('HSET', PREFIX .. heir.run, field, split(heir.known) .. ' ' .. is) end
  return true
end

-- What another run had left is there again.
local function give_back(field, owner, is)
  local known = call('HGET', PREFIX .. owner, field)
  if known then call('HSET', PREFIX .. owner, field, split(known) .. ' ' .. is) end
end

local function put_back(key, image, is)
  if not image.expiry or (image.expiry >= 0 and image.expiry <= milliseconds()) then
    deleted = deleted + call('UNLINK', key)
  elseif image.expiry < 0 then
    call('RESTORE', key, 0, image.dump, 'REPLACE')
    restored = restored + 1
  else
    call('RESTORE', key, image.expiry, image.dump, 'REPLACE', 'ABSTTL')
    restored = restored + 1
  end
end

call('HDEL', left, '') -- a script that has written already is not refused for want of memory
-- A command whose image is saved, and which is not done yet, has to save it again.
if call('EXISTS', left .. ':turn') == 1 then call('INCR', left .. ':turn') end
local page = call('HSCAN', log, cursor, 'COUNT', count)
local fields, images, gone, forgotten, seen = {}, {}, {}, {}, {}
for i = 1, #page[2], 2 do
  local field = page[2][i]
  if not seen[field] then -- a scan may show one twice
    seen[field] = true
    fields[#fields + 1] = field
    images[#images + 1] = page[2][i + 1]
  end
end
local all = {}
for first = 1, #fields, 1000 do
  local some = call('HMGET', left, unpack(fields, first, math.min(first + 999, #fields)))
  for i, each in ipairs(some) do all[first + i - 1] = each end
end

for i, field in ipairs(fields) do
  local image, known = read(images[i]), all[i]
  local database, key = string.match(field, '^(%d+):(.*)$')
  local scope_of, was
  if known then scope_of, was = split(known) end
  -- what was written again, in a newer scope, while this goes on, comes first
  if not known or tonumber(scope_of) <= scope then
    if known then
      local now = image.was
      at(database)
      local is = look(key, string.find(was, '^%-?%d+~') ~= nil)
      at('0')
      local handed = #rest > 0 and hand_over(field, image, was, is)
      if not handed and same(was, is) then
        at(database)
        put_back(key, image)
        if image.left ~= 'n' then is = look(key, false) end
        at('0')
        if image.left == 'u' then
          now = is
        elseif image.left ~= 'n' then
          give_back(field, image.left, is)
        end
      elseif not handed and not (is == '' and not image.expiry) and not left_by_another_run(run, field, is, function()
        at(database)
        local found = look(key, true)
        at('0')
        return found
      end) then
        kept[#kept + 1] = field
      end
      if image.before == '-' then
        forgotten[#forgotten + 1] = field
      else
        call('HSET', left, field, image.before .. ' ' .. now)
      end
    end
    gone[#gone + 1] = field
  end
end
for first = 1, #gone, 1000 do call('HDEL', log, unpack(gone, first, math.min(first + 999, #gone))) end
for first = 1, #forgotten, 1000 do
  call('HDEL', left, unpack(forgotten, first, math.min(first + 999, #forgotten)))
end
cursor = page[1]
if cursor == '0' then scope = newest() end
return {scope, cursor, deleted, restored, kept}
"""
)

BEGIN = Script("""
if redis.call('HSETNX', RUNS, ARGV[1], ARGV[2]) == 0 then return 0 end
redis.call('HSET', PREFIX .. ARGV[1], 'scope', 0)
redis.call('SET', PREFIX .. ARGV[1] .. ':turn', 0)
return 1
""")

# Answers with the new scope, the run's owner, and the slots that the run has open; nothing where it has not begun.
MARK = Script("""
local owner = redis.call('HGET', RUNS, ARGV[1])
if not owner then return {} end
redis.call('INCR', PREFIX .. ARGV[1] .. ':turn')
local scope = redis.call('HINCRBY', PREFIX .. ARGV[1], 'scope', 1)
return {scope, owner, redis.call('HKEYS', PREFIX .. ARGV[1] .. ':slots')}
""")

# What a run wrote stands from here on, and the run can be closed.
FORGET = Script("""
local scope = redis.call('HGET', PREFIX .. ARGV[1], 'scope')
if not scope then return 0 end
for each = tonumber(scope), 0, -1 do redis.call('UNLINK', PREFIX .. ARGV[1] .. ':' .. each) end
return 1
""")

RUNS_AND_OWNERS = Script("return redis.call('HGETALL', RUNS)")


@dataclass(frozen=True)
class Change:
    """What was done about keys: `what` is deleted, restored or kept; a kept key is named, with the reason."""

    key: str
    what: str
    count: int
    why: str = ""


def begin(client: Redis, run: int, owner: str) -> None:
    """Register a run, so that labelled clients may write.

    Args:
        client: a plain client.
        run: the run's id.
        owner: the PostgreSQL database and schema that hold its lease, and so know whether it is dead.

    Raises:
        RecordingError: this Redis is too old, or evicts keys as it likes, so the log would not be safe in it.

    """
    for each_info in patiently(client, lambda: [each.info() for each in servers_of(client)]):
        refuse_unfit(each_info)
    BEGIN.run(client, run, owner)


def refuse_unfit(server: Mapping[str, Any]) -> None:
    """Let pass only a server that can keep a log; `server` is what INFO says."""
    version = str(server.get("redis_version", "0"))
    if int(version.partition(".")[0]) < OLDEST:
        raise RecordingError(f"this Redis is {version}, too old for the undo log: use Redis 7 or newer, or Valkey")
    policy = str(server.get("maxmemory_policy", "noeviction"))
    if policy.startswith("allkeys") and int(server.get("maxmemory", 0)) > 0:
        raise RecordingError(
            f"this Redis evicts any key when it is full (maxmemory-policy {policy}), the undo log among them: "
            "set it to noeviction, or give the tests a Redis of their own"
        )


def mark(client: Redis, run: int) -> int:
    """Begin a new scope, in every process of the run, and give the point to undo back to.

    Raises:
        RecordingError: the run has not begun here, or is over.

    """
    answer = MARK.run(client, run)
    if not answer:
        raise RecordingError(f"test run {run} has not begun in this Redis, or is over: begin it first")
    scope, owner, slots = answer
    OPEN.run_each(client, {prefix(tag(int(slot))): (run, owner, scope) for slot in slots})
    return int(scope)


def undo(client: Redis, run: int, since: int = 0) -> list[Change]:
    """Put back what the run found before it wrote, since a mark or in all; safe to be killed and run again.

    On a Redis Cluster the undo of all looks for images in every slot, whatever the run knows of itself: a master that
    was lost may have taken with it which slots are open, or brought back what had been undone.
    """
    counts: Counter[str] = Counter()
    kept: dict[bytes, None] = {}
    logs = logs_of(client, run, everywhere=since == 0)
    for at, answer in UNDO.run_each(client, dict.fromkeys(logs, (run, since, -1, b"0", BATCH))).items():
        scope, cursor, deleted, restored, left = answer
        while True:
            counts.update(deleted=deleted, restored=restored)
            kept.update(dict.fromkeys(left))
            if scope < 0:
                break
            scope, cursor, deleted, restored, left = UNDO.run(client, run, since, scope, cursor, BATCH, at=at)
    release(client, run, logs)
    changes = [Change("", what, counts[what]) for what in ("deleted", "restored") if counts[what]]
    why = "changed since by somebody else"
    return changes + [Change(named(each), "kept", 1, why) for each in kept]


def close(client: Redis, run: int) -> int:
    """End a run, and give 0; or how many images, or slots with such, are left to undo, and then it goes on."""
    release(client, run, logs_of(client, run, everywhere=False))
    return int(CLOSE.run(client, run))


def forget(client: Redis, run: int) -> None:
    """Let stand what a run wrote: its images are dropped, so that nothing of it is undone."""
    FORGET.run_each(client, dict.fromkeys(logs_of(client, run, everywhere=True), (run,)))


def runs(client: Redis, owner: str) -> list[int]:
    """Give the runs of an owner that have begun and are not closed, the dead among them."""
    flat = RUNS_AND_OWNERS.run(client)
    known = dict(zip(flat[::2], flat[1::2], strict=True))
    for each in logs_there(client).values():
        known |= each
    return sorted(int(each) for each, name in known.items() if name == owner.encode())


def named(field: bytes) -> str:
    """Name a key for people; one of another database than 0 with its number."""
    database, _, key = field.partition(b":")
    return shown(key) if database == b"0" else f"{shown(key)} (database {database.decode()})"
