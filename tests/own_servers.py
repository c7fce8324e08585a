"""Servers for one test, and questions to them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import redis
from sqlalchemy import URL, create_engine, text
from sqlalchemy.pool import NullPool

from helios import servers
from helios.db.clusters import is_cluster, plain
from helios.label.clients import RecordedRedis
from helios.label.cluster_clients import Cluster, RecordedCluster
from helios.settings import Settings

CHOSEN = Settings.from_environment()


def settings_for(home: Path) -> Settings:
    return replace(CHOSEN, helios_home=home)


def postgres(home: Path, **options: str) -> servers.Postgres:
    return servers.Postgres(home, binaries=CHOSEN.helios_postgres_bin, durable=False, options=options)


def valkey(home: Path, *, durable: bool = False) -> servers.Valkey:
    return servers.Valkey(home, binaries=CHOSEN.helios_redis_bin, durable=durable)


def ask(url: URL, sql: str) -> object:
    engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        result = connection.execute(text(sql))
        return result.scalar() if result.returns_rows else None


def client(url: URL, **options: Any) -> Any:
    """A client that records nothing, of one Redis or of a Redis Cluster."""
    return (Cluster if is_cluster(url) else redis.Redis).from_url(address(url), **options)


def recording_client(url: URL, **options: Any) -> Any:
    """A client that records, likewise."""
    return (RecordedCluster if is_cluster(url) else RecordedRedis).from_url(address(url), **options)


def address(url: URL) -> str:
    return plain(url) if is_cluster(url) else url.render_as_string(hide_password=False)


def end(server: servers.Postgres | servers.Valkey) -> None:
    server.release()
    server.wait_ended()
