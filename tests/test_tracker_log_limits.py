"""What the tracker does not see, where it writes the log alone, is told; what it cannot keep exactly is refused."""

import asyncio
import io
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from installation import engine_of, run_sql, use
from kit import INI
from plain_role import foreign_shop, subject, table
from sqlalchemy import (
    URL,
    Connection,
    Table,
    create_engine,
    delete,
    event,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool
from undo_shop import SCHEMA, Base, Fill, Instrument, Shop

from helios.errors import EnvironmentRefusedError, HeliosError, RightsError
from helios.schema import environment
from helios.testing import tracked, undo
from helios.testing.run import Run
from helios.testing.sweeping import sweep

pytest_plugins = "pytester"


@pytest.fixture(scope="module")
def shop(cluster: URL) -> Iterator[Shop]:
    with foreign_shop(cluster) as shop:
        yield shop


@pytest.fixture
def here(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process works with the rights of the plain role."""
    use(monkeypatch, shop.writer, SCHEMA)
    monkeypatch.delenv("REDIS_URL", raising=False)


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
    run.end()
    assert [("orders", 2)] == sorted((each.table, each.rows) for each in run.tracker.unseen)
    assert [] == run.failures
    assert [(950,)] == shop.rows("SELECT id FROM shop.instruments WHERE id > 900")
    run_sql(shop.owner, "DELETE FROM shop.instruments WHERE id = 950")


def test_a_trigger_that_stamps_at_the_undo(shop: Shop, here: None):
    """What it makes of the row is not what was there: that row is kept, the rest undone, and the next run may begin."""
    before = shop.digest()
    run = Run.begin(subject(shop))
    stamped = table(run, "stamped")
    with run.engine.begin() as connection:
        connection.execute(update(stamped).where(stamped.c.id == 1).values(v=50))
        connection.execute(delete(stamped).where(stamped.c.id == 2))
        connection.execute(insert(stamped), {"id": 500})
        connection.execute(update(table(run, "swaps")).values(b=0))
    run.end()
    assert [] == run.failures
    assert ["stamped 2: its triggers would write at the undo: stamp"] == run.scopes[-1].left
    again = Run.begin(subject(shop))
    again.end()
    assert ([], [(1,)]) == (again.failures, shop.rows("SELECT count(*) FROM shop.stamped WHERE v = 50 OR id = 500"))
    run_sql(shop.owner, "ALTER TABLE shop.stamped DISABLE TRIGGER stamp")
    sweep(subject(shop))
    run_sql(shop.owner, "ALTER TABLE shop.stamped ENABLE TRIGGER stamp")
    assert before == shop.digest()


def test_what_deferred_triggers_write_is_told(shop: Shop, here: None):
    """They write when the transaction commits; this one would write again at the undo, so its rows are kept."""
    before = shop.digest()
    run = Run.begin(subject(shop))
    with run.engine.begin() as connection:
        connection.execute(insert(table(run, "parts")), {"id": 100, "whole": 3, "v": 9})
    run.end()
    assert [("wholes", 1)] == [(each.table, each.rows) for each in run.tracker.unseen]
    assert ["parts 1: its triggers would write at the undo: sum_up"] == run.scopes[-1].left
    run_sql(shop.owner, "ALTER TABLE shop.parts DISABLE TRIGGER sum_up")
    sweep(subject(shop))
    run_sql(
        shop.owner,
        "ALTER TABLE shop.parts ENABLE TRIGGER sum_up",
        "UPDATE shop.wholes SET total = total - 9 WHERE id = 3",
    )
    assert before == shop.digest()


def test_text_sql_in_autocommit_and_in_two_phases_is_told(shop: Shop, here: None):
    """Nothing counts it in autocommit: the server says how many rows, and the statement which table."""
    before = shop.digest()
    run = Run.begin(subject(shop))
    run.enter("a test")
    with run.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for statement in ("UPDATE shop.orders SET status = 'TEXT' WHERE id < 3", "SELECT * FROM shop.fills"):
            connection.execute(text(statement))
        connection.execute(text("INSERT INTO shop.signals SELECT id FROM shop.orders WHERE false"))
    with run.engine.connect() as connection:
        transaction = connection.begin_twophase()
        connection.execute(text("UPDATE shop.orders SET status = 'TEXT' WHERE id = 3"))
        transaction.commit()

    async def work() -> None:
        async with run.async_sessions() as session:
            await session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
            await session.execute(text("DELETE FROM shop.fills WHERE order_id = 9"))

    asyncio.run(work())
    run.end()
    assert [("orders", 2), ("orders", 1), ("fills", 3)] == [(each.table, each.rows) for each in run.tracker.unseen]
    restore(shop, before)


def test_a_pool_that_outlives_its_run_is_refused(shop: Shop, here: None):
    """Its connections carry the label of a run that is over, as where triggers are; nothing is written."""
    before = shop.digest()
    engine = create_engine(shop.writer)
    change = update(Base.metadata.tables["shop.instruments"]).values(v=9)
    with tracked("undo_shop:Base"), engine.begin() as connection:
        connection.execute(change)
    with tracked("undo_shop:Base"), pytest.raises(DBAPIError, match=r"is over.*shop\.instruments is refused"):
        with engine.begin() as connection:
            connection.execute(change)
    engine.dispose()
    assert before == shop.digest()


def test_a_role_that_is_not_let_into_the_log(shop: Shop, here: None):
    """It reads as ever, though it carries the label; what it would write is refused."""
    before = shop.digest()
    with tracked("undo_shop:Base"):
        run_sql(shop.admin, f"REVOKE USAGE ON SCHEMA shop_undo FROM PUBLIC, {shop.neighbour.username}")
        engine = engine_of(shop.neighbour)
        with engine.begin() as connection:
            connection.execute(text("SET LOCAL search_path TO shop"))
        with engine.begin() as connection:
            assert 20 == connection.scalar(select(func.count()).select_from(Instrument))
        with engine.begin() as connection, pytest.raises(DBAPIError, match="permission denied for schema shop_undo"):
            connection.execute(update(Instrument).values(v=9))
    assert before == shop.digest()
    fresh_log(shop)


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
    """It would leave a line of history that nobody wrote: its rows are kept until the trigger lets them pass."""
    before = shop.digest()
    run = Run.begin(subject(shop))
    with run.engine.begin() as connection:
        connection.execute(update(table(run, "audited")).where(table(run, "audited").c.id == 1).values(v=50))
        connection.execute(update(table(run, "swaps")).values(b=0))
    run.end()
    assert ["history"] == [each.table for each in run.tracker.unseen]
    assert [] == run.failures
    assert ["audited 1: its triggers would write at the undo: write_history"] == run.scopes[-1].left
    assert [] == shop.rows("SELECT FROM shop.swaps WHERE b = 0"), "what no trigger holds back is undone"
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
        gone = delete(Fill).where(Fill.order_id < 3).returning(Fill.order_id).cte()
        statement = update(instruments).where(instruments.c.id.in_(select(gone.c.order_id))).values(v=1)
        with run.engine.begin() as connection, pytest.raises(HeliosError, match="finds its rows by another write"):
            connection.execute(statement)
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
    try:
        with pytest.raises(EnvironmentRefusedError):
            Run.begin(subject(shop))
    finally:
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
