"""The ancestor's tables as they are found: their columns, their size, and what this login may read of them."""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, text

from helios.adopting.ancestor import Heir, heir_of
from helios.errors import InputError, RightsError
from helios.models import Market, SessionMode, metadata

TABLES = text("""
    SELECT pg_class.oid::bigint AS oid, relname::text AS name, relkind::text AS kind,
           has_schema_privilege(relnamespace, 'USAGE') AND has_table_privilege(pg_class.oid, 'SELECT') AS readable
    FROM pg_class WHERE relnamespace = to_regnamespace(quote_ident(:schema)) AND NOT relispartition
        AND (relname = ANY (:names) OR relname LIKE 'ohlcv\\_%') AND relkind IN ('r', 'p', 'v', 'm', 'f')
    ORDER BY relname
""")
COLUMNS = text("""
    SELECT attname::text AS name,
           CASE WHEN typtype = 'e' THEN 'text' WHEN typtype = 'd' THEN typbasetype::regtype::text ELSE typname::text END
               AS type
    FROM pg_attribute JOIN pg_type ON pg_type.oid = atttypid
    WHERE attrelid = CAST(:oid AS oid) AND attnum > 0 AND NOT attisdropped ORDER BY attnum
""")
BLOCKS = text("""
    WITH RECURSIVE part AS (
        SELECT CAST(:oid AS oid) AS oid UNION SELECT inhrelid FROM pg_inherits JOIN part ON inhparent = part.oid
    )
    SELECT coalesce(max(pg_relation_size(oid) / current_setting('block_size')::int), 0)::bigint FROM part
""")
LOGIN = text("SELECT quote_ident(current_user)")
EXISTS = text("SELECT to_regnamespace(quote_ident(:schema)) IS NOT NULL")
NAMES = (
    "current_prices",
    "trading_sessions",
    "orders",
    "order_history",
    "positions",
    "data_quality_metrics",
)


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the ancestor's tables are, and what they do not tell themselves: exchange, market, account, mode."""

    schema: str = "public"
    exchange: str = "binance"
    market: Market = Market.SPOT
    account: str = "main"
    mode: SessionMode | None = None

    def binds(self) -> dict[str, str | None]:
        """Give what statements bind of it."""
        return {
            "exchange": self.exchange,
            "market": self.market.value,
            "account": self.account,
            "mode": self.mode.value if self.mode else None,
        }


@dataclass(frozen=True, kw_only=True)
class Found:
    """A table of the ancestor's; `types` are those of its columns, `problem` says why it is left alone as a whole."""

    oid: int
    name: str
    heir: Heir | None
    types: Mapping[str, str]
    problem: str | None

    def named(self, column: str) -> str | None:
        """Find the name under which the table holds a value."""
        names = self.heir.columns[column].names if self.heir else ()
        return next((name for name in names if name in self.types), None)

    @property
    def unknown(self) -> list[str]:
        """The columns that nobody knows."""
        if self.heir is None:
            return list(self.types)
        taken = {self.named(column) for column in self.heir.columns}
        return [name for name in self.types if name not in taken and name not in self.heir.left]

    @property
    def left(self) -> dict[str, str]:
        """The columns that are left behind on purpose, each with why."""
        if self.heir is None:
            return {}
        taken = {self.named(column) for column in self.heir.columns}
        return {name: why for name, why in self.heir.left.items() if name in self.types and name not in taken}


def tables(connection: Connection, source: Source) -> list[Found]:
    """Find the ancestor's tables.

    Raises:
        InputError: there is no such schema, it is Helios's own, or it holds none of them.
        RightsError: the login may not read one; the message holds the SQL that helps.

    """
    if source.schema == metadata.schema:
        raise InputError(
            f"{source.schema!r} is Helios's own schema: name the one that holds the older installation's tables"
        )
    if not connection.scalar(EXISTS, {"schema": source.schema}):
        raise InputError(
            f"this database has no schema {source.schema!r}: name the one that holds the older installation's tables"
        )
    rows = connection.execute(TABLES, {"schema": source.schema, "names": list(NAMES)}).all()
    if not rows:
        raise InputError(
            f"schema {source.schema!r} holds no older installation's tables (ohlcv_1m, current_prices, orders ...): "
            "there is nothing to adopt"
        )
    if closed := [row.name for row in rows if not row.readable]:
        login = connection.scalar(LOGIN)
        listed = ", ".join(f"{quoted(source.schema)}.{quoted(name)}" for name in closed)
        raise RightsError(
            f"this login may not read {', '.join(closed)}: "
            f"GRANT USAGE ON SCHEMA {quoted(source.schema)} TO {login}; GRANT SELECT ON {listed} TO {login};"
        )
    found = [look(connection, row.oid, row.name, row.kind) for row in rows]
    order = {name: place for place, name in enumerate(NAMES)}
    return sorted(found, key=lambda each: (order.get(each.name, -1), each.name))


def look(connection: Connection, oid: int, name: str, kind: str) -> Found:
    """Look at one table, and say whether it is the ancestor's at all."""
    heir = heir_of(name)
    types = {row.name: row.type for row in connection.execute(COLUMNS, {"oid": oid})}
    found = Found(oid=oid, name=name, heir=heir, types=types, problem=None)
    problem = None
    if heir is None:
        problem = "its name tells no interval that Helios knows"
    elif kind not in "rp":
        problem = "it is not a table, but a view or foreign"
    elif absent := [each for each in heir.needed if found.named(each) is None]:
        wanted = ", ".join(" or ".join(heir.columns[each].names) for each in absent)
        problem = f"it is another table of that name: it has no column {wanted}"
    return Found(oid=oid, name=name, heir=heir, types=types, problem=problem)


def blocks(connection: Connection, found: Found) -> int:
    """Count the blocks of a table, or of its largest part."""
    return int(connection.execute(BLOCKS, {"oid": found.oid}).scalar_one())


def quoted(name: str) -> str:
    """Quote a name as SQL, for a statement in which a colon marks a value to bind."""
    doubled = name.replace('"', '""')
    return f'"{doubled}"'.replace(":", "\\:")
