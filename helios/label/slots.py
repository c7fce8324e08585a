"""Where the undo log stands on a Redis Cluster: each slot has one, opened when a run first writes there.

A script may only touch keys of one slot, and a slot moves as a whole; so the images stand in the slot of what is
written, in a log that is made as on one Redis. The log under `{log}` holds no images then, but what a run's processes
have to agree on: its scope, and in `<run>:slots` the slots that it has opened, each with how often somebody began to.
"""

from collections.abc import Generator, Iterable, Sequence
from functools import cache
from itertools import product

from redis.crc import key_slot

from helios.label.commands import Answer, Arguments
from helios.label.images import HOME, LOGS

SLOTS = 1 << 14
# CRC16 leads the words of four of these letters, the first one of the first four, to the slots one to one.
LETTERS = "@ABCDEFGHIJKLMNO"

# What each script of the kit begins with; its key is how those of the log begin.
HEAD = """
local PREFIX = KEYS[1] or ''
local RUNS, SEQUENCE = PREFIX .. 'runs', PREFIX .. 'sequence'
"""

# ARGV: run, slots. Answers with the run's scope and owner, or nothing where it is over.
REGISTER = """
local left = PREFIX .. ARGV[1]
local scope = redis.call('HGET', left, 'scope')
if not scope then return {} end
for i = 2, #ARGV do redis.call('HINCRBY', left .. ':slots', ARGV[i], 1) end
return {scope, redis.call('HGET', RUNS, ARGV[1])}
"""

# ARGV: run, owner, scope. A newer scope than that one stays.
OPEN = """
local left = PREFIX .. ARGV[1]
redis.call('HSETNX', RUNS, ARGV[1], ARGV[2])
if tonumber(redis.call('HGET', left, 'scope') or '-1') < tonumber(ARGV[3]) then
  redis.call('HSET', left, 'scope', ARGV[3])
  redis.call('INCR', left .. ':turn')
end
return 0
"""

# ARGV: run. Answers with how many images, or open slots, are left to undo; with none the run
# ends here, and else it goes on, and its labelled processes are recorded.
CLOSE = """
local left = PREFIX .. ARGV[1]
local scope = redis.call('HGET', left, 'scope')
if not scope then return 0 end
local images = redis.call('HLEN', left .. ':slots')
for each = tonumber(scope), 0, -1 do
  if images > 0 then return images end
  images = redis.call('HLEN', left .. ':' .. each)
end
if images > 0 then return images end
redis.call('UNLINK', left, left .. ':turn')
redis.call('HDEL', RUNS, ARGV[1])
if redis.call('EXISTS', RUNS) == 0 then redis.call('UNLINK', SEQUENCE) end
return 0
"""

Questions = Generator[Arguments, Answer, bool]


@cache
def tags() -> dict[int, str]:
    """Give each slot a hash tag that leads to it, with its braces."""
    words = map("".join, product(LETTERS[:4], LETTERS, LETTERS, LETTERS))
    return {key_slot(word.encode()): f"{{{word}}}" for word in words}


def tag(slot: int) -> str:
    """Give the hash tag of a slot, with its braces."""
    return tags()[slot]


def prefix(tag: str) -> str:
    """Begin every key of the log that stands under a tag."""
    return f"{LOGS}{tag}:"


def slot_of(keys: Sequence[bytes]) -> int:
    """Give the slot of a command's keys; where they are of several the server refuses the command."""
    return key_slot(keys[0])


def opening(run: int, slots: Iterable[int]) -> Questions:
    """Open the logs of slots for a run; yields commands, each of which belongs to the slot of its key.

    Gives whether the run goes on; where it is over, nothing is opened. A slot is registered before it is opened, so
    that who undoes finds it, and once more after it, so that nobody has taken it for done, or begun a test, meanwhile.
    """
    chosen = list(slots)
    opened = None
    while (found := (yield evaluated(REGISTER, HOME, run, *chosen))) != opened:
        for slot in chosen:
            if found:
                scope, owner = found
                yield evaluated(OPEN, tag(slot), run, owner, scope)
            elif opened:
                yield evaluated(CLOSE, tag(slot), run)
        if not found:
            return False
        opened = found
    return True


def evaluated(lua: str, tag: str, *arguments: Answer) -> Arguments:
    """Write the command that runs a script of the log which stands under a tag."""
    return ("EVAL", f"{HEAD}{lua}", 1, prefix(tag), *arguments)
