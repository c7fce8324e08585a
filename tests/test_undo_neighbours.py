"""What belongs to others stays: rows they changed, and what hangs on a test's row, above it or below."""

from collections.abc import Iterator

import pytest
from sqlalchemy import URL
from undo_shop import Shop, running, shop_of, undone


@pytest.fixture(scope="module")
def shop(cluster: URL) -> Iterator[Shop]:
    with shop_of(cluster) as shop:
        yield shop


def test_children_of_a_neighbour_keep_their_parent(shop: Shop) -> None:
    """CASCADE, SET NULL and NO ACTION: neither deleted nor changed; the rest is undone, and later what was kept."""
    before = shop.digest()
    hanging = """SELECT 'o', client_id, instrument_id FROM shop.orders WHERE client_id IN ('nb', 't1')
                 UNION ALL SELECT 's', id::text, instrument_id FROM shop.signals WHERE id = 900
                 UNION ALL SELECT 'b', id::text, order_id FROM shop.books WHERE id = 900 ORDER BY 1, 2"""
    with running(shop) as run, shop.beside() as neighbour:
        run.write(
            "INSERT INTO shop.instruments (id, symbol) VALUES (900, 'T0'), (901, 'T1'), (902, 'T2'), (903, 'T3')",
            "INSERT INTO shop.orders (client_id, instrument_id) VALUES ('t1', 901), ('t2', 903)",
            "INSERT INTO shop.fleeting VALUES (500, 1)",
            "UPDATE shop.instruments SET v = 5 WHERE id < 5",
        )
        neighbour.exec_driver_sql("INSERT INTO shop.orders (client_id, instrument_id) VALUES ('nb', 900)")
        neighbour.exec_driver_sql("INSERT INTO shop.signals VALUES (900, 902)")
        neighbour.exec_driver_sql("INSERT INTO shop.books SELECT 900, id FROM shop.orders WHERE client_id = 't1'")
        theirs = shop.rows(hanging)
        assert [
            ("fleeting", "deleted", 1, ""),
            ("instruments", "deleted", 1, ""),
            ("instruments", "kept", 1, "referenced from shop.signals"),
            ("instruments", "kept", 2, "referenced from shop.orders"),
            ("instruments", "restored", 4, ""),
            ("orders", "deleted", 1, ""),
            ("orders", "kept", 1, "referenced from shop.books"),
        ] == run.undo()
        assert theirs == shop.rows(hanging)
        assert [(900,), (901,), (902,)] == shop.rows("SELECT id FROM shop.instruments WHERE id >= 900 ORDER BY 1")
        assert [] == run.undo()
        neighbour.exec_driver_sql("DELETE FROM shop.books WHERE id = 900")
        neighbour.exec_driver_sql("DELETE FROM shop.signals WHERE id = 900")
        neighbour.exec_driver_sql("DELETE FROM shop.orders WHERE client_id = 'nb'")
        assert [("instruments", "deleted", 3, ""), ("orders", "deleted", 1, "")] == run.undo()
    assert before == shop.digest()
    assert 0 == shop.logged()


def test_what_a_neighbour_changed_stays(shop: Shop) -> None:
    """A row changed, put in the place of one deleted, deleted, or standing where one has to return: theirs."""
    before = shop.digest()
    with running(shop) as run, shop.beside() as neighbour:
        run.write(
            "UPDATE shop.swaps SET a = 100 WHERE id IN (1, 2, 3)",
            "DELETE FROM shop.swaps WHERE id IN (4, 5)",
            "UPDATE shop.swaps SET a = 44 WHERE id = 6",
            "INSERT INTO shop.swaps VALUES (300, 'n', 300, 1), (301, 'm', 301, 1)",
        )
        for each in (
            "UPDATE shop.swaps SET b = 77 WHERE id = 1",
            "INSERT INTO shop.swaps VALUES (4, 'nb4', 4, 4)",
            "DELETE FROM shop.swaps WHERE id = 6",
            "UPDATE shop.swaps SET b = 9 WHERE id = 300",
            "INSERT INTO shop.swaps VALUES (700, 'k5', 700, 0)",
        ):
            neighbour.exec_driver_sql(each)
        theirs = shop.rows("SELECT * FROM shop.swaps WHERE id IN (1, 4, 6, 300, 700) ORDER BY id")
        assert [
            ("swaps", "deleted", 1, ""),
            ("swaps", "kept", 1, "deleted by somebody else"),
            ("swaps", "kept", 1, "its unique value (k) is taken"),
            ("swaps", "kept", 3, "changed by somebody else"),
            ("swaps", "restored", 2, ""),
        ] == run.undo()
        assert theirs == shop.rows("SELECT * FROM shop.swaps WHERE id IN (1, 4, 6, 300, 700) ORDER BY id")
        assert [(2, 2), (3, 3)] == shop.rows("SELECT id, a FROM shop.swaps WHERE id IN (2, 3, 301) ORDER BY id")
        assert [] == run.undo()
        neighbour.exec_driver_sql("DELETE FROM shop.swaps WHERE id IN (4, 700)")
        assert [("swaps", "restored", 2, "")] == run.undo()
        neighbour.exec_driver_sql("DELETE FROM shop.swaps WHERE id = 300")
        neighbour.exec_driver_sql("INSERT INTO shop.swaps VALUES (6, 'k6', 6, 6)")
        neighbour.exec_driver_sql("UPDATE shop.swaps SET a = 1, b = 1 WHERE id = 1")
    assert before == shop.digest()
    assert 0 == shop.logged()


def test_a_neighbour_between_two_writes(shop: Shop) -> None:
    """What the neighbour wrote in between is what to go back to, not what was there before."""
    with running(shop) as run, shop.beside() as neighbour:
        run.write("UPDATE shop.swaps SET a = 50 WHERE id = 1")
        neighbour.exec_driver_sql("UPDATE shop.swaps SET b = 51 WHERE id = 1")
        run.write("UPDATE shop.swaps SET a = 60 WHERE id = 1")
        run.undo()
        assert [(50, 51)] == shop.rows("SELECT a, b FROM shop.swaps WHERE id = 1")
        neighbour.exec_driver_sql("UPDATE shop.swaps SET a = 1, b = 1 WHERE id = 1")


@pytest.mark.parametrize("others", [0, 2000], ids=["a row", "many rows"])
@pytest.mark.parametrize(
    "writes",
    [
        ["UPDATE shop.swaps SET a = 12 WHERE id IN (1, 2)"],
        ["UPDATE shop.swaps SET a = 12 WHERE id IN (1, 2)", "UPDATE shop.swaps SET a = 13 WHERE id IN (1, 2)"],
        ["DELETE FROM shop.swaps WHERE id IN (1, 2)"],
        ["DELETE FROM shop.swaps WHERE id IN (1, 2)", "INSERT INTO shop.swaps VALUES (1, 'new', -1, 1)"],
    ],
    ids=["updated", "updated twice", "deleted", "inserted again"],
)
def test_a_neighbour_between_two_tests(shop: Shop, writes: list[str], others: int) -> None:
    """What a test found and put back is the neighbour's: the undo of the whole run does not go behind it."""
    before = shop.digest()
    with running(shop) as run, shop.beside() as neighbour:
        run.write("UPDATE shop.swaps SET a = 11 WHERE id IN (1, 2)")
        neighbour.exec_driver_sql("UPDATE shop.swaps SET b = 51 WHERE id = 1")
        mark = run.mark()
        for number in (52, 53):
            for _ in range(2):
                run.write(
                    *writes, f"INSERT INTO shop.swaps SELECT n, n, n, n FROM generate_series(1001, {1000 + others}) n"
                )
                run.undo(mark)
                assert [(11, number - 1), (11, 2)] == shop.rows("SELECT a, b FROM shop.swaps WHERE id < 3 ORDER BY id")
            neighbour.exec_driver_sql(f"UPDATE shop.swaps SET b = {number} WHERE id = 1")
            again = run.mark()
            run.write(*writes)
            run.undo(again)
        run.undo()
        assert [(11, 53), (2, 2)] == shop.rows("SELECT a, b FROM shop.swaps WHERE id < 3 ORDER BY id")
        neighbour.exec_driver_sql("UPDATE shop.swaps SET a = 1, b = 1 WHERE id = 1")
    assert before == shop.digest()
    assert 0 == shop.logged()


def test_a_neighbour_who_deletes_between_two_tests(shop: Shop) -> None:
    """A row that a test found as the neighbour's, deleted and put back, and that the neighbour deletes, stays away."""
    before = shop.digest()
    with running(shop) as run, shop.beside() as neighbour:
        run.write("UPDATE shop.swaps SET a = 11 WHERE id = 1")
        neighbour.exec_driver_sql("UPDATE shop.swaps SET b = 51 WHERE id = 1")
        mark = run.mark()
        run.write("DELETE FROM shop.swaps WHERE id = 1")
        run.undo(mark)
        neighbour.exec_driver_sql("DELETE FROM shop.swaps WHERE id = 1")
        assert [("swaps", "kept", 1, "deleted by somebody else")] == run.undo()
        neighbour.exec_driver_sql("INSERT INTO shop.swaps VALUES (1, 'k1', 11, 51)")
        assert [] == run.undo()
        neighbour.exec_driver_sql("UPDATE shop.swaps SET a = 1, b = 1 WHERE id = 1")
    assert before == shop.digest()
    assert 0 == shop.logged()


def test_unique_values_above_children_are_refused_loudly(shop: Shop) -> None:
    """Rows that changed places, with children that would go with them: kept and told, the log kept, the rest undone."""
    with running(shop) as run, shop.beside() as neighbour:
        run.write(
            "INSERT INTO shop.parents VALUES (50, 'p50')",
            "UPDATE shop.parents SET k = 'tmp' WHERE id = 1",
            "UPDATE shop.parents SET k = 'p1' WHERE id = 2",
            "UPDATE shop.parents SET k = 'p2' WHERE id = 1",
            "UPDATE shop.swaps SET a = -1",
        )
        assert ("parents", "kept", 2, "its unique value (k) is taken") in run.undo()
        assert [(5, 0)] == shop.rows(
            "SELECT (SELECT count(*) FROM shop.children), (SELECT count(*) FROM shop.swaps WHERE a < 0)"
        )
        assert 0 < shop.logged()
        for each in ("k = 'tmp' WHERE id = 1", "k = 'p2' WHERE id = 2", "k = 'p1' WHERE id = 1"):
            neighbour.exec_driver_sql(f"UPDATE shop.parents SET {each}")
        assert [] == run.undo()


def test_nobody_poses_as_an_undo(shop: Shop) -> None:
    """Who sets the undo's own setting is logged all the same, and its triggers do their work."""
    with undone(shop) as run:
        run.write(
            "SET helios.undoing = 'on'", "UPDATE shop.audited SET v = v + 1", "INSERT INTO shop.touched VALUES (900)"
        )
        assert [(1,)] == shop.rows("SELECT touches FROM shop.touched WHERE id = 900")
        assert [(20,)] == shop.rows("SELECT count(*) FROM shop.history")
    with shop.beside() as neighbour:
        neighbour.exec_driver_sql("BEGIN; SET helios.undoing = 'on'; UPDATE shop.audited SET v = v + 1")
        assert 20 == neighbour.exec_driver_sql("SELECT count(*) FROM shop.history").scalar()
        neighbour.exec_driver_sql("ROLLBACK")
