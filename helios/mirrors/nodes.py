"""Which Redis holds a key: the only one, or of a Redis Cluster a node, which may be another one a moment later."""

from collections.abc import Iterator
from typing import Any

from redis import RedisCluster
from redis.exceptions import RedisClusterException, RedisError

from helios.mirrors.keys import RUNNING, Place

# What says that Redis, or the node that holds a key, is not reached, or is not its master any more.
UNREACHED = (RedisError, RedisClusterException, OSError)
AT_ONCE = 1_000  # keys that are looked at


def pool_of(client: Any, key: str) -> Any:  # noqa: ANN401 - redis-py's, of either kind
    """Give the connections to the Redis that holds a key."""
    if isinstance(client, RedisCluster):
        node = client.get_node_from_key(key)  # type: ignore[no-untyped-call]
        client = client.get_redis_connection(node)
    return client.connection_pool


def find_anew(client: Any) -> bool:  # noqa: ANN401 - redis-py's, of either kind
    """Ask the nodes of a Redis Cluster who holds what now; False where there is but one Redis.

    Raises:
        RedisClusterException: none of them answers.

    """
    if isinstance(client, RedisCluster):
        client.nodes_manager.initialize()
    return isinstance(client, RedisCluster)


def nodes_of(client: Any) -> Iterator[Any]:  # noqa: ANN401 - redis-py's, of either kind
    """Give a client of each Redis that may hold mirrors: the only one, or every master."""
    if find_anew(client):
        yield from map(client.get_redis_connection, client.get_primaries())
    else:
        yield client


def strays(client: Any, place: Place, buckets: tuple[str, ...]) -> Iterator[list[str]]:  # noqa: ANN401 - redis-py's
    """Find the keys of the mirrors of one schema that are in none of these buckets, some at a time.

    Running candles are left out: they go by themselves within seconds.
    """
    before = place.pattern.removesuffix("*")
    known = tuple(f"{before}{{{each}}}:" for each in buckets)
    for node in nodes_of(client):
        cursor: Any = None
        while cursor != 0:
            cursor, names = node.scan(cursor or 0, match=place.pattern, count=AT_ONCE)
            found = [name for each in names if not (name := each.decode()).startswith(known)]
            if left := [name for name in found if f"}}:{RUNNING}:" not in name]:
                yield left
