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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from sqlalchemy import URL, Connection, Select, create_engine, select, text
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


@dataclass
class Readers:
    """The ways to ask, on one connection of SQLAlchemy's and the driver's cursor below it."""

    connection: Connection
    session: Session
    newest: int

    def __post_init__(self) -> None:
        """Prepare what is written by hand."""
        self.cursor = self.connection.connection.cursor()
        self.cursor.execute(HAND_WRITTEN)

    def series(self) -> dict[str, Ask]:
        """The newest candles of a series."""
        return {
            "hand-written, prepared": self.prepared,
            "queries.klines().rows": lambda at: self.klines(at).rows(self.connection),
            "queries.klines().objects": lambda at: self.fresh(self.klines(at).objects),
            "ORM select": lambda at: self.fresh(lambda session: session.scalars(self.orm(at, self.newest)).all()[::-1]),
        }

    def each(self) -> dict[str, Ask]:
        """The newest candle of every instrument."""
        return {
            "hand-written, prepared": lambda _at: self.prepared_of_each(),
            "queries.latest_of_each().rows": lambda _at: queries.latest_of_each(Interval.M1).rows(self.connection),
            "ORM select, one by one": lambda _at: self.fresh(self.one_by_one),
        }

    def slow(self) -> dict[str, Ask]:
        """The same as it is often written."""
        return {"DISTINCT ON": lambda _at: self.connection.execute(text(DISTINCT_ON)).all()}

    def whole(self) -> dict[str, Ask]:
        """Questions that read whole series; there is no anchor but each other."""
        return {
            "queries.gaps().rows, one series": lambda at: queries.gaps(at, Interval.M1).rows(self.connection),
            "queries.coverage(), all series": lambda _at: queries.coverage(self.connection),
            "queries.coverage(count=False)": lambda _at: queries.coverage(self.connection, count=False),
        }

    def prepared(self, at: int) -> Sequence[Any]:
        """Read as plainly as the driver can."""
        self.cursor.execute("EXECUTE newest (%s, %s, %s)", (at, "1m", self.newest))
        return self.cursor.fetchall()[::-1]

    def prepared_of_each(self) -> Sequence[Any]:
        """The same for every instrument."""
        self.cursor.execute("EXECUTE newest_of_each (%s)", ("1m",))
        return self.cursor.fetchall()

    def klines(self, at: int) -> queries.Query[Kline]:
        """The query of Helios."""
        return queries.klines(at, Interval.M1, last=self.newest)

    def orm(self, at: int, count: int) -> Select[Kline]:
        """The statement that ORM code holds."""
        wanted = select(Kline).where(Kline.instrument_id == at, Kline.interval == Interval.M1)
        return wanted.order_by(Kline.open_time.desc()).limit(count)

    def one_by_one(self, session: Session) -> list[Kline]:
        """Ask for every instrument, as a loop does."""
        return [session.scalars(self.orm(each, 1)).one() for each in session.scalars(select(Instrument.id)).all()]

    def fresh(self, ask: Callable[[Session], Any]) -> Any:  # noqa: ANN401 - objects
        """Ask a session that remembers nothing."""
        self.session.expunge_all()
        return ask(self.session)


def run(  # noqa: PLR0913 - what a run is made of
    server: URL, *, rows: int, instruments: int = 24, samples: int = 300, slow_samples: int = 3, newest: int = 500
) -> list[dict[str, Any]]:
    """Measure on a server, as its superuser, and give a row for each contestant: p50 in ms and its ratio."""
    ids = random.Random(1)  # noqa: S311 - the same instruments in every run
    with database(server) as url:
        engine = create_engine(url, poolclass=NullPool)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            fill(connection, rows // instruments, instruments)
        with engine.connect() as connection, Session(engine) as session:
            readers = Readers(connection, session, newest)
            series = measured(f"newest {newest} of a series", readers.series(), ids, samples, instruments)
            each = measured("newest of every instrument", readers.each(), ids, samples, instruments)
            anchor = each[0]["p50_ms"]
            each += measured(
                "newest of every instrument", readers.slow(), ids, slow_samples, instruments, anchor=anchor
            )
            return series + each + measured("whole series", readers.whole(), ids, slow_samples, instruments)


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
    with nullcontext(make_url(told.url)) if told.url else own_server() as url:
        results = run(url, rows=told.rows, instruments=told.instruments, samples=told.samples)
    show(results)
    if told.json:
        told.json.write_text(json.dumps({"rows": told.rows, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
