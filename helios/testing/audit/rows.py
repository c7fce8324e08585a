"""What unlabelled connections changed in PostgreSQL, as far as that can be known without being superuser.

A transaction that writes takes the next transaction id of the server; while that stands still, nothing was written, in
any database. Otherwise the ids in between, less those that the run knows as its own and those rolled back, are others';
rows that show one of them as their `xmin` are what they wrote. Asked after the undo, when the test's own rows are
gone, so that savepoints, whose ids nobody notes, do not appear. What cannot be known: who took an id that is no longer
running (so the connections that are there now are named, all of them), and rows that others deleted.
"""

from collections.abc import Collection, Sequence

from sqlalchemy import Connection, Table, column, func, literal, select, text, union_all
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.types import UserDefinedType

from helios.testing.audit import Unattributed

LARGEST = 10_000  # pages; a larger table is not read through
MOST = 10_000  # transactions of others; beyond that there is no use in looking
NEXT = text("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint")

COMMITTED = text("""
    SELECT id FROM generate_series(CAST(:first AS bigint), CAST(:last AS bigint)) AS id
    WHERE id <> ALL(CAST(:known AS bigint[])) AND pg_xact_status(id::text::xid8) = 'committed'
""")
SIZES = text("""
    SELECT space.nspname::text AS schema, class.relname::text AS name FROM pg_class AS class
    JOIN pg_namespace AS space ON space.oid = class.relnamespace
    WHERE space.nspname = ANY(:schemas) AND class.relkind IN ('r', 'p')
      AND (SELECT coalesce(sum(pg_relation_size(part.relid)), 0) FROM pg_partition_tree(class.oid) AS part)
          + pg_relation_size(class.oid) > CAST(:pages AS bigint) * current_setting('block_size')::bigint
""")
# A login without pg_monitor sees of others neither state nor kind, but name, user, and whether they hold an id.
CONNECTED = text("""
    SELECT DISTINCT coalesce(nullif(application_name, ''), 'without a name') || ' (' || usename
        || CASE WHEN backend_xid IS NULL THEN '' ELSE ', writing now' END || ')'
    FROM pg_stat_activity
    WHERE datname = current_database() AND usename IS NOT NULL AND pid <> pg_backend_pid()
      AND coalesce(backend_type, 'client backend') = 'client backend'
    ORDER BY 1
""")


class TransactionId(UserDefinedType[str]):
    """PostgreSQL's type xid."""

    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        """Name it."""
        return "xid"


class PostgresAudit:
    """Watches one database from a connection of its own, in autocommit and without the label."""

    def __init__(self, connection: Connection, tables: Sequence[Table]) -> None:
        self.connection = connection
        self.tables = tables
        self.since = self.next_transaction()

    def next_transaction(self) -> int:
        """Give the id that the next writing transaction of this server takes; one quick statement."""
        return int(self.connection.scalar(NEXT) or 0)

    def begin(self) -> None:
        """Look from now on."""
        self.since = self.next_transaction()

    def report(self, known: Collection[int] = ()) -> Unattributed | None:
        """Tell what unlabelled connections wrote since `begin`, or None.

        Args:
            known: ids of transactions of the run and of its undo.

        """
        now = self.next_transaction()
        if now == self.since:
            return None
        if now - self.since > MOST:
            return Unattributed(
                "postgresql", {}, self.connected(), f"{now - self.since} transactions, too many to tell"
            )
        values = {"first": self.since, "last": now - 1, "known": list(known)}
        others = [row[0] for row in self.connection.execute(COMMITTED, values)]
        found, large = self.rows(others) if others else ({}, [])
        if not found and not large:
            return None
        blind = f"not looked at, being large: {', '.join(large)}" if large else ""
        return Unattributed("postgresql", found, self.connected(), blind)

    def rows(self, transactions: Sequence[int]) -> tuple[dict[str, int], list[str]]:
        """Count the rows that these transactions wrote, by table; and name the tables that are too large to look."""
        asked = {"pages": LARGEST, "schemas": list({each.schema or "public" for each in self.tables})}
        large = {(row.schema, row.name) for row in self.connection.execute(SIZES, asked)}
        small = [each for each in self.tables if (each.schema or "public", each.name) not in large]
        skipped = [each.fullname for each in self.tables if each not in small]
        if not small:
            return {}, skipped
        ids = literal([str(each % 2**32) for each in transactions]).cast(ARRAY(TransactionId()))
        counts = [
            select(literal(each.fullname).label("name"), func.count().label("rows"))
            .select_from(each)
            .where(column("xmin", _selectable=each) == func.any(ids))
            for each in small
        ]
        return {name: rows for name, rows in self.connection.execute(union_all(*counts)) if rows}, skipped

    def connected(self) -> tuple[str, ...]:
        """Name who is connected to this database; everybody may see application_name and user of everybody."""
        return tuple(str(row[0]) for row in self.connection.execute(CONNECTED))
