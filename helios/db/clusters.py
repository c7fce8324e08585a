"""Clients of a Redis Cluster, made from the settings."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import URL, make_url

from helios import label
from helios.errors import UnreachableError
from helios.settings import Settings, cluster_nodes, hide, masked

if TYPE_CHECKING:
    from redis import Redis
    from redis.asyncio import Redis as AsyncRedis

PORT = 6379


def is_cluster(url: URL) -> bool:
    """Tell whether a URL is that of a Redis Cluster."""
    return url.drivername.endswith("+cluster")


def create_redis(settings: Settings, url: URL, options: dict[str, Any]) -> "Redis":
    """Make a client that finds the node of each key, and connect it; labelled, it records what it writes.

    Raises:
        LabelError: this process is production's, and yet labelled.
        UnreachableError: no node answers, or none that lets this login in.

    """
    from helios.label.cluster_clients import RecordedCluster  # noqa: PLC0415 - a tenth of a second for its users

    label.permitted_run(settings.helios_environment)
    return connected(lambda **given: RecordedCluster(**given).believing(settings.helios_environment), url, options)


def create_unlabelled_redis(url: URL, options: dict[str, Any]) -> "Redis":
    """Make the same client without recording."""
    from helios.label.cluster_clients import Cluster  # noqa: PLC0415 - a tenth of a second for its users

    return connected(Cluster, url, options)


def connected(kind: Callable[..., Any], url: URL, options: dict[str, Any]) -> "Redis":
    """Make a client of a kind, and connect it.

    Its `again(nodes, **options)` makes another one of the same cluster, by nodes (host, port) that are known meanwhile.

    Raises:
        UnreachableError: no node answers, or none that lets this login in.

    """
    import redis  # noqa: PLC0415 - a tenth of a second that only its users pay
    from redis.cluster import ClusterNode  # noqa: PLC0415 - likewise

    def make(nodes: Iterable[tuple[str, int]], **more: Any) -> Any:  # noqa: ANN401 - redis-py's
        startup = [ClusterNode(*each) for each in nodes]  # type: ignore[no-untyped-call]
        given = {"require_full_coverage": False, **options, **more}
        try:
            made = kind(url=plain(url), startup_nodes=startup, **given)
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
    from redis.asyncio.cluster import ClusterNode  # noqa: PLC0415 - a tenth of a second for its users

    from helios.label.async_cluster_clients import AsyncRecordedCluster  # noqa: PLC0415 - likewise

    def make(nodes: Iterable[tuple[str, int]], **more: Any) -> Any:  # noqa: ANN401 - redis-py's
        startup = [ClusterNode(*each) for each in nodes]
        given = {"require_full_coverage": False, **options, **more}
        made: Any = AsyncRecordedCluster.from_url(plain(url), startup_nodes=startup or None, **given)
        made.again = make
        return made.believing(settings.helios_environment)

    return cast("AsyncRedis", make(others_of(url)))


def plain(url: URL) -> str:
    """Write the URL of the first node as redis-py reads it, password and all."""
    first = url.set(drivername=url.drivername.removesuffix("+cluster"), database=None)
    return first.difference_update_query(["host", "db"]).render_as_string(hide_password=False)


def others_of(url: URL) -> list[tuple[str, int]]:
    """Read host and port of the other nodes that a URL names."""
    urls = [make_url(f"redis://{each}") for each in cluster_nodes(url)]
    return [(each.host or "", each.port or PORT) for each in urls]
