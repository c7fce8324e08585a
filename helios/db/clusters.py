"""Clients of a Redis Cluster, made from the settings."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import URL, make_url

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

    Its `again(nodes, **options)` makes another one of the same cluster, by nodes (host, port) that are known meanwhile.

    Raises:
        UnreachableError: no node answers, or none that lets this login in.

    """
    import redis  # noqa: PLC0415 - a tenth of a second that only its users pay
    from redis.cluster import ClusterNode  # noqa: PLC0415 - likewise

    refuse_label(settings)

    def make(nodes: Iterable[tuple[str, int]], **more: Any) -> Any:  # noqa: ANN401 - redis-py's
        startup = [ClusterNode(*each) for each in nodes]  # type: ignore[no-untyped-call]
        given = {"require_full_coverage": False, **options, **more}
        try:
            made: Any = redis.RedisCluster(url=plain(url), startup_nodes=startup, **given)
        except (redis.RedisError, redis.exceptions.RedisClusterException, OSError) as error:
            said = hide(" ".join(str(error).split()), url)
            raise UnreachableError(
                f"cannot connect to {masked(url)}: {said}; check REDIS_URL, and that the nodes run and are a cluster"
            ) from None
        made.again = make
        return made

    return cast("Redis", make(others_of(url)))


def create_async_redis(settings: Settings, url: URL, options: dict[str, Any]) -> "AsyncRedis":
    """Make an asynchronous client likewise; it connects when it is first used."""
    from redis.asyncio.cluster import ClusterNode, RedisCluster  # noqa: PLC0415 - a tenth of a second for its users

    refuse_label(settings)

    def make(nodes: Iterable[tuple[str, int]], **more: Any) -> Any:  # noqa: ANN401 - redis-py's
        startup = [ClusterNode(*each) for each in nodes]
        given = {"require_full_coverage": False, **options, **more}
        made: Any = RedisCluster.from_url(plain(url), startup_nodes=startup or None, **given)
        made.again = make
        return made

    return cast("AsyncRedis", make(others_of(url)))


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


def others_of(url: URL) -> list[tuple[str, int]]:
    """Read host and port of the other nodes that a URL names."""
    urls = [make_url(f"redis://{each}") for each in cluster_nodes(url)]
    return [(each.host or "", each.port or PORT) for each in urls]
