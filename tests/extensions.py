"""Where klines can move to, TimescaleDB and Citus: databases with each, candles in them, and conversions.

A fixture `extension` of the test's file names which; conftest's `partitions` and `moved` are databases with it.
"""

import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from installation import admin, engine_of, made, rows, run_sql, upgrade
from sqlalchemy import URL, make_url

from helios import growing
from helios.growing import Layout
from helios.settings import Settings

SCHEMA = "helios_trading"
KLINES = f"{SCHEMA}.klines"
COLUMNS = "instrument_id, interval, open_time, open, high, low, close, volume, trades"
DAY = datetime(2025, 1, 1, tzinfo=UTC)
SYMBOLS = ("AUSDT", "BUSDT", "CUSDT")
FILL = f"""
    INSERT INTO {KLINES} (instrument_id, interval, open_time, open, high, low, close, volume, trades)
    SELECT i, '1m', '2025-01-01Z'::timestamptz + n * interval '1 minute', 1.50 + n, 2 + n, 1, 1.5 + n, n / 7.0, n
    FROM generate_series(1, 3) AS i, generate_series(0, 9999) AS n
    UNION ALL
    SELECT 1, '1h', '2023-11-01Z'::timestamptz + n * interval '1 hour', 1, 2, 0.5, 1, 0, NULL
    FROM generate_series(0, 999) AS n
    UNION ALL
    SELECT 77, '1d', '2024-02-01Z'::timestamptz + n * interval '1 day', 1, 2, 0.5, 1, 0, NULL
    FROM generate_series(0, 99) AS n
"""  # instrument 77 is not there: its candles move all the same
CONTENT = f"SELECT count(*), sum(hash_record_extended(k, 0)), min(open_time), max(open_time) FROM {KLINES} AS k"


class Timescale:
    """A server with TimescaleDB, as a superuser."""

    variable, layout = "HELIOS_TIMESCALE_URL", Layout.TIMESCALEDB
    roles = "timescaled"  # the prefix of the roles on that server, which are dropped at the end
    pause = 0.02  # seconds between the transactions of a writer
    plan_says, doctor_says = "in chunks of 28 days", "klines are a hypertable"
    age = timedelta(days=60)  # of the oldest candles of 1m once all that hold some are older than 30 days
    for_owners = f"SELECT compress_chunk(c) FROM show_chunks('{KLINES}') AS c"

    def __init__(self, url: URL) -> None:
        self.url, self.nodes = url, [url]

    @contextmanager
    def made(self) -> Iterator[URL]:
        """Make a database with the extension and all tables."""
        with made(self.url, "template0") as url:
            run_sql(url, "CREATE EXTENSION IF NOT EXISTS timescaledb")
            upgrade(url, DATABASE_ROLE_PREFIX=self.roles)
            yield url


class Citus:
    """A coordinator's database that knows its workers, as a superuser who is one on them too."""

    variable, layout = "HELIOS_CITUS_URL", Layout.CITUS
    roles = "citused"
    pause = 0.1
    plan_says, doctor_says = "distributed by instrument", "shards of Citus"
    age = timedelta(days=400)
    for_owners = f"DELETE FROM {SCHEMA}.klines_1m_2025_shards"

    def __init__(self, url: URL) -> None:
        placed = rows(url, "SELECT nodename, nodeport FROM pg_dist_node WHERE shouldhaveshards")
        self.url, self.workers = url, [url.set(host=host, port=port) for host, port in placed]
        self.nodes = [*self.workers, url]

    @contextmanager
    def made(self) -> Iterator[URL]:
        """Make a database with all tables on every node, which then learns of Citus and its workers."""
        name = f"t_{uuid.uuid4().hex[:12]}"
        with ExitStack() as stack:
            for node in self.nodes:
                admin(node, f"CREATE DATABASE {name} TEMPLATE template0")
                stack.callback(admin, node, f"DROP DATABASE {name} WITH (FORCE)")
            url = self.url.set(database=name)
            upgrade(url, DATABASE_ROLE_PREFIX=self.roles)
            for node in self.nodes:
                run_sql(node.set(database=name), "CREATE EXTENSION citus")
            host, port = rows(self.url, "SELECT nodename, nodeport FROM pg_dist_node WHERE groupid = 0")[0]
            run_sql(url, f"SELECT citus_set_coordinator_host('{host}', {port})")
            run_sql(url, *(f"SELECT citus_add_node('{node.host}', {node.port})" for node in self.workers))
            run_sql(url, f"ALTER DATABASE {name} SET citus.shard_count = 4", f"ALTER ROLE {self.roles}_owner LOGIN")
            yield url


Extension = Timescale | Citus


@contextmanager
def given(kind: type[Extension]) -> Iterator[Extension]:
    """Take the servers that the environment names, or skip; at the end the roles of the tests are dropped there.

    One file after the other: they share those roles, and the settings of the servers.
    """
    url = os.environ.get(kind.variable)
    if url is None:
        pytest.skip(f"{kind.variable} names no server for {kind.layout}")
    extension = kind(make_url(url).set(drivername="postgresql+psycopg2"))
    with engine_of(extension.url).connect().execution_options(isolation_level="AUTOCOMMIT") as held:
        held.exec_driver_sql("SELECT pg_advisory_lock(hashtext('tests of helios'))")
        yield extension
        like = f"{extension.roles}\\_%"
        for node in extension.nodes:
            for role in rows(node, "SELECT rolname::text FROM pg_roles WHERE rolname LIKE :like", like=like):
                admin(node, f'DROP ROLE "{role[0]}"')


@contextmanager
def filled(extension: Extension) -> Iterator[URL]:
    """Make a database with three instruments and candles of several intervals, in partitions."""
    with extension.made() as url:
        listed = ", ".join(f"('binance', 'spot', '{symbol}')" for symbol in SYMBOLS)
        run_sql(
            url,
            f"INSERT INTO {SCHEMA}.instruments (exchange, market, symbol) VALUES {listed}",
            f"SELECT {SCHEMA}.make_kline_partition('1h', 2023)",
            FILL,
        )
        yield url


def planned(url: URL, to: str) -> growing.Plan:
    with engine_of(url).connect() as connection:
        return growing.plan(connection, SCHEMA, to)


def convert(url: URL, to: str, *, steps: int | None = None) -> int:
    """Convert, or stop after some steps as a kill would; tells how many there were."""
    for number, _ in enumerate(growing.convert(Settings.from_environment(), planned(url, to)), 1):
        if number == steps:
            return number
    return 0


def layout(url: URL) -> Layout:
    return planned(url, "partitions").here


def leftovers(url: URL) -> list[Any]:
    """List what a conversion that came to its end leaves nothing of."""
    question = f"""
        SELECT relname::text FROM pg_class WHERE relnamespace = '{SCHEMA}'::regnamespace
        AND relname ~ 'klines_(next|former|batches|changes)'
        UNION SELECT tgname FROM pg_trigger WHERE tgname LIKE 'note%'
        UNION SELECT proname FROM pg_proc WHERE proname LIKE 'note_kline%'
    """
    return rows(url, question)


def correct(line: str) -> str:
    """Change the volume of a candle in a file."""
    fields = line.split(",")
    return ",".join([*fields[:5], "4711", *fields[6:]])
