"""Operations for revisions beside live trading: indexes built without stopping a writer, also on partitioned tables.

They are reached as `op.create_index_concurrently(...)` and `op.drop_index_concurrently(...)`, so that a revision
imports nothing but alembic and sqlalchemy. Each can be killed and run again.
"""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from alembic.operations import MigrateOperation, Operations
from sqlalchemy import Connection, text

from helios.errors import SchemaError
from helios.schema.preparation import patiently
from helios.schema.roles import LONGEST_NAME

log = logging.getLogger("helios.schema")

KIND = text("SELECT relkind::text FROM pg_class WHERE oid = to_regclass(quote_ident(:name))")
CHILDREN = text("""
    SELECT relname::text FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
    WHERE inhparent = to_regclass(quote_ident(:name)) ORDER BY 1
""")
INDEX = text("""
    SELECT indisvalid AS valid, EXISTS (SELECT FROM pg_inherits WHERE inhrelid = indexrelid) AS attached
    FROM pg_index WHERE indexrelid = to_regclass(quote_ident(:name))
""")


@dataclass
class CreateIndexConcurrently(MigrateOperation):
    """An index to build while others write; on a partitioned table part by part, then attached."""

    name: str
    table: str
    columns: Sequence[str]
    unique: bool = False
    where: str | None = None

    @classmethod
    def create_index_concurrently(cls, operations: Operations, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - Alembic's calling convention
        """Build an index: name, table, columns; `unique`, and `where` as SQL for a partial one."""
        return operations.invoke(cls(*arguments, **options))

    @property
    def noun(self) -> str:
        """Say INDEX or UNIQUE INDEX."""
        return "UNIQUE INDEX" if self.unique else "INDEX"

    def reverse(self) -> "DropIndexConcurrently":
        """Tell Alembic what undoes this."""
        return DropIndexConcurrently(self.name)


@dataclass
class DropIndexConcurrently(MigrateOperation):
    """An index to drop; on a partitioned table PostgreSQL offers only the plain way, which is brief."""

    name: str

    @classmethod
    def drop_index_concurrently(cls, operations: Operations, name: str) -> Any:  # noqa: ANN401 - Alembic's calling convention
        """Drop an index by its name; nothing happens where there is none."""
        return operations.invoke(cls(name))


def register() -> None:
    """Give Alembic's `op` these operations; again changes nothing."""
    if hasattr(Operations, "create_index_concurrently"):
        return
    Operations.register_operation("create_index_concurrently")(CreateIndexConcurrently)
    Operations.register_operation("drop_index_concurrently")(DropIndexConcurrently)
    Operations.implementation_for(CreateIndexConcurrently)(create)
    Operations.implementation_for(DropIndexConcurrently)(drop)


def create(operations: Operations, wanted: CreateIndexConcurrently) -> None:
    """Build the index, or go on where a killed migration stopped."""
    with beside_writers(operations) as builder:
        builder.build(wanted, wanted.table, wanted.name)


def drop(operations: Operations, unwanted: DropIndexConcurrently) -> None:
    """Drop the index."""
    with beside_writers(operations) as builder:
        builder.drop(unwanted.name)


@contextmanager
def beside_writers(operations: Operations) -> Iterator["Builder"]:
    """Leave the migration's transaction for a while: CONCURRENTLY runs in none."""
    context = operations.get_context()
    if context.as_sql:
        raise SchemaError(
            "an index is built CONCURRENTLY by looking at the partitions that exist, which printed SQL cannot do: "
            "run this revision online"
        )
    with context.autocommit_block():
        connection = operations.get_bind()
        yield Builder(connection, float(context.opts["helios_wait"]))


@dataclass
class Builder:
    """Index statements on a connection in autocommit mode."""

    connection: Connection
    wait: float

    def build(self, wanted: CreateIndexConcurrently, table: str, index: str, parent_index: str | None = None) -> None:
        """Make one table's index, and attach it to the index of its parent.

        The parents' come first, empty, so that a partition made meanwhile gets its index by itself.
        """
        kind = self.connection.scalar(KIND, {"name": table})
        if kind is None:
            raise SchemaError(f"there is no table {table!r} to index: correct the name in the revision")
        if kind == "p":
            self.briefly(
                f"CREATE {wanted.noun} IF NOT EXISTS {self.quote(index)} ON ONLY {self.definition(wanted, table)}"
            )
            for child in self.connection.scalars(CHILDREN, {"name": table}).all():
                self.build(wanted, child, name_of_part(wanted.name, child), index)
        else:
            self.build_leaf(wanted, table, index)
        if parent_index and not self.connection.execute(INDEX, {"name": index}).one().attached:
            self.briefly(f"ALTER INDEX {self.quote(parent_index)} ATTACH PARTITION {self.quote(index)}")

    def build_leaf(self, wanted: CreateIndexConcurrently, table: str, index: str) -> None:
        """Build the index of a plain table; what a killed migration left invalid is dropped first."""
        found = self.connection.execute(INDEX, {"name": index}).one_or_none()
        if found is not None and found.valid:
            return
        if found is not None:
            self.at_leisure(f"DROP INDEX CONCURRENTLY {self.quote(index)}")
        log.info("building index %s on %s", index, table)
        self.at_leisure(f"CREATE {wanted.noun} CONCURRENTLY {self.quote(index)} ON {self.definition(wanted, table)}")

    def drop(self, index: str) -> None:
        """Drop an index: concurrently where PostgreSQL can."""
        kind = self.connection.scalar(KIND, {"name": index})
        if kind == "I":
            self.briefly(f"DROP INDEX {self.quote(index)}")
        elif kind is not None:
            self.at_leisure(f"DROP INDEX CONCURRENTLY {self.quote(index)}")

    def briefly(self, statement: str) -> None:
        """Run what blocks writers for a moment: under the lock timeout, tried again until it fits in."""
        patiently(self.connection.engine, self.wait, lambda: self.run(statement))

    def at_leisure(self, statement: str) -> None:
        """Run what blocks no writer: it may wait as long as it takes, since a lock timeout would leave it half done."""
        before = self.connection.scalar(text("SELECT current_setting('lock_timeout')"))
        self.connection.execute(text("SELECT set_config('lock_timeout', '0', false)"))
        try:
            self.run(statement)
        finally:
            self.connection.execute(text("SELECT set_config('lock_timeout', :before, false)"), {"before": before})

    def run(self, statement: str) -> None:
        """Run a statement as it stands."""
        self.connection.exec_driver_sql(statement, execution_options={"no_parameters": True})

    def definition(self, wanted: CreateIndexConcurrently, table: str) -> str:
        """Write `table (columns) WHERE ...`."""
        columns = ", ".join(self.quote(column) for column in wanted.columns)
        where = f" WHERE {wanted.where}" if wanted.where else ""
        return f"{self.quote(table)} ({columns}){where}"

    def quote(self, name: str) -> str:
        """Quote an identifier."""
        return self.connection.dialect.identifier_preparer.quote_identifier(name)


def name_of_part(index: str, table: str) -> str:
    """Name the index of one partition, in at most 63 bytes."""
    name = f"{index}_{table}"
    if len(name.encode()) <= LONGEST_NAME:
        return name
    return f"{name[:54]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
