"""Reading: queries of Helios beside a hand-written prepared statement through psycopg2, and what else people write.

Example: python -m benchmarks.queries --rows 12_000_000 --json queries.json

The candles lie on disk as a feed writes them, those of one minute beside each other. Everything happens in a database
of its own, dropped at the end, on a server of its own unless --url names one.
"""

import argparse
import itertools
import json
import os
import random
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from sqlalchemy import URL, Connection, create_engine, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from helios import queries, schema, servers
from helios.models import Instrument, Interval, Kline, metadata

SCHEMA = metadata.schema
FIRST = datetime(2025, 6, 1, tzinfo=UTC)
COLUMNS = ", ".join(f'"{column.name}"' for column in Kline.__table__.columns)
HAND_WRITTEN = f"""
    PREPARE newest (integer, text, bigint) AS
        SELECT {COLUMNS} FROM "{SCHEMA}".klines
        WHERE instrument_id = $1 AND interval = $2 ORDER BY open_time DESC LIMIT $3;
    PREPARE newest_of_each (text) AS
        SELECT i.exchange, i.market, i.symbol, k.* FROM "{SCHEMA}".instruments AS i CROSS JOIN LATERAL (
            SELECT {COLUMNS} FROM "{SCHEMA}".klines
            WHERE instrument_id = i.id AND interval = $1 ORDER BY open_time DESC LIMIT 1
        ) AS k ORDER BY i.id
"""
DISTINCT_ON = f"""
    SELECT DISTINCT ON (instrument_id) {COLUMNS} FROM "{SCHEMA}".klines
    WHERE interval = '1m' ORDER BY instrument_id, open_time DESC
"""
FILL = text(f"""
    INSERT INTO "{SCHEMA}".klines
    SELECT i, 1 + price % 900, :first + make_interval(mins => minute), round(price / 100.0, 2),
           round(price / 100.0 + 1.25, 2), round(price / 100.0 - 0.75, 2), round(price / 100.0 + 0.5, 2),
           round(price / 1000.0, 5), price * 12.34567, round(price / 2000.0, 5), price * 6.12345, '1m'
    FROM generate_series(CAST(:since AS integer), CAST(:until AS integer)) AS minute,
         generate_series(1, :instruments) AS i,
         LATERAL (SELECT 10000 + (CAST(minute AS bigint) * 7919 + i * 104729) % 990007 AS price) AS made
""")
Ask = Callable[[int], Any]


def run(  # noqa: PLR0913 - what a run is made of
    server: URL, *, rows: int, instruments: int = 24, samples: int = 300, slow_samples: int = 3, newest: int = 500
) -> list[dict[str, Any]]:
    """Measure on a server, as its superuser, and give a row for each contestant: p50 in ms and its ratio."""
    with database(server) as url:
        engine = create_engine(url, poolclass=NullPool)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            fill(connection, rows // instruments, instruments)
        results: list[dict[str, Any]] = []
        with engine.connect() as connection, Session(engine) as session:
            driver = connection.connection.cursor()
            driver.execute(HAND_WRITTEN)
            ids = random.Random(1)  # noqa: S311 - the same instruments in every run

            def prepared(at: int) -> Any:  # noqa: ANN401 - rows
                driver.execute("EXECUTE newest (%s, %s, %s)", (at, "1m", newest))
                return driver.fetchall()[::-1]

            def prepared_of_each(_at: int) -> Any:  # noqa: ANN401 - rows
                driver.execute("EXECUTE newest_of_each (%s)", ("1m",))
                return driver.fetchall()

            def orm(at: int) -> Any:  # noqa: ANN401 - objects
                session.expunge_all()
                wanted = select(Kline).where(Kline.instrument_id == at, Kline.interval == Interval.M1)
                return session.scalars(wanted.order_by(Kline.open_time.desc()).limit(newest)).all()[::-1]

            def objects(at: int) -> Any:  # noqa: ANN401 - objects
                session.expunge_all()
                return queries.klines(at, Interval.M1, last=newest).objects(session)

            def orm_each(_at: int) -> Any:  # noqa: ANN401 - objects
                session.expunge_all()
                of = select(Kline).where(Kline.interval == Interval.M1).order_by(Kline.open_time.desc()).limit(1)
                known = session.scalars(select(Instrument.id)).all()
                return [session.scalars(of.where(Kline.instrument_id == each)).one() for each in known]

            about = f"newest {newest} of a series"
            quick: dict[str, Ask] = {
                "hand-written, prepared": prepared,
                "queries.klines().rows": lambda at: queries.klines(at, Interval.M1, last=newest).rows(connection),
                "queries.klines().objects": objects,
                "ORM select": orm,
            }
            results += measured(about, quick, ids, samples, instruments)
            each: dict[str, Ask] = {
                "hand-written, prepared": prepared_of_each,
                "queries.latest_of_each().rows": lambda _at: queries.latest_of_each(Interval.M1).rows(connection),
                "ORM select, one by one": orm_each,
            }
            results += measured("newest of every instrument", each, ids, samples, instruments)
            slow: dict[str, Ask] = {"DISTINCT ON": lambda _at: connection.execute(text(DISTINCT_ON)).all()}
            anchor = results[-3]["p50_ms"]
            results += measured("newest of every instrument", slow, ids, slow_samples, instruments, anchor=anchor)
            whole: dict[str, Ask] = {
                "queries.gaps().rows, one series": lambda at: queries.gaps(at, Interval.M1).rows(connection),
                "queries.coverage(), all series": lambda _at: queries.coverage(connection),
                "queries.coverage(count=False)": lambda _at: queries.coverage(connection, count=False),
            }
            results += measured("a whole series, or all", whole, ids, slow_samples, instruments)
        engine.dispose()
    return results


def measured(  # noqa: PLR0913 - what is compared
    about: str, contestants: dict[str, Ask], ids: random.Random, samples: int, instruments: int, *, anchor: float = 0
) -> list[dict[str, Any]]:
    """Time the contestants in turn, each as often, in changing order; the first is the anchor unless one is given."""
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    order = itertools.cycle(itertools.permutations(contestants))
    for sample in range(-min(10, samples), samples):  # the first ones warm caches, and are not counted
        at = ids.randint(1, instruments)
        for name in next(order):
            began = time.perf_counter()
            contestants[name](at)
            if sample >= 0:
                taken[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(each) * 1000 for name, each in taken.items()}
    anchor = anchor or next(iter(medians.values()))
    return [
        {"what": about, "how": name, "p50_ms": round(each, 3), "ratio": round(each / anchor, 2)}
        for name, each in medians.items()
    ]


def fill(connection: Connection, minutes: int, instruments: int) -> None:
    """Write the candles in the order of time, those of one minute beside each other, then vacuum as time would."""
    names = [{"symbol": f"BENCH{at}USDT"} for at in range(1, instruments + 1)]
    insert = f"INSERT INTO \"{SCHEMA}\".instruments (exchange, market, symbol) VALUES ('bench', 'spot', :symbol)"
    connection.execute(text(insert), names)
    last = FIRST + timedelta(minutes=minutes)
    for year in range(FIRST.year, last.year + 1):
        connection.execute(text(f"SELECT \"{SCHEMA}\".make_kline_partition('1m', :year)"), {"year": year})
    step = 10_000
    for since in range(0, minutes, step):
        bounds = {"since": since, "until": min(since + step, minutes) - 1}
        connection.execute(FILL, {"first": FIRST, "instruments": instruments, **bounds})
        print(f"\r{min(since + step, minutes) * instruments:,} candles", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    connection.execute(text(f'VACUUM ANALYZE "{SCHEMA}".klines'))


@contextmanager
def database(server: URL) -> Iterator[URL]:
    """Make a database with Helios's tables, and drop it at the end."""
    name = f"helios_bench_{uuid.uuid4().hex[:8]}"
    admin = create_engine(server, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f'CREATE DATABASE "{name}"'))
    try:
        url = server.set(database=name)
        own = {"DATABASE_URL": url.render_as_string(hide_password=False), "DATABASE_MIGRATION_URL": ""}
        before = {variable: os.environ.get(variable) for variable in own}
        os.environ.update(own)
        try:
            schema.upgrade()
        finally:
            for variable, value in before.items():
                os.environ.pop(variable) if value is None else os.environ.update({variable: value})
        yield url
    finally:
        with admin.connect() as connection:
            connection.execute(text(f'DROP DATABASE "{name}" WITH (FORCE)'))


@contextmanager
def own_server() -> Iterator[URL]:
    """Start a PostgreSQL in a temporary folder, and remove both at the end."""
    with tempfile.TemporaryDirectory(prefix="helios-bench-") as folder:
        home = Path(folder)
        home.chmod(0o755)  # PostgreSQL runs as a user of its own where this one is root
        server = servers.Postgres(home, options={"max_wal_size": "8GB", "shared_buffers": "512MB"})
        url = server.acquire()
        try:
            yield url
        finally:
            server.release()
            server.wait_ended()


def show(results: list[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table(box=None, header_style="bold")
    for name, side in (("what", "left"), ("how", "left"), ("p50, ms", "right"), ("ratio", "right")):
        table.add_column(name, justify=side)  # type: ignore[arg-type]
    for row in results:
        table.add_row(row["what"], row["how"], f"{row['p50_ms']:,.3f}", f"{row['ratio']:.2f}")
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def main() -> None:
    """Read the options, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="PostgreSQL to use, as a superuser; without it one is started")
    parser.add_argument("--rows", type=int, default=1_000_000, help="candles in all (default: 1,000,000)")
    parser.add_argument("--instruments", type=int, default=24)
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--json", type=Path, help="file to write the results to")
    told = parser.parse_args()
    with contextmanager(lambda: iter([make_url(told.url)]))() if told.url else own_server() as url:
        results = run(url, rows=told.rows, instruments=told.instruments, samples=told.samples)
    show(results)
    if told.json:
        told.json.write_text(json.dumps({"rows": told.rows, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
