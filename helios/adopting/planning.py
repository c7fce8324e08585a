"""What of the ancestor's tables can be adopted, what is there already, and what cannot be, with every reason."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from helios.adopting.ancestor import HISTORY, ORDERS, Heir
from helios.adopting.mapping import ALL, FLOATS, Mapping
from helios.adopting.source import Found, Source, tables
from helios.errors import SchemaError
from helios.layout import distributed
from helios.models import Kline

Tell = Callable[[str, int, int], None]
PLAUSIBLE = "FILTER (WHERE open_time BETWEEN '2000-01-01T00:00Z' AND '2200-01-01T00:00Z')"


@dataclass(frozen=True, kw_only=True)
class Share:
    """One table: its rows, how many can be adopted, how many of those are there, and how many of these differ.

    What differs stays as Helios holds it. `rejected` counts the others by reason; `problem` says why a table is left
    alone as a whole; `unknown` are columns nobody knows, `left` those that are left behind, with why.
    """

    table: str
    into: str | None = None
    rows: int = 0
    good: int = 0
    there: int = 0
    differing: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    problem: str | None = None
    unknown: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def missing(self) -> int:
        """Rows that can be adopted and are not there yet."""
        return self.good - self.there


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What adopting would do; after it was done, what it did."""

    source: Source
    shares: list[Share]

    @property
    def missing(self) -> int:
        """Rows that adopting would write."""
        return sum(each.missing for each in self.shares)


@dataclass(frozen=True)
class Series:
    """The symbols of a table of candles, and the newest candle of each."""

    symbols: Sequence[str] = ()
    newest: Sequence[datetime] = ()

    def binds(self) -> dict[str, list[Any]]:
        """Give what statements bind of it."""
        return {"symbols": list(self.symbols), "newest": list(self.newest)}


def plan(connection: Connection, source: Source | None = None, *, progress: Tell | None = None) -> Plan:
    """Count what can be adopted of a schema; every row of it is read and compared, nothing is written.

    `progress` is called before each table, with its name, its number and how many there are.

    Raises:
        InputError: there is nothing to adopt, or a column is of a type that cannot be read.
        SchemaError: klines are shards of Citus.
        RightsError: the login may not read the ancestor's tables; the message holds the SQL that helps.

    """
    source = source or Source()
    refuse_shards(connection)
    prepare(connection)
    pairs = mappings(tables(connection, source), source)
    shares = []
    for number, (found, mapping) in enumerate(pairs):
        if progress:
            progress(found.name, number, len(pairs))
        shares.append(share_of(connection, mapping, found))
    return Plan(source=source, shares=shares)


def refuse_shards(connection: Connection) -> None:
    """Refuse klines on Citus, which joins no shards with what is judged row by row.

    Raises:
        SchemaError: so it is.

    """
    if distributed(connection, str(Kline.__table__.schema)):
        raise SchemaError(
            "klines are shards of Citus, into which nothing can be adopted: adopt before `helios klines convert --to "
            "citus`, or after `--to partitions`"
        )


def prepare(connection: Connection) -> None:
    """Let this transaction read doubles by their shortest text, and take its time."""
    connection.execute(text("SET LOCAL extra_float_digits = 1"))
    connection.execute(text("SET LOCAL statement_timeout = 0"))


def mappings(found: list[Found], source: Source) -> list[tuple[Found, Mapping | None]]:
    """Map each table; None where it is left alone. The history of orders is judged by whether its order is adopted."""
    made: dict[str, Mapping] = {}
    for each in found:
        if each.heir is not None and each.problem is None:
            made[each.name] = Mapping(found=each, heir=each.heir, source=source)
    if history := made.get(HISTORY.table):
        reasons = about_orders(made.get(ORDERS.table))
        made[HISTORY.table] = Mapping(found=history.found, heir=HISTORY, source=source, reasons=reasons)
    return [(each, made.get(each.name)) for each in found]


def about_orders(orders: Mapping | None) -> tuple[tuple[str, str], ...]:
    """Tell of which orders no history is adopted."""
    if orders is None:
        return (("true", "there is no table of orders"),)
    good = f"({orders.judged}) AS j {orders.referred} {orders.known} WHERE reason IS NULL"
    renamed = f"{orders.key} IS NOT NULL AND k.client_order_id IS DISTINCT FROM j.client_order_id"
    return (
        (f"of_order NOT IN (SELECT j.client_order_id FROM {good})", "its order is not adopted"),
        (f"of_order IN (SELECT j.client_order_id FROM {good} AND {renamed})", "its order is there under another id"),
    )


def share_of(connection: Connection, mapping: Mapping | None, found: Found) -> Share:
    """Count one table."""
    if mapping is None:
        return Share(table=found.name, problem=found.problem)
    heir = mapping.heir
    compared = heir.compared or [name for name in mapping.copied if name != "id"]
    known = ", ".join(f'k."{name}"' for name in compared)
    told = ", ".join(mapping.typed(name) for name in compared)
    differs = f"{mapping.key} IS NOT NULL AND ROW({known}) IS DISTINCT FROM ROW({told})"
    statement = f"""
        SELECT j.reason, count(*) AS rows, count({mapping.key}) AS there, count(*) FILTER (WHERE {differs}) AS differing
        FROM ({mapping.judged}) AS j {mapping.referred} {mapping.known}
        GROUP BY j.reason ORDER BY count(*) DESC, j.reason
    """
    binds = {**ALL, **mapping.source.binds(), **series(connection, mapping).binds()}
    counts = connection.execute(text(statement), binds).all()
    good = next((each for each in counts if each.reason is None), None)
    return Share(
        table=found.name,
        into=mapping.table.name,
        rows=sum(each.rows for each in counts),
        good=good.rows if good else 0,
        there=good.there if good else 0,
        differing=good.differing if good else 0,
        rejected={each.reason: each.rows for each in counts if each.reason is not None},
        unknown=found.unknown,
        left=found.left,
        notes=[*heir.notes, *type_notes(found, heir)],
    )


def series(connection: Connection, mapping: Mapping) -> Series:
    """Find the newest candle of each symbol of a table of candles."""
    if mapping.heir.model is not Kline:
        return Series()
    statement = f"SELECT symbol, max(open_time) {PLAUSIBLE} FROM ({mapping.read}) AS r GROUP BY symbol"
    rows = connection.execute(text(statement), {**ALL, **mapping.source.binds(), **Series().binds()}).all()
    rows = [row for row in rows if None not in row]
    return Series([row[0] for row in rows], [row[1] for row in rows])


def type_notes(found: Found, heir: Heir) -> list[str]:
    """Say how the types of columns were read, where they do not say all themselves."""
    read = {name: found.types[name] for name in filter(None, (found.named(each) for each in heir.columns))}
    zoneless = [name for name, of in read.items() if of in ("timestamp", "date")]
    doubles = [name for name, of in read.items() if of in FLOATS]
    said = [f"{', '.join(zoneless)} without a time zone: taken as UTC"] if zoneless else []
    return [*said, *([f"{', '.join(doubles)} as doubles: read by their shortest text"] if doubles else [])]
