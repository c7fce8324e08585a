"""A schema with everything that makes an undo hard, tables of no product; and runs on it, as its logins make them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from random import getrandbits
from threading import Thread
from typing import Any

from installation import engine_of, login, made, run_sql
from sqlalchemy import URL, Computed, Connection, ForeignKey, Identity, MetaData, create_engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from sqlalchemy.pool import NullPool

from helios.schema import environment
from helios.testing import undo

SCHEMA = "shop"
SQL = Path(__file__).with_name("undo_shop.sql")


class Base(DeclarativeBase):
    """A metadata of its own."""

    metadata = MetaData(schema=SCHEMA)


class Instrument(Base):
    """The top of a cascade."""

    __tablename__ = "instruments"
    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    symbol: Mapped[str]
    v: Mapped[int] = mapped_column(default=0)
    orders: Mapped[list["Order"]] = relationship(cascade="all, delete-orphan")


class Order(Base):
    """In its middle."""

    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    client_id: Mapped[str | None]
    instrument_id: Mapped[int | None] = mapped_column(ForeignKey(Instrument.id))
    status: Mapped[str] = mapped_column(server_default="NEW")
    qty: Mapped[Decimal | None]
    doubled: Mapped[Decimal | None] = mapped_column(Computed("qty * 2"))
    fills: Mapped[list["Fill"]] = relationship(cascade="all, delete-orphan")


class Fill(Base):
    """At its end."""

    __tablename__ = "fills"
    order_id: Mapped[int] = mapped_column(ForeignKey(Order.id), primary_key=True)
    n: Mapped[int] = mapped_column(primary_key=True)
    price: Mapped[Decimal | None]


@dataclass
class Shop:
    """The schema in a database of its own: its owner installed the log, its writer is what tests are."""

    admin: URL
    owner: URL
    writer: URL
    neighbour: URL
    tables: list[Any] = field(default_factory=list)

    def digest(self) -> dict[str, str]:
        """Hash all rows."""
        with self.kit() as connection:
            return undo.digest(connection, self.tables)

    @contextmanager
    def kit(self) -> Iterator[Connection]:
        """A connection of the kit's own, as the schema's owner."""
        engine = create_engine(self.owner, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            yield connection

    @contextmanager
    def beside(self) -> Iterator[Connection]:
        """A neighbour's connection: not labelled, each statement committed."""
        engine = create_engine(self.neighbour, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            yield connection

    def logged(self) -> int:
        """Count what is left in the log: entries, plans and runs."""
        with engine_of(self.admin).connect() as connection:
            names = connection.execute(text(f"SELECT log, plan FROM {SCHEMA}_undo._tables")).all()
            tables = [each for row in names for each in row] + [f"{SCHEMA}_undo._runs", f"{SCHEMA}_undo._undos"]
            parts = " UNION ALL ".join(f"SELECT FROM {each}" for each in tables).replace("%", "%%")
            return int(connection.exec_driver_sql(f"SELECT count(*) FROM ({parts}) AS each").scalar_one())

    def rows(self, question: str, **values: Any) -> list[tuple[Any, ...]]:
        """Ask as the superuser."""
        with engine_of(self.admin).connect() as connection:
            return [tuple(row) for row in connection.execute(text(question), values)]


@dataclass
class Run:
    """A test run: the kit's connection, which holds its lease, and engines that carry its label."""

    shop: Shop
    connection: Connection
    id: int

    def engine(self, url: URL | None = None, **options: Any) -> Any:
        """An engine of the run's writer; each connection is new, as of another process."""
        arguments = {"options": f"-c helios.test_run={self.id}"}
        return create_engine(url or self.shop.writer, poolclass=NullPool, connect_args=arguments, **options)

    def write(self, *statements: str, one: bool = True, url: URL | None = None) -> None:
        """Run statements in one transaction, or each in its own."""
        engine = self.engine(url, **({} if one else {"isolation_level": "AUTOCOMMIT"}))
        with engine.begin() as connection:
            for each in statements:
                connection.exec_driver_sql(each, execution_options={"no_parameters": True})

    def mark(self) -> int:
        """Mark a point."""
        return undo.mark(self.connection, self.id, schema=SCHEMA)

    def undo(self, since: int = 0, **options: Any) -> list[tuple[str, str, int, str]]:
        """Undo, as tuples without the schema's name."""
        found = undo.undo(self.connection, [self.id], since, schema=SCHEMA, **options)
        return sorted((each.table.removeprefix(f"{SCHEMA}."), each.what, each.count, each.why) for each in found)

    def close(self) -> None:
        """Give the lease back."""
        undo.close(self.connection, self.id, schema=SCHEMA)


@contextmanager
def running(shop: Shop) -> Iterator[Run]:
    """Begin a run; it is undone and closed at the end if the test did not."""
    with shop.kit() as connection:
        run = Run(shop, connection, getrandbits(62) + 1)
        undo.begin(connection, run.id, schema=SCHEMA)
        try:
            yield run
        finally:
            if run.id in undo.registered(connection, schema=SCHEMA):
                run.undo()
                run.close()


def until_undo_waits(shop: Shop, thread: Thread) -> None:
    """Return when the undo that a thread does waits for somebody's lock."""
    while not shop.rows("SELECT FROM pg_stat_activity WHERE query LIKE '%undo_runs%' AND wait_event_type = 'Lock'"):
        assert thread.is_alive()


@contextmanager
def undone(shop: Shop) -> Iterator[Run]:
    """Let a test write inside; afterwards all is as before, to the last digit, and the log is empty."""
    before = shop.digest()
    with running(shop) as run:
        yield run
        changed = shop.digest()
        kept = [each for each in run.undo() if each[1] == "kept"]
        run.close()
    assert before != changed, "the test wrote nothing"
    assert [] == kept
    assert before == shop.digest()
    assert 0 == shop.logged()


@contextmanager
def shop_of(cluster: URL) -> Iterator[Shop]:
    """Make a database with the schema, its logins, and the log installed by its owner, who is no superuser."""
    with made(cluster) as url:
        owner = login(url, "owner", "GRANT pg_read_all_stats TO {login}")  # to name the query that blocks an undo
        run_sql(url, f"ALTER DATABASE {url.database} OWNER TO {owner.username}")
        shop = Shop(url, owner, login(url, "writer"), login(url, "neighbour"))
        script = SQL.read_text().replace("{writer}", str(shop.writer.username))
        with engine_of(owner).begin() as connection:
            connection.exec_driver_sql(
                script.replace("{neighbour}", str(shop.neighbour.username)), execution_options={"no_parameters": True}
            )
            environment.mark(connection, SCHEMA, "test")
        shop.tables = tables_of(owner)
        with shop.kit() as connection:
            undo.install(connection, SCHEMA, shop.tables)
        yield shop


def tables_of(url: URL, schema: str = SCHEMA) -> list[Any]:
    """Reflect the tables of a schema, without partitions."""
    metadata = MetaData(schema=schema)
    with engine_of(url).connect() as connection:
        metadata.reflect(connection)
        parts = set(connection.scalars(text("SELECT relname::text FROM pg_class WHERE relispartition")))
    return [each for each in metadata.tables.values() if each.name not in parts and each.schema == schema]
