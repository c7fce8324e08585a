"""How others would load klines: each as its documentation shows it, on raw CSV, into the same table."""

import asyncio
import csv
import importlib.util
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from psycopg2.extras import execute_values
from sqlalchemy import insert
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from benchmarks.place import COLUMNS, KLINES, Place
from helios.models import Kline

if TYPE_CHECKING:
    from benchmarks.loading import Files

Peer = Callable[[Place, "Files"], None]
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
KEY = ["instrument_id", "interval", "open_time"]
LISTED = ", ".join(f'"{name}"' for name in COLUMNS)
UPDATED = ", ".join(f'"{name}" = excluded."{name}"' for name in COLUMNS if name not in KEY)
CHUNK = 10_000


def all_of_them() -> Iterator[tuple[str, Peer]]:
    """List the peers whose libraries are installed."""
    yield "psycopg2 execute_values", by_execute_values
    yield "SQLAlchemy insert", by_insert
    yield "SQLAlchemy upsert", by_upsert
    yield "SQLAlchemy ORM add_all", by_add_all
    for name, library, peer in (
        ("pandas to_sql", "pandas", by_pandas),
        ("asyncpg upsert", "asyncpg", by_asyncpg),
        ("asyncpg copy_records", "asyncpg", by_asyncpg_copy),
        ("vnpy_postgresql", "vnpy_postgresql", by_vnpy),
    ):
        if importlib.util.find_spec(library):
            yield name, peer


REPEATABLE = ("SQLAlchemy upsert", "asyncpg upsert", "vnpy_postgresql")


def ready(peer: Peer, place: Place, files: "Files") -> Callable[[], None]:
    """Bind a peer to its file."""
    return lambda: peer(place, files)


def rows_of(files: "Files") -> Iterator[dict[str, Any]]:
    """Read the raw file as anybody would: the csv module, exact numbers."""
    with files.raw.open(newline="") as file:
        for row in csv.reader(file):
            numbers = [Decimal(row[place]) for place in (1, 2, 3, 4, 5, 7)]
            takers = [Decimal(row[place]) for place in (9, 10)]
            at = EPOCH + timedelta(milliseconds=int(row[0]))
            values = [files.instrument_id, files.interval, at, *numbers, int(row[8]), *takers]
            yield dict(zip(COLUMNS, values, strict=True))


def chunks(files: "Files") -> Iterator[list[dict[str, Any]]]:
    """Read the raw file some rows at a time."""
    some: list[dict[str, Any]] = []
    for row in rows_of(files):
        some.append(row)
        if len(some) == CHUNK:
            yield some
            some = []
    if some:
        yield some


def by_execute_values(place: Place, files: "Files") -> None:
    """Send psycopg2's multi-row VALUES."""
    connection = place.connect()
    connection.autocommit = False
    with connection, connection.cursor() as cursor:
        for some in chunks(files):
            rows = [tuple(row.values()) for row in some]
            execute_values(cursor, f"INSERT INTO {KLINES} ({LISTED}) VALUES %s", rows, page_size=1000)
    connection.close()


def by_insert(place: Place, files: "Files") -> None:
    """Send SQLAlchemy's Core insert, many rows at a time."""
    with place.engine().begin() as connection:
        for some in chunks(files):
            connection.execute(insert(Kline), some)


def by_upsert(place: Place, files: "Files") -> None:
    """Send SQLAlchemy's ON CONFLICT DO UPDATE, many rows at a time."""
    statement = upsert(Kline)
    changed = {name: statement.excluded[name] for name in COLUMNS if name not in KEY}
    statement = statement.on_conflict_do_update(index_elements=KEY, set_=changed)
    with place.engine().begin() as connection:
        for some in chunks(files):
            connection.execute(statement, some)


def by_add_all(place: Place, files: "Files") -> None:
    """Add objects to a session."""
    with Session(place.engine()) as session, session.begin():
        for some in chunks(files):
            session.add_all([Kline(**row) for row in some])
            session.flush()
            session.expunge_all()


def by_pandas(place: Place, files: "Files") -> None:
    """Write a DataFrame; read_csv's floats round what they cannot hold."""
    import pandas as pd  # noqa: PLC0415 - a peer

    names = ["open_time", *COLUMNS[3:8], "close_time", "quote_volume", "trades", *COLUMNS[10:], "ignore"]
    frame = pd.read_csv(files.raw, names=names).drop(columns=["close_time", "ignore"])
    frame["open_time"] = pd.to_datetime(frame["open_time"], unit="ms", utc=True)
    frame["instrument_id"], frame["interval"] = files.instrument_id, files.interval
    schema, table = KLINES.split(".")
    with place.engine().begin() as connection:
        frame.to_sql(table, connection, schema=schema, if_exists="append", index=False, method="multi", chunksize=1000)


def by_asyncpg(place: Place, files: "Files") -> None:
    """Send asyncpg's executemany with ON CONFLICT DO UPDATE."""
    import asyncpg  # noqa: PLC0415 - a peer

    marks = ", ".join(f"${number}" for number in range(1, len(COLUMNS) + 1))
    keys = ", ".join(f'"{name}"' for name in KEY)
    statement = f"INSERT INTO {KLINES} ({LISTED}) VALUES ({marks}) ON CONFLICT ({keys}) DO UPDATE SET {UPDATED}"

    async def run() -> None:
        connection = await asyncpg.connect(place.dsn)
        async with connection.transaction():
            for some in chunks(files):
                await connection.executemany(statement, [tuple(row.values()) for row in some])
        await connection.close()

    asyncio.run(run())


def by_asyncpg_copy(place: Place, files: "Files") -> None:
    """Send asyncpg's binary COPY of records."""
    import asyncpg  # noqa: PLC0415 - a peer

    async def run() -> None:
        connection = await asyncpg.connect(place.dsn)
        schema, table = KLINES.split(".")
        async with connection.transaction():
            for some in chunks(files):
                rows = [tuple(row.values()) for row in some]
                await connection.copy_records_to_table(table, schema_name=schema, columns=COLUMNS, records=rows)
        await connection.close()

    asyncio.run(run())


def by_vnpy(place: Place, files: "Files") -> None:
    """Save bars with vn.py's PostgreSQL adapter, into the table that it makes for itself."""
    from vnpy.trader.constant import Exchange, Interval  # noqa: PLC0415 - a peer
    from vnpy.trader.object import BarData  # noqa: PLC0415 - a peer
    from vnpy.trader.setting import SETTINGS  # noqa: PLC0415 - a peer

    SETTINGS["database.database"], SETTINGS["database.user"] = place.url.database, place.url.username
    SETTINGS["database.password"] = place.url.password or ""
    SETTINGS["database.host"], SETTINGS["database.port"] = str(place.url.query.get("host")), 5432
    from vnpy_postgresql.postgresql_database import PostgresqlDatabase  # noqa: PLC0415 - reads the settings above

    database = PostgresqlDatabase()
    for some in chunks(files):
        bars = [
            BarData(
                gateway_name="bench",
                symbol=files.symbol,
                exchange=Exchange.GLOBAL,
                datetime=row["open_time"],
                interval=Interval.MINUTE,
                open_price=float(row["open"]),
                high_price=float(row["high"]),
                low_price=float(row["low"]),
                close_price=float(row["close"]),
                volume=float(row["volume"]),
                turnover=float(row["quote_volume"]),
            )
            for row in some
        ]
        database.save_bar_data(bars)
