"""Engines, sessions and Redis clients, made from the settings; and what goes on when a server does not.

Every statement names its schema, so no connection carries state, and a transaction-mode pooler may stand between.
"""

from helios.db.engines import (
    connect,
    connect_args,
    create_async_engine,
    create_async_redis,
    create_async_session_factory,
    create_engine,
    create_migration_engine,
    create_redis,
    create_session_factory,
    create_unlabelled_redis,
    database_url,
    direct_settings,
    migration_url,
    reaching,
    redis_args,
    redis_url,
)
from helios.db.pooler import pooled, refuse_pooler
from helios.db.retries import with_async_retries, with_retries
from helios.db.standby import (
    ReadSession,
    create_async_read_engine,
    create_async_read_session_factory,
    create_read_engine,
    create_read_session_factory,
)
from helios.settings import hide

__all__ = [
    "ReadSession",
    "connect",
    "connect_args",
    "create_async_engine",
    "create_async_read_engine",
    "create_async_read_session_factory",
    "create_async_redis",
    "create_async_session_factory",
    "create_engine",
    "create_migration_engine",
    "create_read_engine",
    "create_read_session_factory",
    "create_redis",
    "create_session_factory",
    "create_unlabelled_redis",
    "database_url",
    "direct_settings",
    "hide",
    "migration_url",
    "pooled",
    "reaching",
    "redis_args",
    "redis_url",
    "refuse_pooler",
    "with_async_retries",
    "with_retries",
]
