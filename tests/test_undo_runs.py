"""Runs: marks, overlapping ones, dead ones, and whoever stands in an undo's way."""

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from installation import run_sql
from server_user import until
from sqlalchemy import URL, Connection, event
from sqlalchemy.exc import DBAPIError
from undo_shop import SCHEMA, Run, Shop, running, shop_of, undone, until_undo_waits

from helios.errors import HeliosError
from helios.schema.preparation import open_runs
from helios.testing import undo


@pytest.fixture(scope="module")
def shop(cluster: URL) -> Iterator[Shop]:
    with shop_of(cluster) as shop:
        yield shop


def test_marks_one_within_the_other(shop: Shop) -> None:
    """Each undo goes back to its mark, over rows that earlier undos restored, and the last to the beginning."""
    beginning = shop.digest()
    with running(shop) as run:
        run.write("INSERT INTO shop.touched VALUES (600); UPDATE shop.swaps SET a = 500 WHERE id = 1")
        first, at_first = run.mark(), shop.digest()
        run.write(
            "UPDATE shop.touched SET v = 5 WHERE id = 600",
            "UPDATE shop.swaps SET a = 501 WHERE id = 1",
            "DELETE FROM shop.swaps WHERE id = 2",
            "INSERT INTO shop.swaps VALUES (800, 'x', 8, 800)",
        )
        second, at_second = run.mark(), shop.digest()
        run.write(
            "DELETE FROM shop.touched WHERE id = 600",
            "DELETE FROM shop.swaps WHERE id IN (1, 800)",
            "INSERT INTO shop.swaps VALUES (2, 'y', 2, 2), (1, 'yy', 1, 1)",
        )
        run.undo(second)
        assert at_second == shop.digest()
        third = run.mark()
        run.write("UPDATE shop.swaps SET a = 600 WHERE id IN (1, 3)")
        run.undo(third)
        assert at_second == shop.digest()
        run.write("UPDATE shop.swaps SET a = 601 WHERE id = 1")
        run.undo(second)
        assert at_second == shop.digest(), "a mark is good for many undos"
        run.undo(first)
        assert at_first == shop.digest()
        run.undo()
        assert beginning == shop.digest()
        run.close()
    assert 0 == shop.logged()


def test_what_was_done_is_told(shop: Shop) -> None:
    """By table, with numbers; of nothing, or what was rolled back, nothing."""
    with running(shop) as run:
        assert [] == run.undo(run.mark())
        run.write("BEGIN", "INSERT INTO shop.touched VALUES (706)", "ROLLBACK", one=False)
        assert [] == run.undo(run.mark())
        mark = run.mark()
        run.write(
            "INSERT INTO shop.touched VALUES (706)",
            "UPDATE shop.swaps SET a = 100 WHERE id < 4",
            "DELETE FROM shop.fills",
        )
        assert [
            ("fills", "restored", 600, ""),
            ("swaps", "restored", 3, ""),
            ("touched", "deleted", 1, ""),
        ] == run.undo(mark)


def test_a_row_that_an_undo_restored_is_restored_again(shop: Shop) -> None:
    """Its image is then that undo's own: deleted and inserted later in the run, it is not taken for a new row."""
    with undone(shop) as run:
        mark = run.mark()
        run.write("UPDATE shop.swaps SET a = 50 WHERE id < 4")
        run.undo(mark)
        run.write(
            """WITH gone AS (DELETE FROM shop.swaps WHERE id = 1 RETURNING *)
               INSERT INTO shop.swaps SELECT id, k || '!', a, b FROM gone""",
            "DELETE FROM shop.swaps WHERE id = 2",
            "INSERT INTO shop.swaps VALUES (2, 'again', 22, 22)",
            "DELETE FROM shop.swaps WHERE id = 3",
            "INSERT INTO shop.swaps VALUES (3, 'gone', 3, 3)",
            "DELETE FROM shop.swaps WHERE id = 3",
            one=False,
        )


WRITES = ("UPDATE shop.swaps SET a = 51 WHERE id = 2", "INSERT INTO shop.swaps VALUES (900, 'late', 9, 900)")


@pytest.mark.parametrize("write", WRITES, ids=["update", "insert"])
def test_an_ended_run_may_write_no_more(shop: Shop, write: str) -> None:
    """After the undo of all of it, a late write of a thread or child process is refused, in every isolation level."""
    with running(shop) as run:
        late = run.engine(isolation_level="REPEATABLE READ").connect()
        late.exec_driver_sql("SELECT count(*) FROM shop.swaps")
        run.write("UPDATE shop.swaps SET a = 50 WHERE id = 1")
        run.undo()
        with pytest.raises(DBAPIError, match="could not serialize access"):
            late.exec_driver_sql(write)
        late.close()
        with pytest.raises(
            DBAPIError, match=rf"test run {run.id} is over, or did not begin here: a write to shop\.swaps"
        ):
            run.write(write)


@pytest.mark.parametrize("write", WRITES, ids=["update", "insert"])
def test_a_closed_run_may_write_no_more(shop: Shop, write: str) -> None:
    """Nor may one that was closed without an undo, while the connection that held its lease lives on."""
    with shop.kit() as connection:
        undo.begin(connection, 901, schema=SCHEMA)
        undo.close(connection, 901, schema=SCHEMA)
        with pytest.raises(DBAPIError, match="test run 901 is over, or did not begin here"):
            Run(shop, connection, 901).write(write)


@pytest.mark.parametrize("write", [*WRITES, "DELETE FROM shop.swaps"], ids=["update", "insert", "delete"])
def test_a_run_that_never_began_is_refused(shop: Shop, write: str) -> None:
    """So is a label that is no number."""
    with shop.kit() as connection:
        with pytest.raises(DBAPIError, match="test run 77 is over, or did not begin here"):
            Run(shop, connection, 77).write(write)
        with pytest.raises(DBAPIError, match="'seven' is no test run"):
            Run(shop, connection, "seven").write(write)  # type: ignore[arg-type]


def test_a_run_begins_once(shop: Shop) -> None:
    """Neither the same connection nor another may begin it again."""
    with running(shop) as run, shop.kit() as other:
        for connection in (run.connection, other):
            with pytest.raises(HeliosError, match=f"test run {run.id} has begun already"):
                undo.begin(connection, run.id, schema=SCHEMA)


@pytest.mark.parametrize("write", WRITES, ids=["update", "insert"])
def test_a_run_that_began_at_the_second_attempt_ends_once(shop: Shop, write: str) -> None:
    """The first was rolled back, which locks of a session outlive: after the undo of all of it none of them is left."""
    with shop.kit() as connection:
        connection.exec_driver_sql("BEGIN")
        undo.begin(connection, 902, schema=SCHEMA)
        connection.exec_driver_sql("ROLLBACK")
        undo.begin(connection, 902, schema=SCHEMA)
        undo.undo(connection, [902], schema=SCHEMA)
        with pytest.raises(DBAPIError, match="test run 902 is over, or did not begin here"):
            Run(shop, connection, 902).write(write)
        undo.close(connection, 902, schema=SCHEMA)
        assert [] == shop.rows(
            "SELECT FROM pg_locks JOIN pg_database AS d ON d.oid = database "
            "WHERE locktype = 'advisory' AND datname = current_database()"
        )


def test_two_runs_that_overlap(shop: Shop) -> None:
    """What both touched is left to the one that lives on; when it has ended too, all is as before."""
    before = shop.digest()
    with running(shop) as one, running(shop) as other:
        one.write(
            "UPDATE shop.swaps SET a = 11 WHERE id = 1",
            "INSERT INTO shop.touched VALUES (700)",
            "INSERT INTO shop.instruments (id, symbol) VALUES (950, 'S')",
            "INSERT INTO shop.klines VALUES (9, '2030-01-01')",
        )
        other.write(
            "UPDATE shop.swaps SET a = 12 WHERE id = 1",
            "UPDATE shop.touched SET v = 1 WHERE id = 700",
            "INSERT INTO shop.orders (client_id, instrument_id) VALUES ('r2', 950)",
            "UPDATE shop.klines SET o = 5 WHERE t = '2030-01-01'",
        )
        one.write("UPDATE shop.swaps SET b = 99 WHERE id = 2")
        one.undo()
        assert [(12,)] == shop.rows("SELECT a FROM shop.swaps WHERE id = 1")
        assert [(2,)] == shop.rows("SELECT b FROM shop.swaps WHERE id = 2")
        other.undo()
        one.undo()
    assert before == shop.digest()
    assert 0 == shop.logged()


def test_a_version_of_a_run_that_is_over(shop: Shop) -> None:
    """What a run had to leave, and another found and changed, goes back to what was there before both."""
    before = shop.digest()
    with running(shop) as one, running(shop) as other, shop.beside() as neighbour:
        one.write(
            "INSERT INTO shop.instruments (id, symbol, v) VALUES (960, 'T', 1)",
            "UPDATE shop.swaps SET a = 11 WHERE id = 1",
        )
        neighbour.exec_driver_sql("INSERT INTO shop.orders (client_id, instrument_id) VALUES ('n', 960)")
        assert [("instruments", "kept", 1, "referenced from shop.orders"), ("swaps", "restored", 1, "")] == one.undo()
        other.write("UPDATE shop.instruments SET v = 2 WHERE id = 960")
        other.undo()
        neighbour.exec_driver_sql("DELETE FROM shop.orders WHERE client_id = 'n'")
        one.undo()
    assert before == shop.digest()
    assert 0 == shop.logged()


def test_what_neighbours_changed_behind_a_run_that_is_over(shop: Shop) -> None:
    """A row that it had to leave, and that another found and had to leave as well: told, and no failure."""
    before = shop.digest()
    with running(shop) as one, running(shop) as other, shop.beside() as neighbour:
        for run, number in ((one, 911), (other, 912)):
            run.write(f"UPDATE shop.swaps SET a = {number} WHERE id = 1")
            neighbour.exec_driver_sql(f"UPDATE shop.swaps SET b = {number} WHERE id = 1")
            assert [("swaps", "kept", 1, "changed by somebody else")] == run.undo()
        with shop.kit() as connection:  # migrations need not wait for what has to stay
            assert [] == open_runs(connection, SCHEMA)
        assert [(912, 912)] == shop.rows("SELECT a, b FROM shop.swaps WHERE id = 1")
        neighbour.exec_driver_sql("UPDATE shop.swaps SET a = 911, b = 911 WHERE id = 1")
        other.undo()
        neighbour.exec_driver_sql("UPDATE shop.swaps SET a = 1, b = 1 WHERE id = 1")
    assert before == shop.digest()
    assert 0 == shop.logged()


def test_what_an_undo_restored_is_handed_over_too(shop: Shop) -> None:
    """A version between two tests of a run that is over is no state to go back to for a run that found it."""
    before = shop.digest()
    with running(shop) as other:
        with running(shop) as one:
            one.write("UPDATE shop.swaps SET a = 11 WHERE id = 1")
            middle = one.mark()
            one.write("UPDATE shop.swaps SET a = 12 WHERE id = 1")
            one.undo(middle)
            other.write("UPDATE shop.swaps SET a = 13 WHERE id = 1")
        assert [(13,)] == shop.rows("SELECT a FROM shop.swaps WHERE id = 1")
    assert before == shop.digest()
    assert 0 == shop.logged()


def test_what_is_inherited_is_noted_once(shop: Shop) -> None:
    """However often two runs hand a row to each other: what marks it grows with their undos, and no faster."""
    twice = "cardinality(inherited) > (SELECT count(DISTINCT each::text) FROM unnest(inherited) AS each)"
    before = shop.digest()
    with running(shop) as one, running(shop) as other:
        for turn in range(4):
            for first, second in ((one, other), (other, one)):
                mark = first.mark()
                first.write(f"UPDATE shop.swaps SET a = {100 + turn} WHERE id = 1")
                second.write(f"UPDATE shop.swaps SET a = {200 + turn} WHERE id = 1")
                first.undo(mark)
        assert (0, True) == shop.rows(f"SELECT count(*) FILTER (WHERE {twice}), count(*) > 8 FROM shop_undo._undos")[0]
    assert before == shop.digest()
    assert 0 == shop.logged()


@pytest.mark.parametrize("undos", [1, 2], ids=["at its end", "between two tests"])
def test_of_what_an_undo_restored_only_keys_that_were_handed_over_are_inherited(shop: Shop, undos: int) -> None:
    """Another row that it restored was a neighbour's, and stays so for the run that inherits."""
    before = shop.digest()
    with running(shop) as heir, running(shop) as one, shop.beside() as neighbour:
        heir.write(
            "INSERT INTO shop.instruments (id, symbol, v) VALUES (960, 'T', 1)",
            "UPDATE shop.instruments SET v = 11 WHERE id = 1",
        )
        neighbour.exec_driver_sql("INSERT INTO shop.orders (client_id, instrument_id) VALUES ('n', 960)")
        neighbour.exec_driver_sql("UPDATE shop.instruments SET v = 77 WHERE id = 1")
        heir.undo()
        one.write("UPDATE shop.instruments SET v = 2 WHERE id = 960")
        mark = one.mark()
        one.write("UPDATE shop.instruments SET v = 12 WHERE id = 1")
        for since in (mark, 0)[-undos:]:
            one.undo(since)
        neighbour.exec_driver_sql("DELETE FROM shop.orders WHERE client_id = 'n'")
        assert [("instruments", "deleted", 1, "")] == heir.undo()
        assert [(77,)] == shop.rows("SELECT v FROM shop.instruments WHERE id = 1")
        neighbour.exec_driver_sql("UPDATE shop.instruments SET v = 0 WHERE id = 1")
    assert before == shop.digest()
    assert 0 == shop.logged()


@pytest.mark.parametrize(
    ("row", "change"),
    [
        (1, "UPDATE shop.swaps SET a = 12 WHERE id = 1"),
        (1, "UPDATE shop.swaps SET a = 1 WHERE id = 1"),
        (910, "DELETE FROM shop.swaps WHERE id = 910"),
        (910, "TRUNCATE shop.swaps"),
    ],
    ids=["changes it", "puts it back", "deletes it", "truncates the table"],
)
def test_a_run_that_writes_while_another_is_undone(shop: Shop, row: int, change: str) -> None:
    """It commits after the undo has looked at what both touched: it counts as a run's, not as a neighbour's."""
    before = shop.digest()
    with running(shop) as other, running(shop) as one, shop.kit() as between:
        one.write(*(["INSERT INTO shop.swaps VALUES (910, 'x', 910, 910)"] if row == 910 else []))
        one.write(*(f"UPDATE shop.swaps SET a = {number} WHERE id = {row}" for number in (10, 11)))
        ((plan,),) = shop.rows("SELECT plan FROM shop_undo._tables WHERE name = 'shop.swaps'")
        between.exec_driver_sql(f"BEGIN; LOCK TABLE {plan}")  # between what it looks at and what it plans
        with ThreadPoolExecutor() as beside:
            undone = beside.submit(one.undo)
            while not shop.rows(f"SELECT FROM pg_locks WHERE NOT granted AND relation = '{plan}'::regclass"):
                assert not undone.done()
            other.write(change)
            between.exec_driver_sql("COMMIT")
            assert [] == undone.result()
    assert before == shop.digest()
    assert 0 == shop.logged()


def test_a_run_that_is_let_stand(shop: Shop) -> None:
    """What it wrote stays for good, and its log is empty."""
    before = shop.digest()
    with running(shop) as run, shop.beside() as neighbour:
        run.write("INSERT INTO shop.touched VALUES (707)")
        undo.forget(run.connection, run.id, schema=SCHEMA)
        assert [] == run.undo()
        assert [(707,)] == shop.rows("SELECT id FROM shop.touched WHERE id = 707")
        neighbour.exec_driver_sql("DELETE FROM shop.touched WHERE id = 707")
    assert before == shop.digest()


def test_a_run_that_died_beside_one_that_lives(shop: Shop) -> None:
    """Its lease is free: it is listed as dead, and undone by another connection; the living one's writes stay."""
    before = shop.digest()
    with running(shop) as living, shop.kit() as sweeper:
        with shop.kit() as connection:
            dying = Run(shop, connection, 4711)
            undo.begin(connection, dying.id, schema=SCHEMA)
            dying.write("INSERT INTO shop.touched VALUES (701)", "UPDATE shop.swaps SET a = 11 WHERE id = 3")
            living.write("INSERT INTO shop.touched VALUES (702)", "UPDATE shop.swaps SET b = 12 WHERE id = 3")
            assert [] == undo.dead(sweeper, schema=SCHEMA)
            with pytest.raises(HeliosError, match="test run 4711 is alive in another session"):
                undo.undo(sweeper, [dying.id], schema=SCHEMA)
            pid = connection.connection.driver_connection.info.backend_pid
            connection.invalidate()
        while shop.rows("SELECT FROM pg_stat_activity WHERE pid = :pid", pid=pid):
            pass
        assert [dying.id] == undo.dead(sweeper, schema=SCHEMA)
        undo.undo(sweeper, [dying.id], schema=SCHEMA)
        undo.close(sweeper, dying.id, schema=SCHEMA)
        assert [] == undo.dead(sweeper, schema=SCHEMA)
        assert [(702,)] == shop.rows("SELECT id FROM shop.touched WHERE id > 700")
        assert [(11, 12)] == shop.rows("SELECT a, b FROM shop.swaps WHERE id = 3")
    assert before == shop.digest()
    assert 0 == shop.logged()


def test_a_closed_run_that_was_not_undone_is_dead(shop: Shop) -> None:
    """Closing forgets nothing that is in the log, nor what a child process writes later: the next sweep undoes both."""
    before = shop.digest()
    with running(shop) as run, shop.kit() as sweeper:
        run.write("INSERT INTO shop.touched VALUES (703)")
        run.close()
        run.write("INSERT INTO shop.touched VALUES (704)")
        assert [run.id] == undo.dead(sweeper, schema=SCHEMA)
        assert [("shop.touched", 2)] == [
            (each.table, each.count) for each in undo.undo(sweeper, [run.id], schema=SCHEMA)
        ]
    assert before == shop.digest()


def test_a_closed_run_that_was_to_begin_twice_is_dead(shop: Shop) -> None:
    """Its lease was taken twice on one connection, and is given back for good: that connection may live on."""
    before = shop.digest()
    with running(shop) as run, shop.kit() as sweeper:
        with pytest.raises(HeliosError, match="has begun already"):
            undo.begin(run.connection, run.id, schema=SCHEMA)
        run.write("INSERT INTO shop.touched VALUES (703)")
        run.close()
        assert [run.id] == undo.dead(sweeper, schema=SCHEMA)
    assert before == shop.digest()


@pytest.mark.parametrize("write", WRITES, ids=["update", "insert"])
def test_an_open_transaction_of_the_run_is_named(shop: Shop, write: str) -> None:
    """The undo, a mark and the end wait for it; after a time they say its pid and its query, and change nothing."""
    with undone(shop) as run:
        run.write("INSERT INTO shop.touched VALUES (705)")
        with run.engine().connect() as connection:
            connection.exec_driver_sql(write)
            pid = connection.connection.driver_connection.info.backend_pid
            expected = rf"(?s)waited for more than 0.2 s, blocked by pid {pid} .*{re.escape(write)}"
            for action in (run.undo, lambda **more: undo.mark(run.connection, run.id, schema=SCHEMA, **more)):
                with pytest.raises(HeliosError, match=expected):
                    action(patience=0.2)
            assert [(705,)] == shop.rows("SELECT id FROM shop.touched WHERE id = 705")
            connection.commit()


def test_a_prepared_transaction_is_named(shop: Shop) -> None:
    """It has no pid: its name is told, and how it is ended."""
    with undone(shop) as run:
        run.write("BEGIN", "UPDATE shop.swaps SET a = 50 WHERE id = 1", "PREPARE TRANSACTION 'hanging'", one=False)
        with pytest.raises(HeliosError, match=r"(?s)a prepared transaction, which COMMIT PREPARED .*'hanging'"):
            run.undo(patience=0.2)
        run.write("COMMIT PREPARED 'hanging'", one=False)


def test_a_neighbour_who_holds_a_row_is_named(shop: Shop) -> None:
    """A neighbour's lock on a row that is to be restored: named by its pid, and waited for no longer than told."""
    with undone(shop) as run, shop.beside() as neighbour:
        run.write("UPDATE shop.swaps SET a = 50 WHERE id = 1")
        neighbour.exec_driver_sql("BEGIN")
        neighbour.exec_driver_sql("SELECT FROM shop.swaps WHERE id = 1 FOR UPDATE")
        pid = neighbour.connection.driver_connection.info.backend_pid
        with pytest.raises(HeliosError, match=rf"blocked by pid {pid} "):
            run.undo(patience=0.2)
        neighbour.exec_driver_sql("COMMIT")


def test_a_neighbour_who_changes_a_row_while_it_is_undone(shop: Shop) -> None:
    """The undo waits for the neighbour's transaction, sees that the row is theirs now, and plans again."""
    with running(shop) as run, shop.beside() as neighbour:
        run.write("UPDATE shop.swaps SET a = 50 WHERE id IN (1, 2)")
        neighbour.exec_driver_sql("BEGIN")
        neighbour.exec_driver_sql("UPDATE shop.swaps SET b = 60 WHERE id = 1")
        found: list[object] = []
        thread = threading.Thread(target=lambda: found.extend(run.undo()))
        thread.start()
        until_undo_waits(shop, thread)
        neighbour.exec_driver_sql("COMMIT")
        thread.join()
        assert [("swaps", "kept", 1, "changed by somebody else"), ("swaps", "restored", 1, "")] == found
        assert [(50, 60), (2, 2)] == shop.rows("SELECT a, b FROM shop.swaps WHERE id < 3 ORDER BY id")
        neighbour.exec_driver_sql("UPDATE shop.swaps SET a = 1, b = 1 WHERE id = 1")


@pytest.mark.parametrize("row", [1, 910], ids=["to be restored", "to be deleted"])
def test_a_neighbour_who_changes_a_row_that_the_undo_has_planned_for(shop: Shop, row: int) -> None:
    """A row of any history is the neighbour's when the undo gets to it: kept."""
    with running(shop) as run, shop.beside() as neighbour:
        run.write(*(["INSERT INTO shop.swaps VALUES (910, 'x', 910, 910)"] if row == 910 else []))
        run.write(*(f"UPDATE shop.swaps SET a = {number} WHERE id = {row}" for number in (50, 51)), one=False)
        neighbour.exec_driver_sql("BEGIN")
        neighbour.exec_driver_sql(f"UPDATE shop.swaps SET b = 60 WHERE id = {row}")
        found: list[object] = []
        thread = threading.Thread(target=lambda: found.extend(run.undo()))
        thread.start()
        until_undo_waits(shop, thread)
        neighbour.exec_driver_sql("COMMIT")
        thread.join()
        assert [("swaps", "kept", 1, "changed by somebody else")] == found
        assert [(51, 60)] == shop.rows("SELECT a, b FROM shop.swaps WHERE id = :row", row=row)
        neighbour.exec_driver_sql("UPDATE shop.swaps SET a = 1, b = 1 WHERE id = 1")
        neighbour.exec_driver_sql("DELETE FROM shop.swaps WHERE id = 910")


@pytest.fixture
def gates(shop: Shop) -> Iterator[Connection]:
    """A connection that holds up each attempt of an undo, after its plan, by a lock of its own: 1, 2, 3, ..."""
    with shop.kit() as owner, shop.beside() as holder:
        for each in (
            "CREATE SEQUENCE shop_undo._gates",
            (
                "CREATE FUNCTION shop_undo._gate(bigint[], bigint, xid[], boolean) RETURNS bigint LANGUAGE sql AS "
                "$$ SELECT 0 FROM pg_advisory_xact_lock_shared(nextval('shop_undo._gates')) $$"
            ),
            "INSERT INTO shop_undo._checks VALUES ('_gate', 'shop.swaps'::regclass, 'shop.swaps'::regclass)",
        ):
            owner.exec_driver_sql(each)
        holder.exec_driver_sql("SELECT pg_advisory_lock(each) FROM generate_series(1, 4) AS each")
        yield holder
        for each in (
            "DELETE FROM shop_undo._checks WHERE name = '_gate'",
            "DROP FUNCTION shop_undo._gate; DROP SEQUENCE shop_undo._gates",
        ):
            owner.exec_driver_sql(each)


def test_neighbours_who_change_a_row_at_each_attempt(shop: Shop, gates: Connection) -> None:
    """However often they do, the undo comes to its end: from the third attempt on, nobody writes meanwhile."""
    at_gate = "SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = {} AND NOT granted".format
    waiting = "SELECT FROM pg_stat_activity WHERE query = '{}' AND wait_event_type = 'Lock'".format
    with running(shop) as run, shop.beside() as neighbour, ThreadPoolExecutor() as beside:
        run.write(*(f"UPDATE shop.swaps SET a = a + {number} WHERE id <= 6" for number in (20, 30)), one=False)
        undone = beside.submit(run.undo)
        for row in (1, 2, 3, 4):
            change = f"UPDATE shop.swaps SET b = b + 60 WHERE id = {row}"
            until(lambda number=row: undone.done() or shop.rows(at_gate(number)))
            changed = beside.submit(neighbour.exec_driver_sql, change)
            until(lambda of=changed, query=change: of.done() or shop.rows(waiting(query)))
            gates.exec_driver_sql(f"SELECT pg_advisory_unlock({row})")
            changed.result()
        assert [("swaps", "kept", 2, "changed by somebody else"), ("swaps", "restored", 4, "")] == undone.result()
        neighbour.exec_driver_sql("UPDATE shop.swaps SET a = id, b = id WHERE id <= 6")


def test_one_undo_at_a_time(shop: Shop) -> None:
    """An undo waits for another's, whatever tables they are about."""
    with running(shop) as one, running(shop) as other, shop.beside() as neighbour:
        one.write("UPDATE shop.swaps SET a = 50 WHERE id = 1")
        other.write("INSERT INTO shop.fleeting VALUES (910, 1)")
        neighbour.exec_driver_sql("BEGIN; SELECT FROM shop.swaps WHERE id = 1 FOR UPDATE")
        thread = threading.Thread(target=one.undo)
        thread.start()
        until_undo_waits(shop, thread)
        with pytest.raises(HeliosError, match=r"waited for more than 0.2 s, blocked by pid \d+ .*undo_runs"):
            other.undo(patience=0.2)
        neighbour.exec_driver_sql("COMMIT")
        thread.join()
        assert [("fleeting", "deleted", 1, "")] == other.undo()


def test_an_undo_that_could_not_see_what_others_commit_is_refused(shop: Shop) -> None:
    """A server that gives every transaction a snapshot of its own is told so, and nothing is done."""
    with undone(shop) as run:
        run.write("INSERT INTO shop.touched VALUES (706)")
        run.connection.exec_driver_sql("SET default_transaction_isolation TO 'repeatable read'")
        with pytest.raises(HeliosError, match="an undo needs READ COMMITTED"):
            run.undo()
        run.connection.exec_driver_sql("RESET default_transaction_isolation")


def test_a_deadlock_is_tried_again(shop: Shop) -> None:
    """An undo that PostgreSQL chose as the victim of a deadlock is done once more; here a trigger says it did."""
    run_sql(
        shop.owner,
        "CREATE SEQUENCE shop.victims",
        """CREATE FUNCTION shop.choose() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
               IF current_setting('helios.undoing', true) <> '' AND nextval('shop.victims') < 3 THEN
                   RAISE deadlock_detected;
               END IF;
               RETURN OLD;
           END $$""",
        "CREATE TRIGGER choose BEFORE DELETE ON shop.klines FOR EACH ROW EXECUTE FUNCTION shop.choose()",
    )
    try:
        with undone(shop) as run:
            run.write("INSERT INTO shop.klines VALUES (1, '2032-01-01')")
        assert [(3,)] == shop.rows("SELECT last_value FROM shop.victims")
    finally:
        run_sql(shop.owner, "DROP FUNCTION shop.choose() CASCADE", "DROP SEQUENCE shop.victims")


def test_the_undo_s_own_transactions_are_known(shop: Shop) -> None:
    """Who looks for unattributed changes can tell the run's transactions, and the undo's, from others'."""
    with running(shop) as run:
        run.write("UPDATE shop.swaps SET a = 50 WHERE id = 1")
        written = shop.rows("SELECT xmin::text::bigint FROM shop.swaps WHERE id = 1")[0][0]
        run.undo()
        restored = shop.rows("SELECT xmin::text::bigint FROM shop.swaps WHERE id = 1")[0][0]
        known = {each % 2**32 for each in undo.transactions(run.connection, run.id, schema=SCHEMA)}
        assert {written, restored} <= known


@pytest.mark.parametrize("turn", range(1, 5))
def test_a_run_that_ends_while_it_is_looked_for_is_met(shop: Shop, turn: int) -> None:
    """At work or ended since the mark, whichever of the statements that ask for it the end comes between."""
    with running(shop) as run, shop.kit() as connection:
        undo.begin(connection, 903, schema=SCHEMA)
        mark, asked = run.mark(), []

        def end(*_: object) -> None:
            asked.append(turn)
            if len(asked) == turn:
                undo.undo(connection, [903], schema=SCHEMA)
                undo.close(connection, 903, schema=SCHEMA)

        event.listen(run.connection, "after_cursor_execute", end)
        assert undo.beside(run.connection, run.id, mark, schema=SCHEMA)
        event.remove(run.connection, "after_cursor_execute", end)
