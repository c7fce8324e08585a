"""Clients of a Redis Cluster, made from the settings."""

from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import URL

from helios import label
from helios.errors import RecordingError, UnreachableError
from helios.settings import Settings, cluster_nodes, hide, masked

if TYPE_CHECKING:
    from redis import Redis
    from redis.asyncio import Redis as AsyncRedis

PORT = 6379


def is_cluster(url: URL) -> bool:
    """Tell whether a URL is that of a Redis Cluster."""
    return url.drivername.endswith("+cluster")


def create_redis(settings: Settings, url: URL, options: dict[str, Any]) -> "Redis":
    """Make a client that finds the node of each key, and connect it.

    Raises:
        UnreachableError: no node answers, or none that lets this login in.

    """
    import redis  # noqa: PLC0415 - a tenth of a second that only its users pay
    from redis.cluster import ClusterNode  # noqa: PLC0415 - likewise

    refuse_label(settings)
    nodes = [ClusterNode(*node_of(each)) for each in cluster_nodes(url)]  # type: ignore[no-untyped-call]
    try:
        made = redis.RedisCluster(url=plain(url), startup_nodes=nodes, **options)
    except (redis.RedisError, redis.exceptions.RedisClusterException, OSError) as error:
        said = hide(" ".join(str(error).split()), url)
        raise UnreachableError(
            f"cannot connect to {masked(url)}: {said}; check REDIS_URL, and that the nodes run and are a cluster"
        ) from None
    return cast("Redis", made)


def create_async_redis(settings: Settings, url: URL, options: dict[str, Any]) -> "AsyncRedis":
    """Make an asynchronous client that finds the node of each key; it connects when it is first used."""
    from redis.asyncio.cluster import ClusterNode, RedisCluster  # noqa: PLC0415 - a tenth of a second for its users

    refuse_label(settings)
    nodes = [ClusterNode(*node_of(each)) for each in cluster_nodes(url)]
    return cast("AsyncRedis", RedisCluster.from_url(plain(url), startup_nodes=nodes or None, **options))


def refuse_label(settings: Settings) -> None:
    """Refuse a process that is labelled, for what it writes to a Redis Cluster cannot be recorded.

    Raises:
        LabelError: this process is production's, and yet labelled.
        RecordingError: it is labelled.

    """
    if label.permitted_run(settings.helios_environment) is not None:
        raise RecordingError(
            "what a test run writes to a Redis Cluster cannot be undone: have REDIS_URL name a single Redis for tests"
        )


def plain(url: URL) -> str:
    """Write the URL of the first node as redis-py reads it, password and all."""
    first = url.set(drivername=url.drivername.removesuffix("+cluster"), database=None)
    return first.difference_update_query(["host", "db"]).render_as_string(hide_password=False)


def node_of(told: str) -> tuple[str, int]:
    """Read a node's host and port."""
    bracketed, _, port = told.partition("]") if told.startswith("[") else ("", "", "")
    host, port = (bracketed[1:], port.lstrip(":")) if bracketed else told.partition(":")[::2]
    return host, int(port or PORT)
