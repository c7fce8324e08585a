"""Clients of Redis for whoever has something better to do than to wait for it."""

from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

from redis import Redis, RedisCluster
from redis.asyncio import RedisCluster as AsyncRedisCluster
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

from helios.errors import InputError

if TYPE_CHECKING:
    from redis.asyncio import Redis as AsyncRedis

    Client = Redis | AsyncRedis

ASIDE = 1.0  # seconds in which a Redis that failed is left alone
PATIENCE = timedelta(milliseconds=100)


def impatient(client: "Client", patience: float) -> "Client":
    """Make a client of the same Redis that waits no longer than `patience` seconds, and tries once more at most.

    Clients of redis-py try for seconds, and db.create_redis waits for five: PostgreSQL answers sooner.
    """
    kind: type[Any] = Retry if isinstance(client, Redis | RedisCluster) else AsyncRetry
    again = kind(NoBackoff(), 1, supported_errors=(RedisConnectionError,))  # an idle connection may have been closed
    waits = {"socket_timeout": patience, "socket_connect_timeout": patience, "retry": again, "decode_responses": False}
    if isinstance(client, RedisCluster | AsyncRedisCluster):
        return cast("Client", impatient_cluster(client, waits))
    pool: Any = client.connection_pool
    own = type(pool)(connection_class=pool.connection_class, **{**pool.connection_kwargs, **waits})
    made = type(client).from_pool(own)  # whose close() closes its connections too
    environment = getattr(client, "environment", None)  # of helios.db's clients, which record what a test writes
    return made if environment is None else cast("Any", made).believing(environment)


def impatient_cluster(client: Any, waits: dict[str, Any]) -> Any:  # noqa: ANN401 - redis-py's, of either kind
    """Make such a client of the same Redis Cluster, which asks the nodes anew whenever one fails.

    Raises:
        InputError: the client is not one of `helios.db`.
        UnreachableError: no node of the cluster answers.

    """
    again = getattr(client, "again", None)
    if again is None:
        raise InputError("this client of a Redis Cluster cannot be made anew: make it by helios.db.create_redis")
    nodes = [(each.host, each.port) for each in client.nodes_manager.nodes_cache.values()]
    return again(nodes, **waits, reinitialize_steps=1)
