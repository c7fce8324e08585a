"""Whatever a test writes, and however, comes back exactly: each way of writing, with the digest before and after."""

import io
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal

import pytest
from sqlalchemy import URL, delete, insert, select, text, update
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import NotSupportedError
from sqlalchemy.orm import Session
from undo_shop import Fill, Instrument, Order, Run, Shop, running, shop_of, undone

LONG = "the_longest_name_that_there_is_for_tables_has_sixty_three_bytes"  # of a table, and of its key


@pytest.fixture(scope="module")
def shop(cluster: URL) -> Iterator[Shop]:
    with shop_of(cluster) as shop:
        yield shop


def orm_add(session: Session) -> None:
    session.add(Instrument(symbol="NEW"))


def orm_add_all(session: Session) -> None:
    session.add_all([Instrument(symbol=f"NEW{i}") for i in range(50)])


def orm_merge(session: Session) -> None:
    session.merge(Instrument(id=3, symbol="MERGED", v=9))
    session.merge(Instrument(id=300, symbol="NEW", v=9))


def orm_cascade(session: Session) -> None:
    session.add(Instrument(symbol="NEW", orders=[Order(client_id="n", fills=[Fill(n=1), Fill(n=2)])]))
    session.delete(session.get_one(Order, 5))


def orm_changes_and_deletes(session: Session) -> None:
    order = session.get_one(Order, 7)
    order.qty = Decimal("1.10")
    session.flush()
    order.status = "FILLED"
    session.flush()
    session.delete(session.get_one(Order, 8))


def bulk_save(session: Session) -> None:
    session.bulk_save_objects([Instrument(symbol=f"BULK{i}") for i in range(50)])


def bulk_update(session: Session) -> None:
    session.execute(update(Instrument), [{"id": each, "v": each} for each in range(1, 6)])


def bulk_insert(session: Session) -> None:
    session.execute(insert(Instrument), [{"symbol": f"BULK{i}"} for i in range(1500)])


def insert_from_select(session: Session) -> None:
    session.execute(insert(Fill).from_select(["order_id", "n"], select(Order.id, Order.id + 100)))


def upsert(session: Session) -> None:
    rows = [{"id": 1, "symbol": "UP1", "v": 1}, {"id": 400, "symbol": "UP400", "v": 1}]
    statement = postgresql.insert(Instrument).values(rows)
    session.execute(statement.on_conflict_do_update(index_elements=["id"], set_={"v": 77, "symbol": "UP"}))
    session.execute(postgresql.insert(Instrument).values(id=2, symbol="NO").on_conflict_do_nothing())


def core(session: Session) -> None:
    session.execute(insert(Instrument).values(symbol="CORE"))
    session.execute(update(Order).where(Order.id < 20).values(status="X"))
    session.execute(delete(Fill).where(Fill.order_id < 20))


def text_sql(session: Session) -> None:
    session.execute(text("INSERT INTO shop.instruments (symbol) VALUES (:it)"), {"it": "TEXT"})
    session.execute(text("UPDATE shop.swaps SET a = a + 100; DELETE FROM shop.swaps WHERE id < 5"))


def savepoints(session: Session) -> None:
    with pytest.raises(RuntimeError), session.begin_nested():
        session.execute(text("UPDATE shop.touched SET v = 77 WHERE id = 1; INSERT INTO shop.touched VALUES (300)"))
        raise RuntimeError
    with session.begin_nested():
        session.execute(text("UPDATE shop.touched SET v = 78 WHERE id = 1; INSERT INTO shop.touched VALUES (300)"))
    session.execute(text("UPDATE shop.touched SET v = 79 WHERE id IN (1, 300)"))
    with pytest.raises(RuntimeError), session.begin_nested():
        session.execute(text("DELETE FROM shop.touched WHERE id = 1"))
        raise RuntimeError


WAYS: list[Callable[[Session], None]] = [
    orm_add,
    orm_add_all,
    orm_merge,
    orm_cascade,
    orm_changes_and_deletes,
    bulk_save,
    bulk_insert,
    bulk_update,
    insert_from_select,
    upsert,
    core,
    text_sql,
    savepoints,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_session_s_writes_are_undone(shop: Shop, way: Callable[[Session], None]) -> None:
    """What a session writes and commits, in any of SQLAlchemy's ways, is gone after the undo, and nothing else."""
    with undone(shop) as run, Session(run.engine()) as session:
        way(session)
        session.commit()


def test_a_session_s_own_rollbacks_leave_nothing_to_undo(shop: Shop) -> None:
    """Commits and rollbacks in turn: only what was committed is there to be undone."""
    with undone(shop) as run, Session(run.engine()) as session:
        orm_add(session)
        session.commit()
        text_sql(session)
        session.rollback()
        core(session)
        session.commit()


def test_a_two_phase_session_s_writes_are_undone(shop: Shop) -> None:
    """A session that prepares and then commits."""
    with undone(shop) as run, Session(run.engine(), twophase=True) as session:
        orm_add(session)
        session.prepare()
        session.commit()


def test_a_raw_cursor_s_writes_are_undone(shop: Shop) -> None:
    """The driver's own cursor, below SQLAlchemy."""
    with undone(shop) as run:
        connection = run.engine().raw_connection()
        with connection.cursor() as cursor:
            cursor.executemany("INSERT INTO shop.instruments (symbol) VALUES (%s)", [("RAW1",), ("RAW2",)])
        connection.commit()
        connection.close()


def test_copy_is_undone(shop: Shop) -> None:
    """COPY into a plain table, into one with triggers, and into a partitioned one."""
    with undone(shop) as run:
        connection = run.engine().raw_connection()
        with connection.cursor() as cursor:
            for table, rows in {
                "klines": "".join(f"{i}\t2030-01-01\t1\t1\n" for i in range(2000)),
                "touched": "".join(f"{i}\t1\t1\n" for i in range(1000, 1100)),
                "ticks": "".join(f"{i}\t7\t1\n" for i in range(900, 1100)),
            }.items():
                cursor.copy_expert(f"COPY shop.{table} FROM STDIN", io.StringIO(rows))
        connection.commit()
        connection.close()


SCENES: dict[str, list[str]] = {
    "rows from before, updated": ["UPDATE klines SET o = 9 WHERE instrument_id < 9", "UPDATE klines SET trades = 1"],
    "rows from before, deleted": ["DELETE FROM klines WHERE instrument_id < 9"],
    "rows updated, deleted, inserted again": [
        "UPDATE swaps SET k = 'z' WHERE id = 4",
        "DELETE FROM swaps WHERE id IN (4, 5)",
        "INSERT INTO swaps VALUES (4, 'again', 4, 4)",
        "UPDATE swaps SET b = 5 WHERE id = 4",
    ],
    "foreign keys: ON DELETE CASCADE and SET NULL": [
        "UPDATE books SET order_id = NULL",
        "DELETE FROM instruments WHERE id IN (1, 2)",
    ],
    "foreign keys: ON UPDATE CASCADE": [
        "UPDATE signals SET instrument_id = NULL WHERE instrument_id < 4",
        "UPDATE instruments SET id = id + 500 WHERE id < 4",
        "UPDATE orders SET status = 'X'",
    ],
    "foreign key to a unique column": [
        "UPDATE codes SET code = 'other' WHERE id = 2",
        "INSERT INTO codes VALUES (50, 'new')",
        "INSERT INTO uses VALUES (50, 'new'), (51, 'other')",
    ],
    "self-reference: ON UPDATE CASCADE": ["UPDATE tree SET id = id + 1000 WHERE id IN (1, 2, 3)"],
    "self-reference: ON UPDATE CASCADE, all rows": ["UPDATE tree SET id = id + 1000", "UPDATE tree SET beside = NULL"],
    "self-reference: ON DELETE CASCADE": ["DELETE FROM tree WHERE id = 3"],
    "self-reference: the root deleted and inserted again": [
        "DELETE FROM tree WHERE id = 1",
        "INSERT INTO tree VALUES (1, NULL, NULL), (2, 1, 1)",
    ],
    "TRUNCATE": ["TRUNCATE orders CASCADE", "INSERT INTO orders (client_id) VALUES ('c1')"],
    "TRUNCATE of a partitioned table": ["TRUNCATE ticks", "INSERT INTO ticks VALUES (10, 1, 5), (2000, 1, 5)"],
    "primary keys changed": ["UPDATE klines SET instrument_id = instrument_id + 100 WHERE instrument_id < 5"],
    "a primary key changed, and its old value taken": [
        "UPDATE swaps SET id = 1000 WHERE id = 1",
        "INSERT INTO swaps VALUES (1, 'other', 90, 90)",
    ],
    "primary keys swapped": [
        "UPDATE swaps SET id = 1000 WHERE id = 1",
        "UPDATE swaps SET id = 1 WHERE id = 2",
        "UPDATE swaps SET id = 2 WHERE id = 1000",
    ],
    "a primary key changed to one that is equal, not the same": ["UPDATE kinds SET part = 1.00"],
    "generated and identity columns": [
        "UPDATE orders SET qty = 1",
        "UPDATE books SET order_id = NULL",
        "DELETE FROM orders WHERE id < 50",
        "INSERT INTO orders (id, client_id) OVERRIDING SYSTEM VALUE VALUES (7, 'seven')",
    ],
    "an identity column that is no key, changed": ["UPDATE kinds SET counted = DEFAULT"],
    "all types, updated": [
        (
            "UPDATE kinds SET n = 1.5, f = 0, texts = '{}', j = '{}', jb = '1', b = '', m = 'calm', r = 'empty', "
            "d = 'x', t = now(), i = '1 day', long = ''"
        ),
    ],
    "all types, deleted": ["DELETE FROM kinds"],
    "a number's trailing zeros": ["UPDATE kinds SET n = 1.5 WHERE n = 1.5"],
    "json that differs only in its spaces": ["""UPDATE kinds SET j = '{"b": 1, "a": null, "a": 2}'"""],
    "names in mixed case, with quotes, of 63 bytes": [
        """INSERT INTO "Mixed ""Case"" %" VALUES (3, 'c', 1)""",
        """UPDATE "Mixed ""Case"" %" SET "select" = 'd', "Key: %s" = "Key: %s" + 10""",
        """DELETE FROM "Mixed ""Case"" %" WHERE "Key: %s" = 12""",
        f"UPDATE {LONG} SET v = 2",
        f"UPDATE {LONG} SET {LONG} = 77",
    ],
    "partitions: a row that moves": ["UPDATE ticks SET ts = ts + 995 WHERE ts IN (10, 20, 1000)"],
    "partitions: a row that moves there and back": [
        "UPDATE ticks SET ts = ts + 1001 WHERE ts = 30",
        "UPDATE ticks SET ts = ts - 1001, v = 0 WHERE ts = 1031",
    ],
    "partitions: written directly": [
        "INSERT INTO ticks_high (ts, n) VALUES (5000, 1), (5001, 1)",
        "UPDATE ticks_high SET v = 0 WHERE ts < 2000",
        "DELETE FROM ticks_low WHERE ts = 50",
        "INSERT INTO ticks VALUES (50, 1, 9)",
        "TRUNCATE ticks_high",
        "INSERT INTO ticks VALUES (1010, 1, 5)",
    ],
    "partitions: a table of them that refers, and is referred to": [
        "INSERT INTO parents VALUES (50, 'p50'); INSERT INTO slots VALUES (50, 50), (1050, 50)",
        "INSERT INTO pins VALUES (50, 50), (51, 1050)",
        "UPDATE parents SET k = 'x' WHERE id = 50; UPDATE slots SET v = 1; UPDATE pins SET v = 1",
        "DELETE FROM pins WHERE id < 3; DELETE FROM slots WHERE id IN (1, 1001)",
    ],
    "an AFTER ROW trigger that updates its own row, inserts alone": ["INSERT INTO touched VALUES (101), (102)"],
    "an AFTER ROW trigger that updates its own row, updates alone": [
        "UPDATE touched SET v = v + 1 WHERE id < 10",
        "UPDATE touched SET v = 9 WHERE id = 3",
    ],
    "an AFTER ROW trigger that updates its own row": [
        "INSERT INTO touched VALUES (101), (102)",
        "UPDATE touched SET v = v + 1 WHERE id < 10",
        "UPDATE touched SET v = 5 WHERE id IN (101, 2)",
        "DELETE FROM touched WHERE id IN (101, 2)",
        "INSERT INTO touched VALUES (101), (2)",
    ],
    "an AFTER STATEMENT trigger on the same table, inserts alone": ["INSERT INTO ranked VALUES (101), (102)"],
    "an AFTER STATEMENT trigger on the same table": [
        "INSERT INTO ranked VALUES (101), (102)",
        "UPDATE ranked SET v = 7 WHERE id < 5",
        "DELETE FROM ranked WHERE id < 3",
        "INSERT INTO ranked VALUES (1)",
    ],
    "a BEFORE ROW trigger that writes elsewhere": [
        "INSERT INTO replaced VALUES (5, 99), (105, 1), (6, 1)",
        "UPDATE replaced SET v = 0 WHERE id < 8",
    ],
    "a BEFORE ROW trigger that stamps the row": [
        "UPDATE stamped SET v = 0 WHERE id < 5",
        "DELETE FROM stamped WHERE id IN (4, 5, 6)",
        "INSERT INTO stamped (id) VALUES (6), (100)",
    ],
    "an AFTER ROW trigger that deletes what was inserted": [
        ("INSERT INTO fleeting VALUES (201, -1), (202, 1), (203, -2)"),
    ],
    "a history written by a trigger": ["UPDATE audited SET v = v + 1", "DELETE FROM audited WHERE id < 5"],
    "a deferred trigger": ["UPDATE parts SET v = 0 WHERE id < 9", "INSERT INTO parts VALUES (50, 77, 1)"],
    "upserts: rows from before, new ones, and nothing": [
        """INSERT INTO swaps VALUES (1, 'new', 50, 50), (101, 'n2', 51, 51)
           ON CONFLICT (id) DO UPDATE SET a = excluded.a, k = excluded.k""",
        """INSERT INTO swaps VALUES (1, 'zz', 50, 50), (101, 'n3', 52, 51)
           ON CONFLICT (id) DO UPDATE SET a = excluded.a + 5""",
        "INSERT INTO swaps VALUES (7, 'x', 0, 0) ON CONFLICT DO NOTHING",
    ],
    "upserts on tables with triggers": [
        "INSERT INTO touched VALUES (3, 5), (103, 6) ON CONFLICT (id) DO UPDATE SET v = excluded.v",
        "INSERT INTO ranked VALUES (3, 5), (103, 6) ON CONFLICT (id) DO UPDATE SET v = excluded.v",
    ],
    "MERGE": [
        (
            "MERGE INTO touched AS t USING (VALUES (1, 1), (2, 2), (109, 3)) AS s (id, v) ON t.id = s.id "
            "WHEN MATCHED AND s.id = 1 THEN DELETE WHEN MATCHED THEN UPDATE SET v = s.v "
            "WHEN NOT MATCHED THEN INSERT VALUES (s.id, s.v)"
        ),
    ],
    "a CTE that deletes and inserts one key": [
        (
            "WITH gone AS (DELETE FROM swaps WHERE id IN (4, 5) RETURNING *) "
            "INSERT INTO swaps SELECT id, k || '!', a, b FROM gone"
        ),
    ],
    "a CTE that writes three tables": [
        (
            "WITH u AS (UPDATE touched SET v = 3 WHERE id < 6 RETURNING id), "
            "i AS (INSERT INTO touched SELECT id + 200 FROM u RETURNING id) "
            "UPDATE ranked SET v = (SELECT max(id) FROM i) WHERE id IN (SELECT id FROM u)"
        ),
    ],
    "exception blocks": [
        (
            "DO $$ BEGIN BEGIN UPDATE ranked SET v = 1 WHERE id = 1; INSERT INTO ranked VALUES (400); RAISE 'x'; "
            "EXCEPTION WHEN OTHERS THEN NULL; END; BEGIN UPDATE ranked SET v = 2 WHERE id = 1; INSERT INTO ranked "
            "VALUES (401); EXCEPTION WHEN OTHERS THEN NULL; END; UPDATE ranked SET v = 3 WHERE id IN (1, 401); END $$"
        ),
    ],
    "unique values swapped": [
        "UPDATE swaps SET k = 'tmp' WHERE id = 1",
        "UPDATE swaps SET k = 'k1' WHERE id = 2",
        "UPDATE swaps SET k = 'k2' WHERE id = 1",
    ],
    "unique values of two columns in a ring": [
        "UPDATE swaps SET a = -id, k = 'q' || id WHERE id IN (1, 2, 3)",
        "UPDATE swaps SET a = id % 3 + 1, b = id % 3 + 1, k = 'k' || (id % 3 + 1) WHERE id IN (1, 2, 3)",
    ],
    "unique values moved in a chain, rows deleted and inserted": [
        "UPDATE swaps SET k = 't9' WHERE id = 5",
        "UPDATE swaps SET k = 'k5' WHERE id = 6",
        "DELETE FROM swaps WHERE id = 7",
        "INSERT INTO swaps VALUES (107, 'k7', 7, 7), (108, 'k6', 60, 6)",
    ],
    "a partial index on an expression, swapped": [
        "UPDATE active SET name = 'tmp' WHERE id = 2",
        "UPDATE active SET name = 'NAME1' WHERE id = 4",
        "UPDATE active SET name = 'name2' WHERE id = 2",
        "UPDATE active SET live = false WHERE id = 6",
        "UPDATE active SET live = true WHERE id = 5",
    ],
    "a unique expression, swapped": [
        "UPDATE folded SET name = 'tmp' WHERE id = 1",
        "UPDATE folded SET name = 'NAME1' WHERE id = 2",
        "UPDATE folded SET name = 'NAME2' WHERE id = 1",
    ],
    "a partial index, swapped, with rows that come and go": [
        "UPDATE folded SET n = -1 WHERE id = 1",
        "UPDATE folded SET n = 1 WHERE id = 2",
        "UPDATE folded SET n = 2 WHERE id = 1",
        "UPDATE folded SET live = false WHERE id = 3",
        "UPDATE folded SET n = 3 WHERE id = 4",
        "UPDATE folded SET live = true, n = 4 WHERE id = 9",
    ],
    "a unique generated column, swapped": [
        "UPDATE computed SET n = 100 WHERE id = 1",
        "UPDATE computed SET n = -1 WHERE id = 2",
        "UPDATE computed SET n = 2 WHERE id = 1",
    ],
    "a deferrable unique constraint, swapped": ["UPDATE seats SET place = 11 - place"],
    "unique values swapped where children could hang": [
        "UPDATE parents SET k = 'tmp' WHERE id = 8",
        "UPDATE parents SET k = 'p8' WHERE id = 9",
        "UPDATE parents SET k = 'p9' WHERE id = 8",
    ],
}


@pytest.mark.parametrize("one", [True, False], ids=["one transaction", "each its own"])
@pytest.mark.parametrize("scene", SCENES)
def test_a_scene_is_undone(shop: Shop, scene: str, *, one: bool) -> None:
    """Rows from before, keys, cascades, triggers, partitions, unique values: whatever SQL does comes back exactly."""
    statements = ["SET search_path TO shop", *SCENES[scene]] if one else []
    with undone(shop) as run:
        run.write(*(statements or [f"SET search_path TO shop; {each}" for each in SCENES[scene]]), one=one)


def test_many_rows_are_undone(shop: Shop) -> None:
    """So many rows that the undo plans for them."""
    with undone(shop) as run:
        run.write(
            "UPDATE shop.klines SET trades = trades + 1",
            "INSERT INTO shop.klines SELECT i, '2031-01-01', 1, 1 FROM generate_series(1, 3000) AS i",
            "DELETE FROM shop.klines WHERE instrument_id = 3",
            "UPDATE shop.klines SET instrument_id = instrument_id + 9000 WHERE instrument_id < 5",
            "INSERT INTO shop.touched SELECT generate_series(1000, 3000)",
        )


@pytest.mark.parametrize("more", [[], ["UPDATE shop.touched SET v = 5 WHERE id > 1000"]], ids=["short", "long"])
def test_a_log_that_grew_long_is_emptied_at_once(shop: Shop, more: list[str]) -> None:
    """TRUNCATE, instead of leaving files of dead rows, also of what the undo planned; by either way of undoing."""
    with undone(shop) as run:
        run.write("INSERT INTO shop.touched SELECT generate_series(1001, 101000)", *more)
        assert [(True,)] == shop.rows("SELECT pg_relation_size('shop_undo.touched') > 4000000")
    sizes = "SELECT pg_relation_size(log::regclass), pg_relation_size(plan::regclass) FROM shop_undo._tables"
    assert [(0, 0)] == shop.rows(f"{sizes} WHERE name = 'shop.touched'")


def test_many_transactions_are_undone(shop: Shop) -> None:
    """Each row of a transaction of its own, on one connection."""
    with undone(shop) as run:
        run.write(*(f"INSERT INTO shop.instruments (symbol) VALUES ('M{i}')" for i in range(200)), one=False)


def test_threads_and_other_processes_are_undone(shop: Shop) -> None:
    """Several labelled connections at once, which change each other's rows."""

    def work(run: Run, number: int) -> None:
        run.write(
            *(f"UPDATE shop.swaps SET b = b + 100 WHERE id = {1 + (number + i) % 9}" for i in range(20)),
            *(f"INSERT INTO shop.instruments (symbol) VALUES ('T{number}-{i}')" for i in range(20)),
            one=False,
        )

    with undone(shop) as run:
        threads = [threading.Thread(target=work, args=(run, number)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def test_a_two_phase_commit_is_undone(shop: Shop) -> None:
    """A prepared transaction, committed from another connection."""
    with undone(shop) as run:
        run.write(
            "BEGIN",
            "UPDATE shop.swaps SET a = 50 WHERE id = 1",
            "INSERT INTO shop.instruments (symbol) VALUES ('2PC')",
            "PREPARE TRANSACTION 'helios-undo-test'",
            one=False,
        )
        with run.engine(isolation_level="AUTOCOMMIT").connect() as connection:
            connection.execute(text("COMMIT PREPARED 'helios-undo-test'"))


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_other_isolation_levels_are_undone(shop: Shop, level: str) -> None:
    """A transaction with a snapshot of its own is logged as any other."""
    with undone(shop) as run:
        with run.engine(isolation_level=level).begin() as connection:
            connection.execute(text("SELECT count(*) FROM shop.swaps"))
            connection.execute(text("UPDATE shop.swaps SET a = 50 WHERE id = 1"))
            connection.execute(text("INSERT INTO shop.instruments (symbol) VALUES ('RR')"))


def test_a_truncate_that_could_not_be_undone_is_refused(shop: Shop) -> None:
    """Under a snapshot of its own it would remove rows that no trigger sees; nothing is removed."""
    with running(shop) as run, run.engine(isolation_level="REPEATABLE READ").begin() as connection:
        with pytest.raises(NotSupportedError, match=r"TRUNCATE of shop\.klines by a test run is refused"):
            connection.execute(text("TRUNCATE shop.klines"))


def test_a_truncate_is_logged_once_for_each_row(shop: Shop) -> None:
    """Also of a partitioned table, whose partitions are truncated with it."""
    with undone(shop) as run:
        run.write("TRUNCATE shop.ticks")
        assert [(300,)] == shop.rows("SELECT count(*) FROM shop_undo.ticks")


def test_replica_role_does_not_pass_by(shop: Shop) -> None:
    """With session_replication_role = replica other triggers are silent, the log's are not."""
    with undone(shop) as run:
        run.write(
            "SET session_replication_role TO replica",
            "UPDATE shop.audited SET v = 100",
            "DELETE FROM shop.touched WHERE id = 4",
            url=shop.admin,
        )


def test_the_digest_tells_every_difference(shop: Shop) -> None:
    """A changed digit, a trailing zero, NULL for an empty text, a row more: each changes its table's digest alone."""
    before = shop.digest()
    for table, change, back in (
        ("kinds", "UPDATE shop.kinds SET n = 1.5 WHERE n = 1.5", "UPDATE shop.kinds SET n = 1.500 WHERE n = 1.5"),
        ("swaps", "UPDATE shop.swaps SET k = '' WHERE id = 1", "UPDATE shop.swaps SET k = 'k1' WHERE id = 1"),
        ("swaps", "UPDATE shop.swaps SET k = NULL WHERE id = 1", "UPDATE shop.swaps SET k = 'k1' WHERE id = 1"),
        ("ticks", "INSERT INTO shop.ticks VALUES (1, 1)", "DELETE FROM shop.ticks WHERE ts = 1"),
    ):
        with shop.beside() as connection:
            connection.exec_driver_sql(change)
            changed = shop.digest()
            connection.exec_driver_sql(back)
        assert [f"shop.{table}"] == [name for name, value in changed.items() if value != before[name]]
    assert before == shop.digest()
