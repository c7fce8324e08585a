"""The log that the tracker writes, for a role that may read and write tables and no more: what it sees is undone."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from decimal import Decimal
from random import Random

import pytest
from installation import engine_of, login, run_sql, use, variables
from plain_role import foreign_shop, subject, table
from sqlalchemy import (
    URL,
    Column,
    Integer,
    MetaData,
    Table,
    Text,
    bindparam,
    column,
    create_engine,
    delete,
    event,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy import table as named
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import IntegrityError, OperationalError, PendingRollbackError
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool
from undo_shop import SCHEMA, Base, Fill, Instrument, Order, Shop

from helios.testing import tracked
from helios.testing.run import Run
from helios.testing.sweeping import sweep


@pytest.fixture(scope="module")
def shop(cluster: URL) -> Iterator[Shop]:
    with foreign_shop(cluster) as shop:
        yield shop


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


def test_rows_that_are_written_more_than_once(run: Run):
    """Parameters of which the second finds what the first has written, a value or a key."""
    swaps = table(run, "swaps")
    chains = ((swaps.c.b, [(1, 2000), (2000, 3000), (3, 4000)]), (swaps.c.id, [(15, 115), (115, 215)]))
    with run.engine.begin() as connection:
        for changed, steps in chains:
            statement = update(swaps).where(changed == bindparam("old")).values({changed: bindparam("new")})
            connection.execute(statement, [{"old": old, "new": new} for old, new in steps])
        assert [(1, 3000), (215, 15)] == connection.execute(
            select(swaps.c.id, swaps.c.b).where(swaps.c.id.in_([1, 15, 115, 215])).order_by(swaps.c.id)
        ).all()


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


def test_upserts_in_every_way_to_write_them(run: Run):
    """Rows as tuples, values that are parameters or made of them, a column that has another name in Python."""
    swaps = table(run, "swaps")
    renamed = Table("instruments", MetaData(), Column("symbol", Text, key="sym"), Column("v", Integer), schema=SCHEMA)
    given = {"id": bindparam("x"), "k": func.concat("k", bindparam("y", type_=Text)), "a": bindparam("x"), "b": 1}
    with run.engine.begin() as connection:
        rows = upsert(swaps).values([(1, "k1", 50, 1), (60, "k60", 60, 1)])
        connection.execute(rows.on_conflict_do_update(index_elements=["id"], set_={"b": 9}))
        statement = upsert(swaps).values(given).on_conflict_do_update(index_elements=["id"], set_={"b": 8})
        connection.execute(statement, {"x": 2, "y": "2"})
        statement = upsert(swaps).values(given).on_conflict_do_update(index_elements=["k"], set_={"b": 8})
        connection.execute(statement, [{"x": 100, "y": "3"}, {"x": 101, "y": "new"}])
        statement = upsert(renamed).values(sym="SYM1", v=5)
        connection.execute(statement.on_conflict_do_update(index_elements=["symbol"], set_={"v": 5}))


def test_an_upsert_of_one_key_twice(run: Run):
    """Given row by row, the second finds what the first has inserted."""
    statement = upsert(swaps := table(run, "swaps"))
    rows = [{"id": key, "k": f"k{key}", "a": key, "b": b} for key, b in ((900, 1), (900, 2), (1, 3), (1, 4))]
    with run.engine.begin() as connection:
        connection.execute(
            statement.on_conflict_do_update(index_elements=["id"], set_={"b": statement.excluded.b}), rows
        )
        assert [(1, 4), (900, 2)] == connection.execute(
            select(swaps.c.id, swaps.c.b).where(swaps.c.id.in_([1, 900])).order_by(swaps.c.id)
        ).all()


def test_an_upsert_that_changes_keys(run: Run):
    """Of rows that are given one by one, many at once, and beside some that it leaves as they are."""
    swaps = table(run, "swaps")
    rows = [{"id": 300 + n, "k": f"k{n}", "a": 300 + n, "b": 1} for n in range(1, 4)]
    with run.engine.begin() as connection:
        one = upsert(swaps).values(rows[0]).on_conflict_do_update(index_elements=["k"], set_={"id": 901})
        connection.execute(one)
        many = upsert(swaps).values(rows[1:])
        connection.execute(
            many.on_conflict_do_update(
                index_elements=["k"], set_={"id": swaps.c.id + 900}, where=many.excluded.k == "k2"
            )
        )
        assert [3, 901, 902] == connection.scalars(
            select(swaps.c.id).where(swaps.c.k.in_(["k1", "k2", "k3"])).order_by(swaps.c.id)
        ).all()


def test_a_trigger_that_changes_the_row_inserted(shop: Shop, run: Run):
    """It was nobody's before, so it goes, whatever became of it."""
    with run.engine.begin() as connection:
        connection.execute(insert(table(run, "touched")), {"id": 950})
    assert [(1,)] == shop.rows("SELECT touches FROM shop.touched WHERE id = 950")


def test_a_table_known_by_its_name_alone(run: Run):
    """As `sqlalchemy.table()` makes it, for statements that need no more."""
    swaps = named("swaps", *(column(each) for each in ("id", "k", "a", "b")), schema=SCHEMA)
    with run.engine.begin() as connection:
        connection.execute(update(swaps).where(swaps.c.id == 1).values(b=7))
        connection.execute(insert(swaps), [{"id": 400, "k": "x", "a": 400, "b": 7}])
        statement = upsert(swaps).values(id=400, k="x", a=400, b=7)  # type: ignore[arg-type]  # it takes them
        connection.execute(statement.on_conflict_do_update(index_elements=["id"], set_={"b": 8}))
        connection.execute(delete(swaps).where(swaps.c.id == 2))


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


def test_whoever_may_write_writes_the_log(shop: Shop, here: None):
    """Another role that may write is followed as well; one that may only read works as ever, and cannot log."""
    before = shop.digest()
    late, reader = login(shop.admin, "late"), login(shop.admin, "reader")
    run_sql(
        shop.owner,
        f"GRANT USAGE ON SCHEMA shop TO {late.username}, {reader.username}",
        f"GRANT SELECT ON ALL TABLES IN SCHEMA shop TO {late.username}, {reader.username}",
        f"GRANT INSERT, UPDATE ON shop.instruments TO {late.username}",
    )
    with tracked("undo_shop:Base") as run:
        with engine_of(late).begin() as connection:
            connection.execute(update(Instrument).where(Instrument.id == 1).values(v=5))
        with engine_of(reader).begin() as connection:
            assert 5 == connection.scalar(select(Instrument.v).where(Instrument.id == 1))
            assert [(False,)] == connection.execute(
                text("SELECT has_schema_privilege('shop_undo', 'USAGE')")
            ).fetchall()
    assert [] == run.tracker.unseen
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


@pytest.mark.parametrize("seed", range(10))
def test_whatever_comes(run: Run, seed: int):
    """Statements by chance, in savepoints and out of them, rolled back, committed or failed."""
    chance = Random(seed)  # noqa: S311 - nothing secret
    tally, ticks = table(run, "tally"), table(run, "ticks")
    merged = upsert(tally).values([{"id": number, "v": 9} for number in chance.sample(range(1, 60), 9)])
    adding = merged.excluded.v + tally.c.v
    statements = [
        update(tally).where(tally.c.id % 3 == 0).values(v=tally.c.v + 1),
        update(tally).where(tally.c.id == chance.randint(1, 40)).values(id=chance.randint(200, 220)),
        delete(tally).where(tally.c.id.between(chance.randint(1, 20), 25)),
        insert(tally).values(id=chance.randint(1, 80), v=1),
        insert(tally).from_select(["id", "v"], select(tally.c.id + 1000, tally.c.v).where(tally.c.id < 9)),
        merged.on_conflict_do_nothing(),
        merged.on_conflict_do_update(index_elements=["id"], set_={"v": adding}),
        merged.on_conflict_do_update(index_elements=["id"], set_={"v": adding}, where=tally.c.v < 5),
        insert(ticks).values(ts=chance.randint(1, 3000), n=2, v=0),
        update(ticks).where(ticks.c.ts == chance.choice([10, 20, 1500])).values(ts=chance.randint(5000, 9000)),
        delete(ticks).where(ticks.c.ts < chance.randint(1, 200)),
    ]
    with run.engine.connect() as connection:
        connection.execute(insert(tally), {"id": 5000, "v": 1})
        for _ in range(30):
            savepoint = connection.begin_nested()
            try:
                for statement in chance.choices(statements, k=3):
                    connection.execute(statement)
                chance.choice([savepoint.commit, savepoint.commit, savepoint.rollback])()
            except IntegrityError:
                savepoint.rollback()
            chance.choice([connection.commit, connection.rollback, list])()
        connection.commit()


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


def test_nobody_who_listens_notices(run: Run):
    """Statements that a test counts are its own: nothing is run beside them that a listener sees."""
    seen: list[str] = []
    event.listen(run.engine, "before_cursor_execute", lambda *given: seen.append(given[2].partition(" ")[0]))
    with run.sessions.begin() as session:
        session.get_one(Instrument, 1).v = 5
        session.add(Instrument(symbol="ONE"))
        with session.begin_nested() as inner:
            session.add(Instrument(symbol="TWO"))
            session.flush()
            inner.rollback()
    assert ["INSERT", "INSERT", "ROLLBACK", "SAVEPOINT", "SELECT", "UPDATE"] == sorted(seen)


def test_a_lock_comes_first_if_it_is_first(shop: Shop, here: None):
    """In REPEATABLE READ it shows what was committed until it was had: no count takes the snapshot before it."""
    orders = Base.metadata.tables["shop.orders"]
    with engine_of(shop.neighbour).connect() as neighbour, tracked("undo_shop:Base") as run:
        neighbour.execute(text("UPDATE shop.orders SET status = 'THEIRS' WHERE id = 7"))
        timer = threading.Timer(0.4, neighbour.commit)
        with run.engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
            timer.start()
            connection.execute(text("-- by hand\n LOCK TABLE shop.orders IN SHARE ROW EXCLUSIVE MODE"))
            assert "THEIRS" == connection.scalar(select(orders.c.status).where(orders.c.id == 7))
            connection.execute(update(orders).values(status="OURS"))
            connection.commit()
        timer.join()
        with run.engine.begin() as connection:
            connection.execute(text("/* commented */ SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"))
    assert [(7,)] == shop.rows("SELECT id FROM shop.orders WHERE status <> 'NEW'")
    run_sql(shop.neighbour, "UPDATE shop.orders SET status = 'NEW' WHERE id = 7")


def test_a_commit_that_fails_ends_the_transaction(run: Run):
    """It cannot be serialized, or breaks a deferred constraint: the connection goes on as without the tracker."""
    swaps = table(run, "swaps")
    engine = run.engine.execution_options(isolation_level="SERIALIZABLE")
    with engine.connect() as first, engine.connect() as second:
        for key, connection in ((700, first), (701, second)):
            connection.execute(select(func.sum(swaps.c.b))).all()
            connection.execute(select(swaps.c.id)).all()
            connection.execute(insert(swaps), {"id": key, "k": f"k{key}", "a": key, "b": 1})
        first.commit()
        with pytest.raises(OperationalError, match="could not serialize"):
            second.commit()
        with pytest.raises(PendingRollbackError):
            second.execute(insert(swaps), {"id": 701, "k": "k701", "a": 701, "b": 1})
        second.rollback()
        second.execute(insert(swaps), {"id": 701, "k": "k701", "a": 701, "b": 1})
        second.commit()
        second.execute(insert(table(run, "books")), {"id": 900, "order_id": 5000})
        with pytest.raises(IntegrityError, match="books"):
            second.commit()
        second.rollback()
        assert None is second.scalar(select(table(run, "books").c.id).where(table(run, "books").c.id == 900))
