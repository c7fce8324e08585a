"""Which servers a client leads to: one Redis is its own; a Redis Cluster has several, its masters."""

import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from redis import Redis, RedisCluster
from redis.exceptions import (
    AskError,
    ClusterError,
    ConnectionError,  # noqa: A004 - redis-py's own name
    RedisClusterException,
    SlotNotCoveredError,
    TimeoutError,  # noqa: A004 - redis-py's own name
)

from helios.label.slots import SLOTS

Client = Redis | RedisCluster
Answer = TypeVar("Answer")

PATIENCE, PAUSE = 5.0, 0.05  # seconds until all nodes know of a failover, and between two looks at what they know
PASSING = (AskError, ClusterError, ConnectionError, RedisClusterException, TimeoutError)


def patiently(client: Client, ask: Callable[[], Answer], passing: tuple[type[Exception], ...] = PASSING) -> Answer:
    """Ask; a Redis Cluster again for a while, because not all of its nodes may know yet of a failover."""
    if not isinstance(client, RedisCluster):
        return ask()
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return ask()
        except passing:
            if time.monotonic() > until:
                raise
            time.sleep(PAUSE)


def servers_of(client: Client) -> list[Redis]:
    """Give a client of each server that holds keys: a Redis Cluster's masters, as they are now."""
    return patiently(client, lambda: masters_of(client)) if isinstance(client, RedisCluster) else [client]


def masters_of(client: RedisCluster) -> list[Redis]:
    """Give the masters of a Redis Cluster; looks where the slots are, if they are not those that were known."""
    if len(client.nodes_manager.slots_cache) < SLOTS:
        look_again(client)
    told = {each["primary"][:2] for each in dict(client.cluster_slots()).values()}
    if told != {(node.host, node.port) for node in client.get_primaries()}:
        look_again(client)
    return [client.get_redis_connection(node) for node in client.get_primaries()]


def look_again(client: RedisCluster) -> None:
    """Find out anew where the slots of a Redis Cluster are.

    Raises:
        SlotNotCoveredError: some are nowhere, so nobody can tell what is in them.

    """
    client.disconnect_connection_pools()  # it forgets those that it replaces, and they would stay open
    client.nodes_manager.initialize()
    if missing := SLOTS - len(client.nodes_manager.slots_cache):
        raise SlotNotCoveredError(f"{missing} slots of the Redis Cluster are served by no node just now")


def by_node(client: Client, places: Iterable[str]) -> dict[Redis, list[str]]:
    """Part places by the servers that hold them, as far as the client knows."""
    if not isinstance(client, RedisCluster):
        return {client: list(places)}
    found: dict[Redis, list[str]] = {}
    for at in places:
        found.setdefault(client.get_redis_connection(client.get_node_from_key(at)), []).append(at)
    return found
