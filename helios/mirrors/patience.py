"""Clients of Redis for whoever has something better to do than to wait for it."""

from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

from redis import Redis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

if TYPE_CHECKING:
    from redis.asyncio import Redis as AsyncRedis

    Client = Redis | AsyncRedis

ASIDE = 1.0  # seconds in which a Redis that failed is left alone
PATIENCE = timedelta(milliseconds=100)


def impatient(client: "Client", patience: float) -> "Client":
    """Make a client of the same Redis that waits no longer than `patience` seconds, and tries once more at most.

    Clients of redis-py try for seconds, and db.create_redis waits for five: PostgreSQL answers sooner.
    """
    pool: Any = client.connection_pool
    kind: type[Any] = Retry if isinstance(client, Redis) else AsyncRetry
    again = kind(NoBackoff(), 1, supported_errors=(RedisConnectionError,))  # an idle connection may have been closed
    waits = {"socket_timeout": patience, "socket_connect_timeout": patience, "retry": again, "decode_responses": False}
    own = type(pool)(connection_class=pool.connection_class, **{**pool.connection_kwargs, **waits})
    made = type(client).from_pool(own)  # whose close() closes its connections too
    environment = getattr(client, "environment", None)  # of helios.db's clients, which record what a test writes
    return made if environment is None else cast("Any", made).believing(environment)
