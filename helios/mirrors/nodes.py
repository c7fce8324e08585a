"""Which Redis holds a key: the only one, or of a Redis Cluster a node, which may be another one a moment later."""

from collections.abc import Iterator, Sequence
from inspect import isawaitable
from typing import Any

from redis import Redis, RedisCluster
from redis.asyncio import RedisCluster as AsyncRedisCluster
from redis.asyncio.cluster import PipelineCommand
from redis.exceptions import RedisClusterException, RedisError
from sqlalchemy.util import await_only

from helios.mirrors.keys import RUNNING, Place

# What says that Redis, or the node that holds a key, is not reached, or is not its master any more.
UNREACHED = (RedisError, RedisClusterException, OSError)
AT_ONCE = 1_000  # keys that are looked at


def pool_of(client: Any, key: str) -> Any:  # noqa: ANN401 - redis-py's, of either kind
    """Give the connections to the Redis that holds a key."""
    return (node_of(client, key) if isinstance(client, RedisCluster) else client).connection_pool


def node_of(client: RedisCluster, key: str) -> Redis:
    """Give a client of the node that holds a key."""
    return client.get_redis_connection(client.get_node_from_key(key))  # type: ignore[no-untyped-call]


def find_anew(client: Any) -> bool:  # noqa: ANN401 - redis-py's, of either kind
    """Ask the nodes of a Redis Cluster who holds what now; False where there is but one Redis.

    Raises:
        RedisClusterException: none of them answers.

    """
    if isinstance(client, RedisCluster):
        client.nodes_manager.initialize()
    return isinstance(client, RedisCluster)


def ask(client: Any, key: str, commands: Sequence[tuple[str, ...]]) -> list[Any]:  # noqa: ANN401 - redis-py's, of any kind
    """Send commands about keys of one bucket, in this order and at once, to the Redis that holds it; read the answers.

    Not by a Redis Cluster's own pipeline: where a slot moves, that sends some of them again, after the others.
    """
    if isinstance(client, AsyncRedisCluster):
        return await_only(ask_later(client, key, commands))
    if not isinstance(client, RedisCluster):
        answers = pipelined(client, commands)
        return await_only(answers) if isawaitable(answers) else answers
    try:
        return list(pipelined(node_of(client, key), commands))
    except UNREACHED:
        find_anew(client)  # another node may hold it by now
        return list(pipelined(node_of(client, key), commands))


def pipelined(client: Any, commands: Sequence[tuple[str, ...]]) -> Any:  # noqa: ANN401 - redis-py's
    """Send commands at once."""
    pipeline = client.pipeline(transaction=False)
    for command in commands:
        pipeline.execute_command(*command)
    return pipeline.execute()


async def ask_later(client: AsyncRedisCluster, key: str, commands: Sequence[tuple[str, ...]]) -> list[Any]:
    """Do so asynchronously."""
    await client.initialize()
    try:
        return await pipelined_later(client, key, commands)
    except UNREACHED:
        await client.nodes_manager.initialize()
        return await pipelined_later(client, key, commands)


async def pipelined_later(client: AsyncRedisCluster, key: str, commands: Sequence[tuple[str, ...]]) -> list[Any]:
    """Send commands to the node that holds a key at once."""
    node: Any = client.get_node_from_key(key)
    told = [PipelineCommand(number, *command) for number, command in enumerate(commands)]
    await node.execute_pipeline(told)
    for each in told:
        if isinstance(each.result, Exception):
            raise each.result
    return [each.result for each in told]


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
