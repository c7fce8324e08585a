"""A PostgreSQL of the benchmark's own, with fsync on, and the tables of Helios in it."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg2
from psycopg2.extensions import connection as Connection  # noqa: N812 - a class
from sqlalchemy import URL, Engine, NullPool, create_engine

from helios import schema, servers
from helios.mirrors.values import CANDLE
from helios.settings import Settings

OPTIONS = {"max_wal_size": "4GB", "checkpoint_timeout": "30min", "autovacuum": "off", "shared_buffers": "256MB"}
COLUMNS = ("instrument_id", "interval", *CANDLE)
KLINES = "helios_trading.klines"


@dataclass
class Place:
    """The server, and ways to it."""

    url: URL
    programs: Path
    folder: Path
    version: str

    @property
    def dsn(self) -> str:
        """The URL as libpq reads it."""
        return self.url.set(drivername="postgresql").render_as_string(hide_password=False)

    def engine(self) -> Engine:
        """Make an engine without a pool: each run connects anew, as a program does."""
        return create_engine(self.url, poolclass=NullPool)

    def connect(self) -> Connection:
        """Connect with psycopg2, each statement by itself."""
        connection = psycopg2.connect(self.dsn)
        connection.autocommit = True
        return connection

    def ask(self, statement: str) -> tuple[object, ...]:
        """Ask for one row."""
        connection = self.connect()
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement)
                return cursor.fetchone() if cursor.description else ()
        finally:
            connection.close()

    def emptied(self) -> None:
        """Empty the tables, and let the server write out what it still holds, so that no run pays for another."""
        self.ask(f"TRUNCATE {KLINES}, helios_trading.kline_files, helios_trading.data_quality_metrics")
        self.ask("CHECKPOINT")

    def size(self) -> int:
        """Measure the klines, tables and indexes, in bytes."""
        return int(self.ask(f"SELECT sum(pg_total_relation_size(relid)) FROM pg_partition_tree('{KLINES}')")[0])

    def wal(self) -> int:
        """Tell how many bytes of WAL were written since the server began."""
        return int(self.ask("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')")[0])


@contextmanager
def place() -> Iterator[Place]:
    """Start a server in a temporary folder, make the tables, and leave nothing behind."""
    top = Path(tempfile.mkdtemp(prefix="helios-bench-")).resolve()
    top.chmod(0o755)
    (top / "files").mkdir()
    server = servers.Postgres(top / "home", binaries=Settings.from_environment().helios_postgres_bin, options=OPTIONS)
    before = os.environ.get("DATABASE_URL")
    try:
        url = server.acquire()
        os.environ["DATABASE_URL"] = url.render_as_string(hide_password=False)
        os.environ.pop("DATABASE_MIGRATION_URL", None)
        schema.upgrade()
        yield Place(url, server.programs, top / "files", server.version)
    finally:
        os.environ.pop("DATABASE_URL", None)
        if before is not None:
            os.environ["DATABASE_URL"] = before
        server.release()
        server.wait_ended()
        shutil.rmtree(top)
