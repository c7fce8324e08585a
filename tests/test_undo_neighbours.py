"""What belongs to others stays: rows they changed, what hangs on a test's row; and runs that overlap or die."""

from concurrent.futures import ThreadPoolExecutor

import psycopg2
import pytest
from undoing import Place, scenes

from helios.errors import HeliosError
from helios.schema.preparation import open_runs
from helios.testing import undo


@pytest.fixture(scope="module")
def place(cluster):
    with scenes(cluster) as made:
        yield made


def kept(changes):
    return {(each.table.removeprefix("scenes."), each.count, each.why) for each in changes if each.what == "kept"}


def done(changes):
    return {(each.table.removeprefix("scenes."), each.what, each.count) for each in changes}


def test_children_of_a_neighbour_keep_their_parent(place: Place):
    """CASCADE, SET NULL and NO ACTION: neither deleted nor changed; the rest is undone, and later what was kept."""
    before = place.digest()
    with place.run() as run, place.neighbour() as neighbour:
        run.write(
            "INSERT INTO markets (id, symbol) VALUES (900, 'T0'), (901, 'T1'), (902, 'T2'), (903, 'T3')",
            "INSERT INTO bids (client, market_id) VALUES ('t1', 901), ('t2', 903)",
            "INSERT INTO shy VALUES (500, 1)",
            "UPDATE markets SET v = 5 WHERE id < 5",
        )
        neighbour.execute("INSERT INTO bids (client, market_id) VALUES ('nb', 900)")
        neighbour.execute("INSERT INTO hints VALUES (900, 902)")
        neighbour.execute("INSERT INTO books SELECT 900, id FROM bids WHERE client = 't1'")
        hanging = """SELECT 'b', client, market_id FROM bids WHERE client IN ('nb', 't1')
                     UNION ALL SELECT 'h', id::text, market_id FROM hints WHERE id = 900
                     UNION ALL SELECT 'k', id::text, bid_id FROM books WHERE id = 900 ORDER BY 1, 2"""
        theirs = place.rows(hanging)
        assert {
            ("markets", 2, "referenced from scenes.bids"),
            ("markets", 1, "referenced from scenes.hints"),
            ("bids", 1, "referenced from scenes.books"),
        } == kept(run.undo())
        assert theirs == place.rows(hanging)
        assert [(900,), (901,), (902,)] == place.rows("SELECT id FROM markets WHERE id >= 900 ORDER BY 1")
        assert [] == place.rows("SELECT 1 FROM shy WHERE id = 500 UNION ALL SELECT 1 FROM markets WHERE v <> 0")
        assert [] == run.undo()
        neighbour.execute("DELETE FROM books WHERE id = 900")
        neighbour.execute("DELETE FROM hints WHERE id = 900")
        neighbour.execute("DELETE FROM bids WHERE client = 'nb'")
        assert {("markets", "deleted", 3), ("bids", "deleted", 1)} == done(run.undo())
    assert before == place.digest()


def test_what_a_neighbour_changed_stays(place: Place):
    """A row changed, put in the place of one deleted, deleted, or standing where one has to return: theirs."""
    before = place.digest()
    with place.run() as run, place.neighbour() as neighbour:
        run.write(
            "UPDATE swaps SET a = 100 WHERE id IN (1, 2, 3)",
            "DELETE FROM swaps WHERE id IN (4, 5)",
            "UPDATE swaps SET a = 44 WHERE id = 6",
            "INSERT INTO swaps VALUES (300, 'n', 300, 1), (301, 'm', 301, 1)",
        )
        for each in (
            "UPDATE swaps SET b = 77 WHERE id = 1",
            "INSERT INTO swaps VALUES (4, 'nb4', 4, 4)",
            "DELETE FROM swaps WHERE id = 6",
            "UPDATE swaps SET b = 9 WHERE id = 300",
            "INSERT INTO swaps VALUES (700, 'k5', 700, 0)",
        ):
            neighbour.execute(each)
        theirs = place.rows("SELECT * FROM swaps WHERE id IN (1, 4, 6, 300, 700) ORDER BY id")
        assert {
            ("swaps", 3, "changed by somebody else"),
            ("swaps", 1, "deleted by somebody else"),
            ("swaps", 1, "its unique value (k) is taken"),
        } == kept(run.undo())
        assert theirs == place.rows("SELECT * FROM swaps WHERE id IN (1, 4, 6, 300, 700) ORDER BY id")
        assert [(2, 2), (3, 3)] == place.rows("SELECT id, a FROM swaps WHERE id IN (2, 3, 301) ORDER BY id")
        assert [] == run.undo()
        neighbour.execute("DELETE FROM swaps WHERE id IN (4, 700)")
        assert [("swaps", "restored", 2)] == [
            (each.table.removeprefix("scenes."), each.what, each.count) for each in run.undo()
        ]
        neighbour.execute("DELETE FROM swaps WHERE id = 300")
        neighbour.execute("INSERT INTO swaps VALUES (6, 'k6', 6, 6)")
        neighbour.execute("UPDATE swaps SET a = 1, b = 1 WHERE id = 1")
    assert before == place.digest()


def test_a_neighbour_between_two_writes(place: Place):
    """What the neighbour wrote in between is what to go back to, not what was there before."""
    with place.run() as run, place.neighbour() as neighbour:
        run.write("UPDATE swaps SET a = 50 WHERE id = 1")
        neighbour.execute("UPDATE swaps SET b = 51 WHERE id = 1")
        run.write("UPDATE swaps SET a = 60 WHERE id = 1")
        run.undo()
        assert [(50, 51)] == place.rows("SELECT a, b FROM swaps WHERE id = 1")
        neighbour.execute("UPDATE swaps SET a = 1, b = 1 WHERE id = 1")


def test_unique_values_above_children_are_refused_loudly(place: Place):
    """Rows that changed places, with children that would go with them: kept and told, the log kept, the rest undone."""
    with place.run() as run, place.neighbour() as neighbour:
        run.write(
            "INSERT INTO roots VALUES (50, 'p50')",
            "UPDATE roots SET k = 'tmp' WHERE id = 1",
            "UPDATE roots SET k = 'p1' WHERE id = 2",
            "UPDATE roots SET k = 'p2' WHERE id = 1",
            "UPDATE swaps SET a = -1",
        )
        assert {("roots", 2, "its unique value (k) is taken")} == kept(run.undo())
        assert [(5,)] == place.rows("SELECT count(*) FROM leaves")
        assert [(0,)] == place.rows("SELECT count(*) FROM swaps WHERE a < 0")
        assert 0 < place.entries()
        for each in ("k = 'tmp' WHERE id = 1", "k = 'p2' WHERE id = 2", "k = 'p1' WHERE id = 1"):
            neighbour.execute(f"UPDATE roots SET {each}")
        assert [] == run.undo()


def test_two_runs_on_the_same_rows(place: Place):
    """The first to be undone leaves what both wrote to the other; in the end all is as it was."""
    before = place.digest()
    with place.direct() as connection:
        with place.run() as one:
            other = type(one)(place, connection)
            undo.begin(connection, other.id)
            one.write("UPDATE swaps SET a = 11 WHERE id = 1", "INSERT INTO shy VALUES (700, 1)")
            one.write("INSERT INTO markets (id, symbol) VALUES (950, 'S')", "UPDATE swaps SET b = 99 WHERE id = 2")
            other.write("UPDATE swaps SET a = 12 WHERE id = 1", "UPDATE shy SET v = 1 WHERE id = 700")
            other.write("INSERT INTO bids (client, market_id) VALUES ('r2', 950)")
            one.undo()
            assert [(12,)] == place.rows("SELECT a FROM swaps WHERE id = 1")
            assert [(2,)] == place.rows("SELECT b FROM swaps WHERE id = 2")
            other.end()
    assert before == place.digest()


def test_a_dead_run_beside_a_living_one(place: Place):
    """Its lease is free, so whoever sweeps undoes it; the living one's rows stay until it undoes them itself."""
    before = place.digest()
    with place.run() as living:
        with place.direct() as connection:
            dying = type(living)(place, connection)
            undo.begin(connection, dying.id)
            dying.write("UPDATE swaps SET a = 11 WHERE id = 1", "DELETE FROM parts WHERE n = 1")
            living.write("UPDATE swaps SET a = 12 WHERE id = 1", "INSERT INTO shy VALUES (701, 1)")
            assert [] == undo.dead(place.connection)
            with pytest.raises(HeliosError, match=f"test run {dying.id} is alive in another session"):
                undo.undo(place.connection, [dying.id])
        assert [dying.id] == undo.dead(place.connection)
        undo.undo(place.connection, [dying.id])
        undo.close(place.connection, dying.id)
        assert [] == undo.dead(place.connection)
        assert [(12, 1)] == place.rows("SELECT a, (SELECT v FROM shy WHERE id = 701) FROM swaps WHERE id = 1")
        with pytest.raises(
            psycopg2.Error, match=r"is over, or did not begin here: a write to scenes\.swaps is refused"
        ):
            dying.write("UPDATE swaps SET a = 13 WHERE id = 1")
        dying.writer.close()
    assert before == place.digest()


def test_a_version_of_a_run_that_is_over(place: Place):
    """What a run had to leave, and another found and changed, goes back to what was there before both."""
    before = place.digest()
    with place.direct() as connection, place.run() as one, place.neighbour() as neighbour:
        other = type(one)(place, connection)
        undo.begin(connection, other.id)
        one.write("INSERT INTO markets (id, symbol, v) VALUES (960, 'T', 1)", "UPDATE swaps SET a = 11 WHERE id = 1")
        neighbour.execute("INSERT INTO bids (client, market_id) VALUES ('n', 960)")
        assert {("markets", 1, "referenced from scenes.bids")} == kept(undo.undo(place.connection, [one.id]))
        other.write("UPDATE markets SET v = 2 WHERE id = 960")
        other.undo()
        neighbour.execute("DELETE FROM bids WHERE client = 'n'")
        undo.undo(place.connection, [one.id])
        other.end()
    assert before == place.digest()


def test_what_neighbours_changed_behind_a_run_that_is_over(place: Place):
    """A row that it had to leave, and that another found and had to leave as well: told, and no failure."""
    before = place.digest()
    with place.direct() as connection, place.run() as one, place.neighbour() as neighbour:
        other = type(one)(place, connection)
        undo.begin(connection, other.id)
        for run, number in ((one, 911), (other, 912)):
            run.write(f"UPDATE swaps SET a = {number} WHERE id = 1")
            neighbour.execute(f"UPDATE swaps SET b = {number} WHERE id = 1")
            assert {("swaps", 1, "changed by somebody else")} == kept(undo.undo(run.connection, [run.id]))
        assert [] == open_runs(place.connection, place.schema)  # migrations need not wait for what has to stay
        assert [(912, 912)] == place.rows("SELECT a, b FROM swaps WHERE id = 1")
        neighbour.execute("UPDATE swaps SET a = 911, b = 911 WHERE id = 1")
        other.end()
        neighbour.execute("UPDATE swaps SET a = 1, b = 1 WHERE id = 1")
    assert before == place.digest()


def test_what_an_undo_restored_is_handed_over_too(place: Place):
    """A version between two tests of a run that is over is no state to go back to for a run that found it."""
    before = place.digest()
    with place.direct() as connection, place.run() as one:
        other = type(one)(place, connection)
        undo.begin(connection, other.id)
        one.write("UPDATE swaps SET a = 11 WHERE id = 1")
        middle = one.mark()
        one.write("UPDATE swaps SET a = 12 WHERE id = 1")
        one.undo(middle)
        other.write("UPDATE swaps SET a = 13 WHERE id = 1")
        undo.undo(place.connection, [one.id])
        undo.close(place.connection, one.id)
        assert [(13,)] == place.rows("SELECT a FROM swaps WHERE id = 1")
        other.end()
    assert before == place.digest()


def test_a_run_that_writes_while_another_is_undone(place: Place):
    """It commits after the undo has looked at what both touched: it counts as a run's, not as a neighbour's."""
    before = place.digest()
    with place.direct() as connection, place.run() as one, place.direct() as between:
        other = type(one)(place, connection)
        undo.begin(connection, other.id)
        one.write("UPDATE swaps SET a = 10 WHERE id = 1", "UPDATE swaps SET a = 11 WHERE id = 1")
        (plan,) = place.rows("SELECT plan FROM scenes_undo._tables WHERE name = 'scenes.swaps'")[0]
        between.exec_driver_sql(f"BEGIN; LOCK TABLE {plan}")  # between what it looks at and what it plans
        with ThreadPoolExecutor() as beside:
            undone = beside.submit(one.undo)
            waiting = f"SELECT 1 FROM pg_locks WHERE NOT granted AND relation = '{plan}'::regclass"
            while not between.exec_driver_sql(waiting).all():
                assert not undone.done()
            other.write("UPDATE swaps SET a = 12 WHERE id = 1")
            between.exec_driver_sql("COMMIT")
            assert set() == kept(undone.result())
        other.end()
    assert before == place.digest()


def test_another_process_of_the_run(place: Place):
    """Whoever connects with the label belongs to the run; who connects without it does not."""
    with place.unchanged() as run:
        other = place.connect(run.id)
        other.cursor().execute("UPDATE swaps SET a = 100 WHERE id = 1")
        other.close()


def test_an_open_transaction_is_named(place: Place):
    """With its pid and its last statement, after a time; then the undo can be done."""
    with place.unchanged() as run:
        run.write("BEGIN", "UPDATE swaps SET a = 100 WHERE id = 1")
        expected = f"waited for more than 1 s, blocked by pid {run.writer.info.backend_pid} .*UPDATE swaps SET a = 100"
        with pytest.raises(HeliosError, match=expected):
            undo.undo(place.connection, [run.id], patience=1)
        with pytest.raises(HeliosError, match=expected):
            undo.mark(place.connection, run.id, patience=1)
        run.write("COMMIT")


def test_a_neighbour_in_the_way_is_named(place: Place):
    """Somebody without a label holds a row that is to be restored."""
    with place.unchanged() as run, place.neighbour() as neighbour:
        run.write("UPDATE swaps SET a = 100 WHERE id = 1")
        neighbour.execute("BEGIN; SELECT FROM swaps WHERE id = 1 FOR UPDATE")
        with pytest.raises(HeliosError, match=r"blocked by pid \d+ .*FOR UPDATE"):
            undo.undo(place.connection, [run.id], patience=1)
        neighbour.execute("ROLLBACK")


def test_a_prepared_transaction_in_the_way_is_named(place: Place):
    """It has no pid, so its name is told."""
    with place.unchanged() as run:
        run.write("BEGIN; UPDATE swaps SET a = 100 WHERE id = 1; PREPARE TRANSACTION 'left prepared'")
        try:
            with pytest.raises(HeliosError, match=r"blocked by a prepared transaction, .*'left prepared'"):
                undo.undo(place.connection, [run.id], patience=1)
        finally:
            run.write("COMMIT PREPARED 'left prepared'")


def test_nobody_poses_as_an_undo(place: Place):
    """Who sets the undo's own setting is logged all the same, and its triggers do their work."""
    with place.unchanged() as run:
        run.write("SET helios.undoing = 'on'", "UPDATE audited SET v = v + 1", "INSERT INTO echo VALUES (900)")
        assert [(1,)] == place.rows("SELECT seen FROM echo WHERE id = 900")
        assert [(10,)] == place.rows("SELECT count(*) FROM history")
    with place.neighbour() as neighbour:
        neighbour.execute("BEGIN; SET helios.undoing = 'on'; UPDATE audited SET v = v + 1")
        neighbour.execute("SELECT count(*) FROM history")
        assert 10 == neighbour.fetchone()[0]
        neighbour.execute("ROLLBACK")


def test_a_run_that_is_let_stand(place: Place):
    """What it wrote stays for good, and its log is empty."""
    before = place.digest()
    with place.run() as run:
        run.write("INSERT INTO kinds VALUES ('stays')")
        undo.forget(place.connection, run.id)
    with place.neighbour() as neighbour:
        neighbour.execute("DELETE FROM kinds WHERE k = 'stays'")
    assert before == place.digest()


def test_the_undo_is_known_to_the_audit(place: Place):
    """Its transactions are listed, so that what it restored is nobody's unattributed change."""
    with place.run() as run:
        run.write("UPDATE swaps SET a = 100 WHERE id = 1")
        run.undo()
        known = undo.transactions(place.connection, run.id)
        assert [True] == [row[0] in known for row in place.rows("SELECT xmin::text::bigint FROM swaps WHERE id = 1")]
