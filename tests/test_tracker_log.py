"""The log that the tracker writes, for a role that may read and write tables and no more: what it sees is undone."""

import asyncio
import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal

import pytest
from installation import engine_of, login, made, run_sql, use, variables
from kit import INI
from sqlalchemy import (
    URL,
    Connection,
    MetaData,
    Table,
    bindparam,
    create_engine,
    delete,
    event,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool
from undo_shop import SCHEMA, SQL, Base, Fill, Instrument, Order, Shop, tables_of

from helios.errors import EnvironmentRefusedError, HeliosError, RightsError
from helios.schema import environment
from helios.settings import Settings
from helios.testing import tracked, undo
from helios.testing.run import Run
from helios.testing.subject import Subject
from helios.testing.sweeping import sweep

pytest_plugins = "pytester"

DML = "SELECT, INSERT, UPDATE, DELETE"


@pytest.fixture(scope="module")
def shop(cluster: URL) -> Iterator[Shop]:
    """The tables belong to somebody else; the run's role may make a schema for the log, and write, and that is all."""
    with made(cluster) as url:
        owner, plain, neighbour = login(url, "owner"), login(url, "plain"), login(url, "neighbour")
        run_sql(url, f"ALTER DATABASE {url.database} OWNER TO {owner.username}")
        script = (
            SQL.read_text().replace("{writer}", str(plain.username)).replace("{neighbour}", str(neighbour.username))
        )
        with engine_of(owner).begin() as connection:
            connection.exec_driver_sql(script, execution_options={"no_parameters": True})
            environment.mark(connection, SCHEMA, "test")
        run_sql(
            owner,
            f"REVOKE ALL ON ALL TABLES IN SCHEMA shop FROM {plain.username}",
            f"GRANT {DML} ON ALL TABLES IN SCHEMA shop TO {plain.username}",
            f"GRANT CREATE ON DATABASE {url.database} TO {plain.username}",
        )
        # a foreign key to a partitioned table is reflected as several, to its partitions too
        tables = [each for each in tables_of(owner) if each.name not in ("pins", "slots")]
        yield Shop(url, owner, plain, neighbour, tables)


def subject(shop: Shop, *more: str) -> Subject:
    metadata = MetaData(schema=SCHEMA)
    with engine_of(shop.admin).connect() as connection:
        metadata.reflect(connection, only=[each.name for each in shop.tables] + list(more))
    return Subject(settings=Settings.from_environment(), metadata=metadata)


@pytest.fixture
def here(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process works with the rights of the plain role."""
    use(monkeypatch, shop.writer, SCHEMA)
    monkeypatch.delenv("REDIS_URL", raising=False)


@pytest.fixture
def run(shop: Shop, here: None) -> Iterator[Run]:
    """A run of that role; what it wrote was all seen, and afterwards all is as before, to the last digit."""
    before = shop.digest()
    run = Run.begin(subject(shop))
    run.enter("a test")
    yield run
    changed = shop.digest()
    run.end()
    assert [] == run.failures
    assert [] == [left for scope in run.scopes for left in scope.left]
    assert [] == run.tracker.unseen
    assert before != changed, "the test wrote nothing"
    assert before == shop.digest()
    assert 0 == shop.logged()


def table(run: Run, name: str):
    return run.subject.metadata.tables[f"{SCHEMA}.{name}"]


def test_no_trigger_is_there(shop: Shop, run: Run):
    """The log is made, with no trigger on any table, and all tables are told to be the tracker's alone."""
    assert [(0,)] == shop.rows("SELECT count(*) FROM pg_trigger WHERE tgname ~ 'helios'")
    assert sorted(each.name for each in shop.tables) == sorted(run.untriggered)
    with run.sessions.begin() as session:
        session.add(Instrument(symbol="ONE"))


def test_the_unit_of_work(run: Run):
    """Keys of the server, a cascade of the ORM, merge, one row changed twice, and one deleted with its children."""
    with run.sessions.begin() as session:
        session.add_all(
            [Instrument(symbol=f"NEW{number}", orders=[Order(client_id=f"n{number}")]) for number in range(5)]
        )
        session.flush()
        session.merge(Instrument(id=900, symbol="MERGED"))
        session.merge(Instrument(id=2, symbol="OTHER", v=3))
        row = session.get_one(Instrument, 1)
        row.v = 5
        session.flush()
        row.v = 6
    with run.sessions.begin() as session:
        session.get_one(Instrument, 1).v = 7
        new = session.scalars(select(Instrument).where(Instrument.symbol == "NEW1")).one()
        new.v = 1
        session.flush()
        session.delete(new)
        session.delete(session.scalars(select(Order).where(Order.client_id == "n2")).one())


def test_a_parent_that_the_orm_deletes_with_its_children(shop: Shop, run: Run):
    """The session loads and deletes the children itself, so they are seen, and come back with generated columns."""
    run_sql(shop.owner, "DELETE FROM shop.books WHERE order_id = 1")
    with run.sessions.begin() as session:
        session.add(order := Order(client_id="x", qty=Decimal("1.50"), fills=[Fill(n=1), Fill(n=2)]))
        session.flush()
        order.fills.append(Fill(n=3))
        session.flush()
        order.fills[0].price = Decimal(2)
    with run.sessions.begin() as session:
        session.delete(session.scalars(select(Order).where(Order.client_id == "x")).one())
        for each in session.scalars(select(Fill).where(Fill.order_id == 3)):
            session.delete(each)


def test_bulk_statements_of_a_session(run: Run):
    """Bulk insert with and without RETURNING, update and delete by criteria and by keys, the old bulk methods."""
    with run.sessions.begin() as session:
        session.execute(insert(Instrument), [{"symbol": f"B{number}"} for number in range(5)])
        assert 2 == len(
            session.scalars(insert(Instrument).returning(Instrument), [{"symbol": "R1"}, {"symbol": "R2"}]).all()
        )
        session.execute(insert(Fill), [{"order_id": 1, "n": 90 + number, "price": 1} for number in range(3)])
        session.bulk_save_objects([Instrument(symbol="S1"), Instrument(symbol="S2")])
        session.bulk_insert_mappings(Instrument, [{"symbol": "S3"}, {"symbol": "S4"}])
        session.execute(update(Instrument).where(Instrument.v == 0, Instrument.id < 5).values(v=Instrument.v + 1))
        session.execute(update(Instrument), [{"id": 6, "v": 60}, {"id": 7, "v": 70}])
        session.execute(
            update(Fill).where(Fill.order_id == 1).values(price=9), execution_options={"synchronize_session": "fetch"}
        )
        session.execute(delete(Fill).where(Fill.n == 91))
        session.execute(update(Instrument).values(v=99))


def test_core_statements(shop: Shop, run: Run):
    """Of tables that nobody mapped: many rows at once, rows from a query, joins, quoted names, partitions."""
    swaps, klines, ticks = (table(run, name) for name in ("swaps", "klines", "ticks"))
    mixed, codes, uses = table(run, 'Mixed "Case" %'), table(run, "codes"), table(run, "uses")
    with run.engine.begin() as connection:
        connection.execute(insert(swaps), [{"id": 100 + n, "k": f"n{n}", "a": 100 + n, "b": 1} for n in range(5)])
        connection.execute(
            insert(swaps).values([{"id": 200 + n, "k": f"m{n}", "a": 200 + n, "b": 1} for n in range(5)])
        )
        connection.execute(insert(table(run, "instruments")).values([{"symbol": "C1"}, {"symbol": "C2"}]))
        copied = select(klines.c.instrument_id + 500, klines.c.t, klines.c.o).limit(50)
        connection.execute(insert(klines).from_select(["instrument_id", "t", "o"], copied))
        connection.execute(update(uses).where(uses.c.code == codes.c.code, codes.c.id < 3).values(code="code5"))
        connection.execute(delete(uses).where(uses.c.code == codes.c.code, codes.c.id == 4))
        connection.execute(
            update(klines).where(klines.c.instrument_id == bindparam("x")).values(trades=bindparam("y")),
            [
                {"x": 1, "y": 5},
                {"x": 2, "y": 6},
            ],
        )
        connection.execute(insert(mixed), {"Key: %s": 3, "select": "x"})
        connection.execute(update(mixed).where(mixed.c["Key: %s"] == 1).values({"helios_count": 8}))
        connection.execute(insert(ticks), [{"ts": 5, "n": 1, "v": 1}, {"ts": 1005, "n": 1, "v": 1}])
        connection.execute(update(ticks).where(ticks.c.ts == 20).values(v=0))
        connection.execute(delete(ticks).where(ticks.c.ts == 30))


def test_keys_that_change(run: Run):
    """By an instance, by a literal, by an expression over rows that follow one another, into another partition."""
    ticks, tally = table(run, "ticks"), table(run, "tally")
    with run.sessions.begin() as session:
        session.add(row := Instrument(id=700, symbol="KEYED"))
        session.flush()
        row.id = 701
    with run.engine.begin() as connection:
        connection.execute(insert(tally), [{"id": n, "v": n} for n in (500, 502)])
        connection.execute(update(tally).where(tally.c.id == 502).values(id=503))
        connection.execute(update(tally).values(id=tally.c.id - 1))
        connection.execute(update(ticks).where(ticks.c.ts.in_([40, 50])).values(ts=ticks.c.ts + 10_001))
        connection.execute(update(table(run, "seats")).where(table(run, "seats").c.id == 10).values(id=11))


def test_upserts(run: Run):
    """Rows that were there and rows that were not, by key, by another unique column, by a constraint's name."""
    swaps = table(run, "swaps")
    new = [{"id": 1, "k": "k1", "a": 50, "b": 1}, {"id": 60, "k": "k60", "a": 60, "b": 1}]
    by_key = upsert(swaps)
    with run.engine.begin() as connection:
        connection.execute(by_key.on_conflict_do_update(index_elements=["id"], set_={"a": by_key.excluded.a}), new)
        statement = upsert(swaps).values(
            [{"id": 70, "k": "k3", "a": 70, "b": 1}, {"id": 71, "k": "k71", "a": 71, "b": 1}]
        )
        connection.execute(statement.on_conflict_do_update(index_elements=[swaps.c.k], set_={"b": 7}))
        statement = (
            upsert(swaps).values(id=4, k="new", a=4, b=4).on_conflict_do_update(constraint="swaps_pkey", set_={"b": 8})
        )
        connection.execute(statement)
        connection.execute(upsert(swaps).on_conflict_do_nothing(), [*new, {"id": 80, "k": "k80", "a": 80, "b": 1}])
    with run.sessions.begin() as session:
        statement = upsert(Instrument).values([{"symbol": "SYM1", "v": 8}, {"symbol": "UP", "v": 8}])
        statement = statement.on_conflict_do_update(
            index_elements=[Instrument.symbol], set_={"v": statement.excluded.v}
        )
        assert 2 == len(session.scalars(statement.returning(Instrument)).all())
        statement = upsert(Instrument).on_conflict_do_nothing(index_elements=["symbol"])
        session.execute(statement, [{"symbol": "SYM1"}, {"symbol": "UP2"}])


def test_deleted_and_inserted_again(run: Run):
    """In one transaction and over several: the row of before comes back."""
    swaps = table(run, "swaps")
    with run.engine.begin() as connection:
        connection.execute(delete(swaps).where(swaps.c.id.in_([1, 2])))
        connection.execute(insert(swaps), {"id": 1, "k": "again", "a": 1, "b": 1})
    with run.engine.begin() as connection:
        connection.execute(insert(swaps), {"id": 2, "k": "later", "a": 2, "b": 2})
        connection.execute(insert(swaps), {"id": 3000, "k": "brief", "a": 3000, "b": 2})
        connection.execute(delete(swaps).where(swaps.c.id == 3000))


def test_a_savepoint_rolled_back(run: Run):
    """What it wrote is neither undone nor told, whether by the ORM, by text, or by a statement that failed."""
    with run.sessions.begin() as session:
        session.add(Instrument(symbol="KEPT"))
        with session.begin_nested() as inner:
            session.add(Instrument(symbol="GONE"))
            session.execute(update(Order).where(Order.id == 5).values(status="GONE"))
            session.execute(text("UPDATE shop.orders SET status = 'TEXT' WHERE id = 6"))
            inner.rollback()
        with pytest.raises(IntegrityError), session.begin_nested():
            session.add(Instrument(symbol="SYM1"))
            session.flush()
        with session.begin_nested():
            session.execute(update(Order).where(Order.id == 7).values(status="INNER"))
        session.execute(update(Order).where(Order.id == 7).values(status="OUTER"))
    with run.sessions() as session:
        session.execute(update(Order).values(status="ROLLED BACK"))
        session.execute(text("DELETE FROM shop.orders WHERE id = 9 AND false"))
        session.rollback()


def test_asynchronous_sessions(run: Run):
    """The unit of work and statements, by psycopg 3."""

    async def work() -> None:
        async with run.async_sessions.begin() as session:
            session.add(Instrument(symbol="ASYNC", orders=[Order(client_id="async")]))
            await session.flush()
            await session.execute(update(Instrument).where(Instrument.id == 1).values(v=77))
            await session.execute(insert(Instrument), [{"symbol": "A1"}, {"symbol": "A2"}])
            statement = upsert(Instrument).values(symbol="SYM3", v=3)
            await session.execute(statement.on_conflict_do_update(index_elements=["symbol"], set_={"v": 3}))

    asyncio.run(work())


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_an_engine_of_ones_own(shop: Shop, run: Run, driver: str):
    """It carries the label by the environment, whichever the driver, and whether a transaction is prepared or not."""
    engine = create_engine(shop.writer.set(drivername=f"postgresql+{driver}"), poolclass=NullPool)
    with Session(engine) as session, session.begin():
        session.add(Instrument(symbol="OWN"))
        session.execute(delete(Fill).where(Fill.order_id == 2))
    with engine.connect() as connection:
        transaction = connection.begin_twophase()
        connection.execute(update(Base.metadata.tables["shop.orders"]).values(status="TWO"))
        transaction.prepare()
        transaction.commit()


def test_marks(run: Run):
    """A test is undone to where it began, with what the run wrote before left for the end."""
    with run.sessions.begin() as session:
        session.get_one(Instrument, 3).v = 1
    run.enter("another test")
    with run.sessions.begin() as session:
        session.get_one(Instrument, 3).v = 2
    run.leave()
    with run.sessions() as session:
        assert 1 == session.get_one(Instrument, 3).v


def test_a_neighbour_s_change_is_kept(shop: Shop, here: None):
    """A row that somebody changed since stays theirs, and so does the parent of their row; the rest goes back."""
    before = shop.digest()
    with shop.beside() as neighbour, tracked("undo_shop:Base") as run:  # in this order, so that one has no label
        with run.sessions.begin() as session:
            session.execute(update(Instrument).where(Instrument.id.in_([1, 2])).values(v=5))
            session.add_all([Instrument(id=800, symbol="T0"), Instrument(id=801, symbol="T1")])
        neighbour.exec_driver_sql("UPDATE shop.instruments SET v = 77 WHERE id = 1")
        neighbour.exec_driver_sql("INSERT INTO shop.orders (client_id, instrument_id) VALUES ('nb', 800)")
    assert [
        "instruments 1: changed by somebody else",
        "instruments 1: referenced from shop.orders",
    ] == [left for scope in run.scopes for left in scope.left]
    assert [(1, 77), (2, 0), (800, 0)] == shop.rows(
        "SELECT id, v FROM shop.instruments WHERE id IN (1, 2, 800, 801) ORDER BY 1"
    )
    run_sql(
        shop.neighbour,
        "DELETE FROM shop.orders WHERE client_id = 'nb'",
        "UPDATE shop.instruments SET v = 0 WHERE id = 1",
    )
    sweep(subject(shop))
    assert before == shop.digest()


KILLED = """
from undo_shop import Instrument
from sqlalchemy import update
from helios.testing import tracked
import os, signal

with tracked("undo_shop:Base") as run:
    with run.sessions.begin() as session:
        session.add(Instrument(symbol="KILLED"))
        session.execute(update(Instrument).where(Instrument.id == 1).values(v=13))
    print("written", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_is_swept(shop: Shop, here: None):
    """Its log is in the database, so the next run of that role takes it back."""
    before = shop.digest()
    path = os.pathsep.join(sys.path)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED],
        env=variables(shop.writer, SCHEMA, PYTHONPATH=path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (-signal.SIGKILL, "written\n") == (killed.returncode, killed.stdout), killed.stderr
    assert before != shop.digest()
    (repair,) = sweep(subject(shop))
    assert [("deleted", 1), ("restored", 1)] == sorted((each.what, each.count) for each in repair.changes)
    assert before == shop.digest()


def test_text_sql_is_told(shop: Shop, here: None, caplog: pytest.LogCaptureFixture):
    """With the test's name, the table and the number of rows; what is beside it is undone."""
    before = shop.digest()
    with tracked("undo_shop:Base", name="a careless test") as run:
        with run.sessions.begin() as session:
            session.add(Instrument(symbol="SEEN"))
            session.execute(text("UPDATE shop.orders SET status = 'TEXT' WHERE id < 4"))
        with run.engine.begin() as connection:
            connection.exec_driver_sql("DELETE FROM shop.fills WHERE order_id = 9")
        with run.engine.begin() as connection:
            cursor = connection.connection.cursor()
            cursor.execute("INSERT INTO shop.instruments (symbol) VALUES ('CURSOR')")
    told = [(each.test, each.table, each.rows) for each in run.tracker.unseen]
    assert [
        ("a careless test", "orders", 3),
        ("a careless test", "fills", 3),
        ("a careless test", "instruments", 1),
    ] == told
    assert "followed by the tracker alone" in caplog.text
    assert "a careless test wrote 3 rows of orders, which the tracker did not see" in caplog.text
    assert [("CURSOR",)] == shop.rows("SELECT symbol FROM shop.instruments WHERE id > 20")
    restore(shop, before)


def restore(shop: Shop, before: dict[str, str]) -> None:
    """Take back by hand what was told to stay."""
    run_sql(
        shop.owner,
        "DELETE FROM shop.instruments WHERE symbol = 'CURSOR'",
        "UPDATE shop.orders SET status = 'NEW' WHERE id < 4",
        "INSERT INTO shop.fills SELECT 9, i, 8 + 200 * i FROM generate_series(0, 2) AS i",
    )
    assert before == shop.digest()


def test_triggers_and_cascades_are_told(shop: Shop, here: None):
    """What the database writes by itself is counted, with its table; deleting a parent takes children along."""
    run_sql(shop.owner, "INSERT INTO shop.instruments (id, symbol) VALUES (950, 'P')")
    run_sql(shop.owner, "INSERT INTO shop.orders (client_id, instrument_id) VALUES ('p1', 950), ('p2', 950)")
    run = Run.begin(subject(shop))
    run.enter("a test")
    with run.engine.begin() as connection:
        instruments = table(run, "instruments")
        connection.execute(delete(instruments).where(instruments.c.id == 950))
        connection.execute(insert(table(run, "touched")), {"id": 950})
    run.end()
    assert [("orders", 2), ("touched", 2)] == sorted((each.table, each.rows) for each in run.tracker.unseen)
    assert [] == run.failures
    assert [(950,)] == shop.rows("SELECT id FROM shop.instruments WHERE id > 900")
    assert [(1,)] == shop.rows("SELECT touches FROM shop.touched WHERE id = 950"), "updated by a trigger, so it stays"
    run_sql(shop.owner, "DELETE FROM shop.instruments WHERE id = 950", "DELETE FROM shop.touched WHERE id = 950")


def test_copy_and_truncate_are_told(shop: Shop, here: None):
    """Both by a driver's cursor; of a table that was emptied nobody counts the rows."""
    before = shop.digest()
    run_sql(shop.owner, f"GRANT TRUNCATE ON shop.seats TO {shop.writer.username}")
    run = Run.begin(subject(shop))
    run.enter("a test")
    with run.engine.begin() as connection:
        cursor = connection.connection.cursor()
        cursor.copy_expert("COPY shop.codes FROM STDIN", io.StringIO("100\tx\n101\ty\n"))
    with run.engine.begin() as connection:
        connection.execute(update(table(run, "codes")).where(table(run, "codes").c.id == 9).values(code="z"))
        connection.execute(text("TRUNCATE shop.seats"))
    run.end()
    assert [("codes", 2), ("seats", 0)] == [(each.table, each.rows) for each in run.tracker.unseen]
    assert "emptied seats, which the tracker did not see" in str(run.tracker.unseen[-1])
    run_sql(
        shop.owner,
        "DELETE FROM shop.codes WHERE id >= 100",
        "INSERT INTO shop.seats SELECT i, i FROM generate_series(1, 10) AS i",
    )
    assert ([], before) == (run.failures, shop.digest())


def test_a_trigger_that_writes_at_the_undo(shop: Shop, here: None):
    """It would leave a line of history that nobody wrote: refused, and done once the trigger lets it pass."""
    before = shop.digest()
    run = Run.begin(subject(shop))
    with run.engine.begin() as connection:
        connection.execute(update(table(run, "audited")).where(table(run, "audited").c.id == 1).values(v=50))
    run.end()
    assert ["history"] == [each.table for each in run.tracker.unseen]
    assert 1 == len(run.failures)
    assert "1 rows more than were to be undone would be written" in run.failures[0]
    assert [(50,)] == shop.rows("SELECT v FROM shop.audited WHERE id = 1")
    run_sql(shop.owner, "ALTER TABLE shop.audited DISABLE TRIGGER write_history")
    sweep(subject(shop))
    run_sql(shop.owner, "ALTER TABLE shop.audited ENABLE TRIGGER write_history", "DELETE FROM shop.history")
    assert before == shop.digest()


@contextmanager
def between(run: Run, neighbour: Connection, word: str, statement: str) -> Iterator[None]:
    """Let a neighbour write after the rows of a statement were looked for, and before it is run."""

    def write(connection: object, cursor: object, sql: str, *_: object) -> None:
        if sql.startswith(word):
            neighbour.exec_driver_sql(statement)

    event.listen(run.engine, "before_cursor_execute", write)
    yield
    event.remove(run.engine, "before_cursor_execute", write)


@pytest.fixture
def neighbour(shop: Shop) -> Iterator[Connection]:
    """A connection that was opened before the run, and so has no label."""
    with shop.beside() as connection:
        yield connection


def test_rows_that_come_in_between_are_refused(shop: Shop, neighbour: Connection, here: None):
    """Nobody kept them, so the statement that wrote them fails, and a neighbour's row is never taken for the test's."""
    before = shop.digest()
    run = Run.begin(subject(shop))
    swaps = table(run, "swaps")
    theirs = "INSERT INTO shop.swaps VALUES (500, 'n500', 500, 1)"
    with pytest.raises(HeliosError, match=r"rows of shop\.swaps were written that could not be kept"):
        with run.engine.begin() as connection, between(run, neighbour, "UPDATE", theirs):
            connection.execute(update(swaps).where(swaps.c.id > 18).values(b=0))
    for key, end in ((501, "rollback"), (502, "commit")):
        statement = upsert(swaps).values([{"id": key, "k": f"x{key}", "a": key + 200, "b": 1}])
        statement = statement.on_conflict_do_update(index_elements=["id"], set_={"b": 2})
        with run.engine.connect() as connection:
            with between(run, neighbour, "INSERT", f"INSERT INTO shop.swaps VALUES ({key}, 'n{key}', {key}, 1)"):
                with pytest.raises(HeliosError, match="roll this transaction back"):
                    connection.execute(statement)
            getattr(connection, end)()
    run.end()
    assert [("swaps", 1)] == [(each.table, each.rows) for each in run.tracker.unseen], "of what was committed"
    assert [(500, 1), (501, 1), (502, 2)] == shop.rows("SELECT id, b FROM shop.swaps WHERE id >= 500 ORDER BY id")
    run_sql(shop.owner, "DELETE FROM shop.swaps WHERE id >= 500")
    assert before == shop.digest()


def test_a_row_that_a_neighbour_changed_first(shop: Shop, here: None):
    """It is waited for: what the neighbour wrote is what to go back to."""
    before = shop.digest()
    with engine_of(shop.neighbour).connect() as neighbour, tracked("undo_shop:Base") as run:
        neighbour.execute(text("UPDATE shop.instruments SET v = 41 WHERE id = 4"))
        timer = threading.Timer(0.3, neighbour.commit)
        timer.start()
        with run.sessions.begin() as session:
            session.execute(update(Instrument).where(Instrument.id == 4).values(v=42))
        timer.join()
        assert [(42,)] == shop.rows("SELECT v FROM shop.instruments WHERE id = 4")
    assert [(41,)] == shop.rows("SELECT v FROM shop.instruments WHERE id = 4")
    run_sql(shop.neighbour, "UPDATE shop.instruments SET v = 0 WHERE id = 4")
    assert before == shop.digest()


def test_transactions_are_as_without_the_tracker(shop: Shop, run: Run):
    """SET TRANSACTION may come first; what a failed transaction counted is not told of the next; nor is a read one."""
    tally = table(run, "tally")
    with run.engine.connect() as connection:
        connection.execute(text("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"))
        connection.execute(update(tally).where(tally.c.id == 1).values(v=50))
        connection.commit()
        for end in (connection.rollback, connection.commit):
            with pytest.raises(IntegrityError):
                connection.execute(insert(tally), [{"id": 800, "v": 1}, {"id": 1, "v": 1}])
            connection.rollback()
            connection.execute(text("UPDATE shop.tally SET v = 8"))
            connection.rollback()
            connection.execute(select(tally)).all()
            end()
    with create_engine("sqlite://").begin() as elsewhere:
        elsewhere.execute(text("ATTACH ':memory:' AS shop"))
        elsewhere.execute(text("CREATE TABLE shop.tally (id INTEGER PRIMARY KEY, v INTEGER)"))
        elsewhere.execute(insert(tally), {"id": 1, "v": 1})


def test_what_cannot_be_kept_is_refused_before_it_is_written(shop: Shop, here: None):
    """Autocommit, and upserts of which nobody can tell beforehand what they update: one sentence, nothing written."""
    before = shop.digest()
    with tracked("undo_shop:Base") as run:
        instruments = Base.metadata.tables["shop.instruments"]
        with pytest.raises(HeliosError, match=r"shop\.instruments in autocommit cannot be undone"):
            with run.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.execute(insert(instruments), {"symbol": "AUTO"})
        statement = upsert(instruments).on_conflict_do_update(constraint="instruments_symbol_key", set_={"v": 1})
        with run.engine.begin() as connection, pytest.raises(HeliosError, match="name them as index_elements"):
            connection.execute(statement, {"symbol": "SYM1"})
        statement = upsert(instruments).on_conflict_do_update(index_elements=["id"], set_={"v": 1})
        with (
            run.engine.begin() as connection,
            pytest.raises(HeliosError, match="leaves out 'id', by which rows conflict"),
        ):
            connection.execute(statement, {"symbol": "SYM1"})
        query = select(instruments.c.symbol)
        statement = upsert(instruments).from_select(["symbol"], query)
        with run.engine.begin() as connection, pytest.raises(HeliosError, match="takes its rows from a query"):
            connection.execute(statement.on_conflict_do_update(index_elements=["symbol"], set_={"v": 1}))
    assert before == shop.digest()


def test_a_role_that_lacks_a_right(shop: Shop, here: None):
    """Neither triggers nor the rights to do without: the sentence has the SQL that helps, and it helps."""
    run_sql(shop.owner, f"REVOKE DELETE, UPDATE ON shop.tally FROM {shop.writer.username}")
    remedy = (
        rf"shop\.tally, which '{shop.owner.username}' owns; run: GRANT .*; or, .* GRANT UPDATE, DELETE ON shop\.tally"
    )
    with pytest.raises(RightsError, match=remedy) as refused:
        fresh_log(shop)
    run_sql(shop.owner, str(refused.value).rpartition("the log, ")[2])
    fresh_log(shop)


def fresh_log(shop: Shop, tables: Sequence[Table] = ()) -> None:
    """Install the log as the plain role, from nothing."""
    engine = create_engine(shop.writer, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        undo.remove(connection, SCHEMA)
        undo.install(connection, SCHEMA, tables or shop.tables)


def test_a_role_that_may_not_make_the_log(shop: Shop, here: None):
    """As ever it is told whose member to be, and now also what else would do."""
    run_sql(shop.admin, "DROP SCHEMA IF EXISTS shop_undo CASCADE")
    run_sql(shop.owner, f"REVOKE CREATE ON DATABASE {shop.admin.database} FROM {shop.writer.username}")
    with pytest.raises(
        RightsError, match=f"member of its owner '{shop.owner.username}'.*tracker to write it"
    ) as refused:
        fresh_log(shop)
    run_sql(shop.owner, str(refused.value).rpartition("run: ")[2])
    fresh_log(shop)


def test_production_is_refused_all_the_same(shop: Shop, here: None):
    """The marker is asked on the very connection, triggers or not."""
    with engine_of(shop.owner).begin() as connection:
        environment.mark(connection, SCHEMA, "production")
    with pytest.raises(EnvironmentRefusedError):
        Run.begin(subject(shop))
    with engine_of(shop.owner).begin() as connection:
        environment.mark(connection, SCHEMA, "test")


def test_an_owner_s_tables_have_triggers_beside_others(shop: Shop, here: None):
    """Of one run, the tables of its own role are watched by triggers, as ever, and the rest by the tracker."""
    run_sql(
        shop.admin, "CREATE TABLE shop.mine (id integer PRIMARY KEY, v integer)", "INSERT INTO shop.mine VALUES (1, 1)"
    )
    run_sql(shop.admin, f"ALTER TABLE shop.mine OWNER TO {shop.writer.username}")
    before = shop.digest()
    run = Run.begin(subject(shop, "mine"))
    assert "mine" not in run.untriggered
    with run.engine.begin() as connection:
        connection.execute(text("UPDATE shop.mine SET v = 2"))
        connection.execute(insert(table(run, "mine")), {"id": 2, "v": 2})
        connection.execute(update(table(run, "tally")).values(v=0))
    run.end()
    assert ([], []) == (run.failures, run.tracker.unseen)
    assert [(1, 1)] == shop.rows("SELECT * FROM shop.mine")
    assert before == shop.digest()
    run_sql(shop.admin, "DROP TABLE shop.mine")


def test_pytest_says_it(shop: Shop, pytester: pytest.Pytester, here: None):
    """Once which tables, and what is not seen; for each test what it wrote past the tracker, and that it stays."""
    before = shop.digest()
    fresh_log(shop, list(Base.metadata.tables.values()))
    pytester.makeini(INI + "    helios_metadata = undo_shop:Base\n")
    pytester.makepyfile(
        """
        from sqlalchemy import select, text
        from undo_shop import Instrument

        def test_seen(helios_session):
            helios_session.add(Instrument(symbol="SEEN"))
            helios_session.commit()

        def test_text(helios_session):
            assert None is helios_session.scalar(select(Instrument).where(Instrument.symbol == "SEEN"))
            helios_session.execute(text("UPDATE shop.orders SET status = 'TEXT' WHERE id < 4"))
            helios_session.commit()
        """
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        result = pytester.runpytest_subprocess(timeout=60)
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["followed by the tracker alone, *: fills, instruments, orders; what text SQL, *"])
    result.stdout.fnmatch_lines(["undone: removed 1 (instruments 1)"])
    result.stdout.fnmatch_lines(
        ["test_pytest_says_it.py::test_text wrote 3 rows of orders, which the tracker did not see*"]
    )
    assert 1 == result.stdout.str().count("followed by the tracker alone")
    run_sql(shop.owner, "UPDATE shop.orders SET status = 'NEW' WHERE id < 4")
    assert before == shop.digest()
