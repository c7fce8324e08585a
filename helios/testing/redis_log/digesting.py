"""A hash of every key with its type, value and absolute expiry: the proof that nothing was left behind in Redis.

Values are read by their type, and what has no order is sorted, because the bytes of DUMP differ between encodings of
one and the same content.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from redis import Redis

from helios.label.images import LOGS
from helios.testing.redis_log.places import patiently, servers_of
from helios.testing.redis_log.scripts import Script, shown

PAGE = 500
LARGEST_AT_ONCE = 5000  # elements of one key that the server reads in one go; beyond, it is read in pages

# ARGV: database, cursor, how many, the most elements, then prefixes to leave out. Answers with the cursor, then of each
# key its name, its hash ('' where it is too large), its type and its expiry.
PAGE_OF_HASHES = Script("""
local call = redis.call
local LENGTHS = {list = 'LLEN', set = 'SCARD', zset = 'ZCARD', hash = 'HLEN', stream = 'XLEN'}
call('SELECT', ARGV[1])
local most, prefixes = tonumber(ARGV[4]), {}
for i = 5, #ARGV do prefixes[#prefixes + 1] = ARGV[i] end

local function left_out(key)
  for _, prefix in ipairs(prefixes) do
    if string.sub(key, 1, #prefix) == prefix then return true end
  end
  return false
end

local function joined(parts)
  for i, part in ipairs(parts) do parts[i] = #part .. ':' .. part end
  return table.concat(parts)
end

local function sorted(parts)
  table.sort(parts)
  return joined(parts)
end

local function flat(answer, into)
  if type(answer) ~= 'table' then
    into[#into + 1] = tostring(answer)
    return into
  end
  into[#into + 1] = '['
  local i = 1
  while i <= #answer do
    if type(answer[i]) == 'string' and string.sub(answer[i], 1, 10) == 'radix-tree' then
      i = i + 2 -- how it is stored, not what
    else
      flat(answer[i], into)
      i = i + 1
    end
  end
  into[#into + 1] = ']'
  return into
end

local function fields(key)
  local all, names, parts = call('HGETALL', key), {}, {}
  for i = 1, #all, 2 do names[#names + 1] = all[i] end
  local times = {}
  if #names > 0 then times = redis.pcall('HPEXPIRETIME', key, 'FIELDS', #names, unpack(names)) end
  if times.err then times = {} end
  for i = 1, #all, 2 do
    local at = times[(i + 1) / 2] or -1
    parts[#parts + 1] = #all[i] .. ':' .. all[i] .. (at == -1 and '' or at) .. ':' .. all[i + 1]
  end
  return sorted(parts)
end

local READ = {
  string = function(key)
    local value = call('GET', key)
    if string.sub(value, 1, 4) == 'HYLL' then return string.sub(value, 1, 8) .. string.sub(value, 17) end
    return value
  end,
  list = function(key) return joined(call('LRANGE', key, 0, -1)) end,
  set = function(key) return sorted(call('SMEMBERS', key)) end,
  zset = function(key) return joined(call('ZRANGE', key, 0, -1, 'WITHSCORES')) end,
  hash = fields,
  stream = function(key) return joined(flat(call('XINFO', 'STREAM', key, 'FULL', 'COUNT', 0), {})) end,
}

local page = call('SCAN', ARGV[2], 'COUNT', ARGV[3])
local found = {page[1]}
for _, key in ipairs(page[2]) do
  local kind = call('TYPE', key).ok
  if kind ~= 'none' and not left_out(key) then
    local expiry, hash = call('PEXPIRETIME', key), ''
    if not LENGTHS[kind] or call(LENGTHS[kind], key) <= most then
      local read = READ[kind] or function(each) return call('DUMP', each) end
      hash = redis.sha1hex(kind .. ' ' .. expiry .. ' ' .. read(key))
    end
    found[#found + 1] = key
    found[#found + 1] = hash
    found[#found + 1] = kind
    found[#found + 1] = tostring(expiry)
  end
end
return found
""")


def digest(client: Redis, excluding: Sequence[str] = ()) -> dict[str, str]:
    """Hash each key of each database, but for the log's own and those that begin with one of the prefixes.

    Args:
        client: a plain client whose answers are bytes.
        excluding: prefixes of what is bookkeeping, such as a mirror's.

    Returns:
        The hash of each key, by `<database>:<key>`.

    """
    return patiently(client, lambda: dict(each for server in servers_of(client) for each in hashes(server, excluding)))


def hashes(client: Redis, excluding: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Hash what one server holds."""
    for name in client.info("keyspace"):
        database = int(str(name).removeprefix("db"))
        cursor = b"0"
        while True:
            asked: tuple[Any, ...] = (database, cursor, PAGE, LARGEST_AT_ONCE, LOGS, *excluding)
            cursor, *rows = PAGE_OF_HASHES.run(client, *asked, at=None)
            for key, value, kind, expiry in zip(*[iter(rows)] * 4, strict=True):
                known = value.decode() or large(client, database, key, kind.decode(), expiry)
                yield shown(b"%d:%b" % (database, key)), known
            if cursor == b"0":
                break


def large(client: Redis, database: int, key: bytes, kind: str, expiry: bytes) -> str:
    """Hash a key of many elements, read in pages so that the server stays at others' service."""

    def ask(*words: Any) -> Any:  # noqa: ANN401 - an answer of Redis
        return IN_DATABASE.run(client, database, *words, at=None)

    parts = READERS[kind](ask, key)
    hashed = hashlib.sha256(b"%b %b " % (kind.encode(), expiry))
    for part in parts if kind in {"list", "stream"} else sorted(parts):
        hashed.update(b"%d:%b" % (len(part), part))
    return hashed.hexdigest()


IN_DATABASE = Script("redis.call('SELECT', ARGV[1]) return redis.call(unpack(ARGV, 2))")
Ask = Callable[..., Any]


def scanned(command: str, width: int) -> Callable[[Ask, bytes], Iterator[bytes]]:
    """Make a reader of a collection without an order; `width` is how many values make one element."""

    def read(ask: Ask, key: bytes) -> Iterator[bytes]:
        cursor, seen = b"0", set()
        lapsing = command == "HSCAN" and has_lapsing_fields(ask, key)
        while True:
            cursor, flat = ask(command, key, cursor, "COUNT", 1000)
            page = list(zip(*[iter(flat)] * width, strict=True))
            times = ask("HPEXPIRETIME", key, "FIELDS", len(page), *flat[::2]) if lapsing and page else [-1] * len(page)
            for element, at in zip(page, times, strict=True):
                if element not in seen:
                    seen.add(element)
                    yield b"".join(b"%d:%b" % (len(each), each) for each in element) + b" %d" % at
            if cursor == b"0":
                return

    return read


def has_lapsing_fields(ask: Ask, key: bytes) -> bool:
    """Tell whether any field of a hash may expire; the encoding of its DUMP says so."""
    return int(ask("DUMP", key)[0]) > 21  # noqa: PLR2004 - the first type of Redis's format that knows of it


def listed(ask: Ask, key: bytes) -> Iterator[bytes]:
    """Read a list in pages."""
    first = 0
    while page := ask("LRANGE", key, first, first + 999):
        yield from page
        first += len(page)


def streamed(ask: Ask, key: bytes) -> Iterator[bytes]:
    """Read a stream: its entries in pages, and its groups."""
    start = b"-"
    while page := ask("XRANGE", key, start, "+", "COUNT", 1000):
        for name, values in page:
            yield b"%b %b" % (name, b"".join(b"%d:%b" % (len(each), each) for each in values))
        start = b"(" + page[-1][0]
    yield repr(ask("XINFO", "GROUPS", key)).encode()


READERS: dict[str, Callable[[Ask, bytes], Iterator[bytes]]] = {
    "set": scanned("SSCAN", 1),
    "zset": scanned("ZSCAN", 2),
    "hash": scanned("HSCAN", 2),
    "list": listed,
    "stream": streamed,
}
