"""Taking back what a test wrote: the undo log beside the rollback recipe, and beside what else people do.

Example: python -m benchmarks --part undo --rounds 30

A table of 100,000 rows is there before. A test opens a connection, adds rows through a session, commits, and is taken
back; the whole of that is its cost. SQLAlchemy's recipe (an outer transaction, rolled back) never commits: a ratio is
to the recipe with one commit of a small change added, since the code under test commits for real. fsync is on.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

from sqlalchemy import URL, Connection, Identity, MetaData, create_engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import NullPool

from benchmarks.place import Place
from helios.schema import environment
from helios.testing import undo as log

SCHEMA = "undo_bench"
BEFORE = 100_000
RUN = 1
TESTS = (1, 100, 10_000)
QUICK = ("rollback recipe, one commit counted", "rollback recipe as it is", "Helios undo log")
VACUUM = f"VACUUM {SCHEMA}.things, {SCHEMA}_undo.things"  # autovacuum is off, so that it disturbs nobody
DEAD = BEFORE // 5  # rows after which it would have come
SLOW_ROUNDS = 3  # of those who are slower by far
MORE = 4  # times as many rounds of small tests
LARGE = {  # what is undone, and the plain statement beside it
    "undo of 1,000,000 inserted rows": (
        f"INSERT INTO {SCHEMA}.things (symbol, price) SELECT 'S' || i, i / 7.0 FROM generate_series(1, 1000000) AS i",
        f"DELETE FROM {SCHEMA}.things WHERE id > {BEFORE}",
    ),
    "undo of 100,000 updated rows": (
        f"UPDATE {SCHEMA}.things SET price = price + 1",
        f"UPDATE {SCHEMA}.things SET price = price + 1",
    ),
}


class Base(DeclarativeBase):
    """A metadata of its own."""

    metadata = MetaData(schema=SCHEMA)


class Thing(Base):
    """A row as a test writes it."""

    __tablename__ = "things"
    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    symbol: Mapped[str]
    price: Mapped[float]


class Bench:
    """The ways to take a test back, each the whole test."""

    def __init__(self, at: Place, lease: Connection) -> None:
        self.at = at
        self.lease = lease
        self.plain = at.engine()
        options = {"options": f"-c helios.test_run={RUN}"}
        self.labelled = create_engine(at.url, poolclass=NullPool, connect_args=options)
        self.admin = create_engine(at.url.set(database="postgres"), poolclass=NullPool, isolation_level="AUTOCOMMIT")

    def write(self, session: Session, rows: int) -> None:
        """Do what the test does."""
        session.add_all([Thing(symbol=f"TEST{i}", price=i) for i in range(rows)])
        session.commit()

    def rollback(self, rows: int) -> None:
        """SQLAlchemy's recipe: an outer transaction, in which a session's commit is a savepoint."""
        with self.plain.connect() as connection:
            transaction = connection.begin()
            with Session(connection, join_transaction_mode="create_savepoint") as session:
                self.write(session, rows)
            transaction.rollback()

    def rollback_and_commit(self, rows: int) -> None:
        """The recipe, with what a commit costs."""
        with self.plain.connect() as connection:
            transaction = connection.begin()
            with Session(connection, join_transaction_mode="create_savepoint") as session:
                self.write(session, rows)
            transaction.rollback()
            with connection.begin():
                connection.exec_driver_sql(f"UPDATE {SCHEMA}.commits SET n = n + 1")

    def undo_log(self, rows: int) -> None:
        """Helios: a real commit, then mark and undo on the run's connection."""
        since = log.mark(self.lease, RUN)
        with Session(self.labelled) as session:
            self.write(session, rows)
        log.undo(self.lease, [RUN], since)

    def delete_orm(self, rows: int) -> None:
        """Deletes through the session, object by object."""
        with Session(self.plain) as session:
            things = [Thing(symbol=f"TEST{i}", price=i) for i in range(rows)]
            session.add_all(things)
            session.commit()
            for thing in things:
                session.delete(thing)
            session.commit()

    def delete_all(self, rows: int) -> None:
        """DELETE FROM each table; the rows from before are put back, or the next test would not find them."""
        with Session(self.plain) as session:
            self.write(session, rows)
            session.execute(text(f"DELETE FROM {SCHEMA}.things"))
            session.execute(text(f"INSERT INTO {SCHEMA}.things SELECT * FROM {SCHEMA}.kept"))
            session.commit()

    def truncate_all(self, rows: int) -> None:
        """TRUNCATE each table, and the same."""
        with Session(self.plain) as session:
            self.write(session, rows)
            session.execute(text(f"TRUNCATE {SCHEMA}.things"))
            session.execute(text(f"INSERT INTO {SCHEMA}.things SELECT * FROM {SCHEMA}.kept"))
            session.commit()

    def template_clone(self, rows: int) -> None:
        """A database of the test's own, copied from a template."""
        with self.admin.connect() as connection:
            connection.exec_driver_sql("CREATE DATABASE undo_bench_clone TEMPLATE undo_bench_template")
        with Session(create_engine(self.at.url.set(database="undo_bench_clone"), poolclass=NullPool)) as session:
            self.write(session, rows)
        with self.admin.connect() as connection:
            connection.exec_driver_sql("DROP DATABASE undo_bench_clone")

    def janitor(self, rows: int) -> None:
        """A database of the test's own by pytest-postgresql, which copies a template as well."""
        from pytest_postgresql.janitor import DatabaseJanitor  # noqa: PLC0415 - a peer: not needed to measure the rest

        url = self.at.url
        host = url.query.get("host", url.host)
        clone = DatabaseJanitor(
            user=str(url.username),
            host=str(host),
            port=url.port or 5432,
            password=url.password,
            version=self.at.version,
            dbname="undo_bench_janitor",
            template_dbname="undo_bench_template",
        )
        with clone, Session(create_engine(url.set(database=clone.dbname), poolclass=NullPool)) as session:
            self.write(session, rows)

    def ways(self) -> dict[str, Callable[[int], None]]:
        """Name the contestants, the anchor first."""
        return {
            "rollback recipe, one commit counted": self.rollback_and_commit,
            "rollback recipe as it is": self.rollback,
            "Helios undo log": self.undo_log,
            "ORM deletes one by one": self.delete_orm,
            "DELETE all, rows put back": self.delete_all,
            "TRUNCATE all, rows put back": self.truncate_all,
            "template clone": self.template_clone,
            "pytest-postgresql": self.janitor,
        }


def undo(at: Place, options: argparse.Namespace, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Measure tests of each size, then large undos beside the plain statement: medians, and ratios; less is better."""
    results: list[dict[str, Any]] = []
    fill(at)
    with at.engine().connect().execution_options(isolation_level="AUTOCOMMIT") as lease:
        log.install(lease, SCHEMA, [Thing.__table__])
        log.begin(lease, RUN)
        beginning = log.mark(lease, RUN)
        bench = Bench(at, lease)
        for rows in TESTS:
            say(f"tests of {rows:,} rows ...")
            results += tests(bench, rows, options)
        for content, (change, plain) in LARGE.items():
            say(f"{content} ...")
            results += large(at, bench, content, change, plain, beginning, max(1, options.rounds // 3))
        log.undo(lease, [RUN])
        log.close(lease, RUN)
    return results


def fill(at: Place) -> None:
    """Make the table, its rows from before, and a copy of the database to clone."""
    with at.engine().begin() as connection:
        connection.exec_driver_sql(f"CREATE SCHEMA {SCHEMA}")
        Base.metadata.create_all(connection)
        connection.exec_driver_sql(
            f"INSERT INTO {SCHEMA}.things (symbol, price) "
            f"SELECT 'S' || i, i / 7.0 FROM generate_series(1, {BEFORE}) AS i"
        )
        connection.exec_driver_sql(f"CREATE TABLE {SCHEMA}.kept AS SELECT * FROM {SCHEMA}.things")
        connection.exec_driver_sql(f"CREATE TABLE {SCHEMA}.commits AS SELECT 1 AS n")
        environment.mark(connection, SCHEMA, "test")
    at.ask("VACUUM ANALYZE")
    with admin(at.url) as connection:
        connection.exec_driver_sql(f'CREATE DATABASE undo_bench_template TEMPLATE "{at.url.database}"')


@contextmanager
def admin(url: URL) -> Any:  # noqa: ANN401 - a context manager
    """Connect to another database than the one that is copied."""
    engine = create_engine(url.set(database="postgres"), poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        yield connection


def tests(bench: Bench, rows: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time whole tests, the ways in turn."""
    ways = {
        name: way for name, way in bench.ways().items() if not options.only or options.only in name or "recipe" in name
    }
    rounds, dead = options.rounds * (1 if rows == TESTS[-1] else MORE), 0
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(-SLOW_ROUNDS, rounds):
        for name, way in ways.items():
            if name not in QUICK and turn >= SLOW_ROUNDS:
                continue
            began = time.perf_counter()
            way(rows)
            if turn >= 0:
                taken[name].append(time.perf_counter() - began)
            dead += rows
            if dead > DEAD:
                bench.at.ask(VACUUM)
                dead = 0
    return told(f"a test of {rows:,} rows", taken)


def large(  # noqa: PLR0913, PLR0917 - what is compared
    at: Place, bench: Bench, content: str, change: str, plain: str, beginning: int, rounds: int
) -> list[dict[str, Any]]:
    """Time the undo of a large change beside the plain statement that does as much."""
    taken: dict[str, list[float]] = {"plain statement": [], "Helios undo log": []}
    for _ in range(rounds):
        for name, seconds in taken.items():
            engine = bench.labelled if name == "Helios undo log" else bench.plain
            with engine.begin() as connection:
                connection.exec_driver_sql(change)
            at.ask(f"VACUUM ANALYZE {SCHEMA}.things")
            at.ask("CHECKPOINT")
            began = time.perf_counter()
            if name == "Helios undo log":
                log.undo(bench.lease, [RUN], beginning)
            else:
                with bench.plain.begin() as connection:
                    connection.exec_driver_sql(plain)
            seconds.append(time.perf_counter() - began)
            at.ask(f"VACUUM {SCHEMA}.things")
    return told(content, taken)


def told(content: str, taken: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Give a row for each way: medians, and the ratio to the first."""
    medians = {name: statistics.median(seconds) for name, seconds in taken.items()}
    anchor = next(iter(medians.values()))
    return [
        {"content": content, "way": name, "ms": round(each * 1000, 2), "ratio": round(each / anchor, 2)}
        for name, each in medians.items()
    ]
