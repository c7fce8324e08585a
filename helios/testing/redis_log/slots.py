"""Which logs a run has: on one Redis the one that is there, on a Redis Cluster one in each slot that it wrote to."""

from collections.abc import Mapping

from redis import Redis, RedisCluster
from redis.exceptions import RedisError

from helios.label import slots
from helios.label.images import LOGS, PREFIX
from helios.label.slots import prefix, tag
from helios.testing.redis_log.places import Client, look_again, patiently
from helios.testing.redis_log.scripts import Script

OPEN = Script(slots.OPEN)
CLOSE = Script(slots.CLOSE)
OPEN_SLOTS = Script("return redis.call('HGETALL', PREFIX .. ARGV[1] .. ':slots')")

# ARGV: the run, then slots whose logs are closed, each with how often somebody had begun to open it before that.
RELEASE = Script("""
local slots = PREFIX .. ARGV[1] .. ':slots'
for i = 2, #ARGV, 2 do
  if redis.call('HGET', slots, ARGV[i]) == ARGV[i + 1] then redis.call('HDEL', slots, ARGV[i]) end
end
return 0
""")

# ARGV: the tags of slots, one after the other, six characters each. Answers with those that have a log, each with its
# runs and their owners.
LOGS_THERE = Script(f"""
local found = {{}}
for first = 1, #ARGV[1], 6 do
  local tag = string.sub(ARGV[1], first, first + 5)
  local runs = redis.call('HGETALL', '{LOGS}' .. tag .. ':runs')
  if #runs > 0 then found[#found + 1] = {{tag, runs}} end
end
return found
""")

Log = tuple[int, int]  # a slot, and how often somebody had begun to open it


def logs_of(client: Client, run: int, *, everywhere: bool) -> Mapping[str, Log]:
    """Give the prefixes of a run's logs; `everywhere`: of all there are, not only of those that it knows of."""
    if not isinstance(client, RedisCluster):
        return {PREFIX: (0, 0)}
    flat = OPEN_SLOTS.run(client, run)
    opened = {int(slot): int(count) for slot, count in zip(flat[::2], flat[1::2], strict=True)}
    found = {prefix(tag(slot)): (slot, count) for slot, count in opened.items()}
    if everywhere:
        for at, known in logs_there(client).items():
            if b"%d" % run in known:
                found.setdefault(at, (client.keyslot(at), 0))
    return found


def logs_there(client: Client) -> dict[str, dict[bytes, bytes]]:
    """Look into every slot of a Redis Cluster for logs; give, by prefix, their runs with the runs' owners."""
    if not isinstance(client, RedisCluster):
        return {}
    return patiently(client, lambda: logs_at(client), (RedisError,))  # a slot that is elsewhere is refused as any error


def logs_at(client: RedisCluster) -> dict[str, dict[bytes, bytes]]:
    """Look into every slot, where it is by now; one that is not there any more is refused by the server."""
    look_again(client)
    masters: dict[Redis, list[int]] = {}
    for slot, holders in client.nodes_manager.slots_cache.items():
        masters.setdefault(client.get_redis_connection(holders[0]), []).append(slot)
    found: dict[str, dict[bytes, bytes]] = {}
    for master, slots_held in masters.items():
        for its_tag, flat in LOGS_THERE.run(master, "".join(map(tag, slots_held)), at=None):
            found[prefix(its_tag.decode())] = dict(zip(flat[::2], flat[1::2], strict=True))
    return found


def release(client: Client, run: int, logs: Mapping[str, Log]) -> None:
    """Close the logs of slots that hold nothing more; whoever writes there next opens them again."""
    if not isinstance(client, RedisCluster) or not logs:
        return
    left = CLOSE.run_each(client, dict.fromkeys(logs, (run,)))
    done = [part for at, log in logs.items() if not left[at] for part in log]
    RELEASE.run(client, run, *done)
