"""The rows that can be adopted into their tables: a stretch of the ancestor's table in each transaction."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, select, text
from sqlalchemy.dialects.postgresql import insert

from helios import db
from helios import rejects as aside
from helios.adopting import orders
from helios.adopting.ancestor import HISTORY, METRICS, ORDERS, POSITIONS
from helios.adopting.mapping import ALL, Mapping
from helios.adopting.planning import Series, mappings, prepare, series
from helios.adopting.source import Source, blocks, tables
from helios.errors import InputError
from helios.layout import make_partition
from helios.models import Account, Instrument, Kline, metadata
from helios.names import table_name

STRETCH = 500  # blocks of a transaction: 4 MB of the ancestor's table, some forty thousand candles
STRETCH_OF_ORDERS = 200  # each order is written as often as it changed
ALONE = text("SELECT pg_advisory_xact_lock(hashtextextended(:key, 0))")
HEADER = ("place", "reason", "row")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a table has come: blocks read of all it has, rows written and rows set aside until now."""

    table: str
    done: int
    total: int
    written: int
    rejected: int = 0
    rejects: Path | None = None


def apply(
    engine: Engine, source: Source | None = None, *, rejects: Path | None = None, stretch: int | None = None
) -> Iterator[Progress]:
    """Copy what can be adopted, table by table; what was yielded is committed.

    What Helios holds already is not touched, and the ancestor's tables are only read. Stop the ancestor before: a row
    that it changes meanwhile may be passed by, which the plan made afterwards then shows.

    Args:
        engine: an engine of the writer role, which may also read the ancestor's tables.
        source: where they are, and what they do not tell.
        rejects: the folder that a file for the rejected rows of each table goes to.
        stretch: how many blocks of a table a transaction reads.

    Raises:
        InputError: there is nothing to adopt, or a column is of a type that cannot be read.
        RightsError: the login may not read the ancestor's tables.

    """
    source = source or Source()
    with db.connect(engine) as connection:
        pairs = mappings(tables(connection, source), source)
    made = {found.name: mapping for found, mapping in pairs if mapping is not None}
    for mapping in made.values():
        yield from Copy(engine, mapping, made.get(HISTORY.table)).run(rejects, stretch)


@dataclass
class Copy:
    """One table on its way."""

    engine: Engine
    mapping: Mapping
    history: Mapping | None

    def run(self, rejects: Path | None, stretch: int | None) -> Iterator[Progress]:
        """Copy a table, then write aside what cannot be adopted of it."""
        table = self.mapping.found.name
        with self.transaction() as connection:
            total = blocks(connection, self.mapping.found)
            known = series(connection, self.mapping)
            look = self.look(connection, known)
            make_instruments(connection, self.mapping.source, look.symbols)
            if self.mapping.heir is ORDERS:
                make_account(connection, self.mapping.source)
        yield Progress(table=table, done=0, total=total, written=0)
        self.make_partitions(look.years)
        written, path = 0, None
        for first, last in self.stretches(total, stretch):
            with self.transaction() as connection:
                written += self.write(connection, {**self.binds(known), **place(first, last)})
            yield Progress(table=table, done=min(last or total, total), total=total, written=written)
        if rejects:
            path = self.set_aside(known, rejects, look.rejected)
        yield Progress(table=table, done=total, total=total, written=written, rejected=look.rejected, rejects=path)

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Begin a transaction that reads the ancestor's tables; one adoption at a time has one."""
        with db.connect(self.engine) as connection:
            prepare(connection)
            connection.execute(ALONE, {"key": f"helios adopt {metadata.schema}"})
            yield connection

    def binds(self, known: Series) -> dict[str, Any]:
        """Give what the statements of this table bind."""
        return {**ALL, **self.mapping.source.binds(), **known.binds()}

    def stretches(self, total: int, size: int | None) -> Iterator[tuple[int, int | None]]:
        """Divide a table into stretches of blocks; the last one has no end, for what was added since."""
        if self.mapping.heir in (HISTORY, POSITIONS):  # written with the orders, and not at all
            return
        size = size or (STRETCH_OF_ORDERS if self.mapping.heir is ORDERS else STRETCH)
        for first in range(0, max(total, 1), size):
            yield first, (first + size if first + size < total else None)

    def look(self, connection: Connection, known: Series) -> "Look":
        """Look at a whole table once, before anything is written."""
        symbol = "symbol" if "symbol" in self.mapping.heir.columns else "NULL"
        span = "min(open_time), max(open_time)" if self.mapping.heir.model is Kline else "NULL, NULL"
        statement = f"""
            SELECT reason IS NULL AS is_good, {symbol} AS symbol, {span}, count(*)
            FROM ({self.mapping.judged}) AS j GROUP BY reason IS NULL, {symbol if symbol == "symbol" else "()"}
        """
        look = Look()
        for is_good, name, first, last, count in connection.execute(text(statement), self.binds(known)):
            if not is_good:
                look.rejected += count
            elif name:
                look.symbols.append(name)
                look.years |= set(range(first.astimezone(UTC).year, last.astimezone(UTC).year + 1)) if first else set()
        return look

    def make_partitions(self, years: set[int]) -> None:
        """Make the partitions that the candles fall into, each in a transaction of its own: none holds a lock long."""
        interval = self.mapping.heir.derived.get("interval", "").strip("'")
        for year in sorted(years):
            with self.transaction() as connection:
                make_partition(connection, str(metadata.schema), interval, year)

    def write(self, connection: Connection, binds: dict[str, Any]) -> int:
        """Copy one stretch; how many rows were written."""
        hold_instruments(connection, self.mapping.source)
        if self.mapping.heir is ORDERS:
            return orders.write(connection, self.mapping, self.history, binds)
        columns = [*self.mapping.references, *self.mapping.copied]
        values = [*self.mapping.references.values(), *(self.mapping.typed(name) for name in self.mapping.copied)]
        # only measurements have no key of their own by which a repeated one is noticed
        looked_up = self.mapping.heir is METRICS
        joins = f"{self.mapping.referred} {self.mapping.known if looked_up else ''}"
        absent = f"AND {self.mapping.key} IS NULL" if looked_up else ""
        statement = f"""
            INSERT INTO {table_name(self.mapping.table)} ({", ".join(f'"{name}"' for name in columns)})
            SELECT {", ".join(values)} FROM ({self.mapping.judged}) AS j {joins}
            WHERE j.reason IS NULL {absent} ON CONFLICT DO NOTHING
        """
        return connection.execute(text(statement), binds).rowcount

    def set_aside(self, known: Series, folder: Path, count: int) -> Path | None:
        """Write the rows that cannot be adopted to a file, one after the other; where it is, if there are any."""
        path = folder / f"{self.mapping.source.schema}.{self.mapping.found.name}.rejects.csv"
        if not count:
            aside.remove(path)
            return None
        statement = f"""
            SELECT CAST(place AS text), reason, CAST(raw AS text) FROM ({self.mapping.judged}) AS j
            WHERE reason IS NOT NULL ORDER BY part, j.place
        """
        with self.transaction() as connection:
            streaming = connection.execution_options(stream_results=True, yield_per=1000)
            with streaming.execute(text(statement), self.binds(known)) as rows:
                return aside.write(path, HEADER, rows)


@dataclass
class Look:
    """What a table holds: rows that are rejected, and of the others the symbols, and the years of the candles."""

    rejected: int = 0
    symbols: list[str] = field(default_factory=list)
    years: set[int] = field(default_factory=set)


def make_instruments(connection: Connection, source: Source, symbols: list[str]) -> None:
    """Make the instruments that are absent."""
    if symbols:
        statement = f"""
            INSERT INTO {table_name(Instrument.__table__)} (exchange, market, symbol)
            SELECT :exchange, :market, symbol FROM unnest(CAST(:symbols AS text[])) AS symbol
            WHERE symbol NOT IN (
                SELECT symbol FROM {table_name(Instrument.__table__)} WHERE exchange = :exchange AND market = :market
            ) ON CONFLICT DO NOTHING
        """
        connection.execute(text(statement), {**source.binds(), "symbols": symbols})


def make_account(connection: Connection, source: Source) -> None:
    """Make the account that the orders belong to, where it is absent.

    Raises:
        InputError: it belongs to another market.

    """
    values = {"exchange": source.exchange, "name": source.account, "market": source.market}
    connection.execute(insert(Account).values(**values).on_conflict_do_nothing())
    of = select(Account.market).where(Account.exchange == source.exchange, Account.name == source.account)
    if (market := connection.execute(of).scalar_one()) != source.market:
        raise InputError(
            f"account {source.account!r} of {source.exchange} belongs to market {market}, not {source.market}: "
            "name another account"
        )


def hold_instruments(connection: Connection, source: Source) -> None:
    """Keep the instruments from being deleted until the transaction ends, as whoever writes candles does."""
    held = select(Instrument.id).where(Instrument.exchange == source.exchange, Instrument.market == source.market)
    connection.execute(held.with_for_update(key_share=True, read=True))


def place(first: int, last: int | None) -> dict[str, str]:
    """Bound a stretch of a table by the places of its rows."""
    return {"first": f"({first},0)", "last": ALL["last"] if last is None else f"({last},0)"}
