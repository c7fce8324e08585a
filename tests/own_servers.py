"""Servers for one test, and questions to them."""

from dataclasses import replace
from pathlib import Path

import redis
from sqlalchemy import URL, create_engine, text
from sqlalchemy.pool import NullPool

from helios import servers
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


def client(url: URL) -> "redis.Redis":
    return redis.Redis.from_url(url.render_as_string(hide_password=False))


def end(server: servers.Postgres | servers.Valkey) -> None:
    server.release()
    server.wait_ended()
