"""Engines, sessions and Redis clients, made from the settings; with nothing configured, of the embedded servers."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from psycopg2 import errorcodes, sql
from sqlalchemy import URL, Connection, Engine, NullPool, event
from sqlalchemy import create_engine as create_sqlalchemy_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker

from helios import label, servers
from helios.db import clusters
from helios.db.outages import code_of, leave_standbys
from helios.db.pooler import REFUSED, pooled, stay_direct, told
from helios.errors import HeliosError, PoolerError, RightsError, SchemaError, UnreachableError
from helios.label import engines
from helios.settings import Settings, hide, masked

if TYPE_CHECKING:
    from redis import Redis
    from redis.asyncio import Redis as AsyncRedis
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

ABSENT = (
    errorcodes.INVALID_SCHEMA_NAME,
    errorcodes.UNDEFINED_TABLE,
    errorcodes.UNDEFINED_COLUMN,
    errorcodes.UNDEFINED_FUNCTION,
)
KEEPALIVE = {
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
}  # a dead peer is noticed in a minute


def database_url(settings: Settings) -> URL:
    """Give DATABASE_URL, else the URL of the embedded PostgreSQL, which then serves while this process lives.

    Raises:
        HeliosError: nothing is configured and no embedded server can serve.

    """
    return settings.database_url or servers.database_url(settings)


def migration_url(settings: Settings) -> URL:
    """Give DATABASE_MIGRATION_URL, where it is set, else the same as `database_url`."""
    return settings.migration_url or servers.database_url(settings)


def redis_url(settings: Settings) -> URL:
    """Give REDIS_URL, else the URL of the embedded Valkey, which then serves while this process lives."""
    return settings.redis_url or servers.redis_url(settings)


def create_engine(settings: Settings | None = None, *, labelled: bool = True, **options: Any) -> Engine:  # noqa: ANN401 - SQLAlchemy's own options
    """Make an engine on psycopg2; `options` go to SQLAlchemy's create_engine and win over the settings.

    Args:
        settings: where and how to connect; None reads them from the environment.
        labelled: whether its connections carry the label of the test run that this process belongs to, if any.
        options: SQLAlchemy's own.

    Raises:
        HeliosError: nothing is configured and no embedded server can serve.
        LabelError: this process is production's, and yet labelled.

    """
    settings = settings or Settings.from_environment()
    url = database_url(settings)
    arguments = {"connect_args": connect_args(settings, url)}
    engine = create_sqlalchemy_engine(url, **{**pool(settings, options), **arguments, **options})
    leave_standbys(engine)
    if labelled:
        label.permitted_run(settings.helios_environment)
        engines.follow(engine, settings.helios_environment)
    return engine


def create_session_factory(engine: Engine) -> sessionmaker[Session]:
    """Make the factory of a service's sessions: `with factory.begin() as session:` commits, or rolls back on an error.

    Objects stay readable after their commit, because services hand them on.
    """
    return sessionmaker(engine, expire_on_commit=False)


def create_async_engine(settings: Settings | None = None, **options: Any) -> "AsyncEngine":  # noqa: ANN401 - SQLAlchemy's own options
    """Make an engine on psycopg 3 for asyncio; needs the extra `helios[async]`. It carries the label, as others do.

    Raises:
        HeliosError: the extra is not installed, or nothing is configured and no embedded server can serve.
        LabelError: this process is production's, and yet labelled.

    """
    if find_spec("psycopg") is None or find_spec("greenlet") is None:
        raise HeliosError("asynchronous sessions need psycopg 3 and greenlet: install the extra helios[async]")
    from sqlalchemy.ext.asyncio import create_async_engine as create_sqlalchemy_async_engine  # noqa: PLC0415 - an extra

    settings = settings or Settings.from_environment()
    url = database_url(settings).set(drivername="postgresql+psycopg")
    # prepared statements belong to a server connection, which a transaction-mode pooler shares between clients
    arguments = {**connect_args(settings, url), "prepare_threshold": None}
    engine = create_sqlalchemy_async_engine(url, **{**pool(settings, options), "connect_args": arguments, **options})
    leave_standbys(engine.sync_engine)
    label.permitted_run(settings.helios_environment)
    engines.follow(engine.sync_engine, settings.helios_environment)
    return engine


def create_async_session_factory(engine: "AsyncEngine") -> "async_sessionmaker[AsyncSession]":
    """Make the factory of a service's asynchronous sessions: `async with factory.begin() as session:`."""
    from sqlalchemy.ext.asyncio import async_sessionmaker  # noqa: PLC0415 - an extra

    return async_sessionmaker(engine, expire_on_commit=False)


def create_migration_engine(settings: Settings, role: str | None = None) -> Engine:
    """Make the engine of migrations: no pool, a short lock timeout, names looked up in the schema alone.

    Revisions name no schema, so this connection does. It reaches PostgreSQL directly, or raises a PoolerError when it
    connects: a pooler would hand the state of this session to others. It never carries the label of a test run: a
    schema is nothing to be undone.

    Args:
        settings: where to connect, which schema, how long to wait for a lock.
        role: the owner role that each connection becomes; None stays the login.

    """
    url = migration_url(settings)
    patience = round(settings.database_lock_timeout * 1000)
    state = f"-c search_path={settings.database_schema},pg_temp -c lock_timeout={patience}"
    arguments = connect_args(settings, url, state)
    arguments["application_name"] = f"{settings.database_application_name}-migrate"
    engine = create_sqlalchemy_engine(url, poolclass=NullPool, connect_args=arguments)
    stay_direct(engine, "migrations and the undo log of test runs")
    if role is not None:

        @event.listens_for(engine, "connect", insert=True)
        def become_owner(connection: Any, _record: object) -> None:  # noqa: ANN401 - a driver's connection
            with connection.cursor() as cursor:
                cursor.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))
            connection.commit()

    return engine


def direct_settings(settings: Settings, what: str) -> Settings:
    """Give settings whose DATABASE_URL is no pooler: DATABASE_MIGRATION_URL in the place of one.

    A server that does not answer is taken for no pooler; whoever needs a session of its own looks again later.

    Raises:
        PoolerError: DATABASE_URL is a pooler, and nothing else is configured.

    """
    engine = create_engine(settings, labelled=False, poolclass=NullPool)
    try:
        with engine.connect() as connection:
            direct = not pooled(connection.connection.driver_connection)
    except DBAPIError as error:
        direct = REFUSED not in str(error.orig)
    if direct:
        return settings
    if settings.database_migration_url is None:
        raise PoolerError(told(engine.url, what))
    return replace(settings, database_url=settings.database_migration_url)


def create_redis(settings: Settings | None = None) -> "Redis":
    """Make a Redis client; answers are bytes. While the process is labelled, what it writes can be undone.

    Of a Redis Cluster it is a RedisCluster, which has the same commands; it connects at once.

    Raises:
        LabelError: this process is production's, and yet labelled.
        UnreachableError: no node of a Redis Cluster answers.

    """
    from helios.label.clients import RecordedRedis  # noqa: PLC0415 - a tenth of a second that only its users pay

    settings = settings or Settings.from_environment()
    url = redis_url(settings)
    if clusters.is_cluster(url):
        return clusters.create_redis(settings, url, redis_args(settings))
    whole = url.render_as_string(hide_password=False)
    client: RecordedRedis = RecordedRedis.from_url(whole, **redis_args(settings))  # type: ignore[assignment] # its own class
    return client.believing(settings.helios_environment)


def create_unlabelled_redis(settings: Settings) -> "Redis":
    """Make a client that records nothing, whatever the process belongs to: the testing kit's own.

    Raises:
        UnreachableError: no node of a Redis Cluster answers.

    """
    from redis import Redis  # noqa: PLC0415 - a tenth of a second that only its users pay

    url = redis_url(settings)
    if clusters.is_cluster(url):
        return clusters.create_unlabelled_redis(url, redis_args(settings))
    return Redis.from_url(url.render_as_string(hide_password=False), **redis_args(settings))


def create_async_redis(settings: Settings | None = None) -> "AsyncRedis":
    """Make an asynchronous Redis client; everything else is as `create_redis` says, but that none connects yet.

    Raises:
        LabelError: this process is production's, and yet labelled.

    """
    from helios.label.async_clients import AsyncRecordedRedis  # noqa: PLC0415 - a tenth of a second that only its users pay

    settings = settings or Settings.from_environment()
    url = redis_url(settings)
    if clusters.is_cluster(url):
        return clusters.create_async_redis(settings, url, redis_args(settings))
    whole = url.render_as_string(hide_password=False)
    client: AsyncRecordedRedis = AsyncRecordedRedis.from_url(whole, **redis_args(settings))  # type: ignore[assignment] # too
    return client.believing(settings.helios_environment)


def redis_args(settings: Settings) -> dict[str, Any]:
    """Give the Redis client's options."""
    return {"socket_timeout": settings.redis_timeout, "socket_connect_timeout": settings.redis_timeout}


def pool(settings: Settings, options: Mapping[str, Any]) -> dict[str, Any]:
    """Give the pool's options; connections are checked before use, because servers restart and firewalls forget.

    A kind of pool that the caller chose has options of its own.
    """
    if "poolclass" in options:
        return {}
    return {
        "pool_size": settings.database_pool_size,
        "max_overflow": settings.database_pool_overflow,
        "pool_timeout": settings.database_pool_timeout,
        "pool_recycle": settings.database_pool_recycle,
        "pool_pre_ping": True,
        "pool_use_lifo": True,
    }


def connect_args(settings: Settings, url: URL, state: str = "") -> dict[str, Any]:
    """Give libpq's parameters; what the URL itself says wins, and `state` joins its options."""
    arguments: dict[str, Any] = {
        "application_name": settings.database_application_name,
        "connect_timeout": settings.database_connect_timeout,
        **KEEPALIVE,
    }
    if settings.database_sslmode:
        arguments["sslmode"] = settings.database_sslmode
    if settings.database_sslrootcert:
        arguments["sslrootcert"] = str(settings.database_sslrootcert)
    arguments = {name: value for name, value in arguments.items() if name not in url.query}
    if settings.database_statement_timeout and not state:
        state = f"-c statement_timeout={round(settings.database_statement_timeout * 1000)}"
    given = str(url.query.get("options") or os.environ.get("PGOPTIONS", ""))
    if state or label.SETTING in given:
        # a connection's own options replace those of PGOPTIONS, so these are carried along, but for a test run's
        # label: whether a connection carries that is decided when it is opened
        arguments["options"] = f"{label.unlabelled(given)} {state}".strip()
    return arguments


@contextmanager
def reaching(url: URL) -> Iterator[None]:
    """Turn a failure to connect, a lost connection and a missing right into one sentence without the password.

    Raises:
        UnreachableError: the server does not answer, lets this login not in, or went away.
        RightsError: the login lacks a right.

    """
    try:
        yield
    except DBAPIError as error:
        said = hide(" ".join(str(error.orig).split()), url)
        code = code_of(error.orig)
        if REFUSED in said:
            raise PoolerError(
                f"{masked(url)} leads through a pooler that takes no settings of a session ({said}): unset "
                "DATABASE_STATEMENT_TIMEOUT and PGOPTIONS, and let `ALTER ROLE ... SET statement_timeout` say it"
            ) from None
        if code == errorcodes.INSUFFICIENT_PRIVILEGE:
            raise RightsError(
                f"{said}; let this login join the group role that may, as the README tells, "
                "or see `helios grants` where a role itself lacks it"
            ) from None
        if error.connection_invalidated:
            raise UnreachableError(f"the connection to {masked(url)} was lost: {said}; run this again") from None
        if error.statement is None and not code:
            raise UnreachableError(
                f"cannot connect to {masked(url)}: {said}; "
                "check DATABASE_URL, and that the server runs and lets this login in"
            ) from None
        raise


@contextmanager
def connect(engine: Engine) -> Iterator[Connection]:
    """Open a connection in a transaction that is committed at the end, or fail with one sentence.

    Raises:
        UnreachableError: the server does not answer, lets this login not in, or went away.
        RightsError: the login lacks a right.
        SchemaError: the schema or one of its tables is not there.

    """
    with reaching(engine.url):
        try:
            with engine.begin() as connection:
                yield connection
        except DBAPIError as error:
            if code_of(error.orig) in ABSENT:
                missing = str(error.orig).partition("\n")[0]
                raise SchemaError(f"{missing}: run `helios upgrade` first") from None
            raise
