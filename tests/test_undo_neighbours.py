"""What belongs to somebody else stays as it is: kept, told with the reason, and the rest undone."""

from collections.abc import Iterator

import pytest
from sqlalchemy import URL
from undo_shop import Shop, running, shop_of

HANGING = """
    SELECT 'order', client_id, instrument_id FROM shop.orders WHERE client_id IN ('neighbour', 't1')
    UNION ALL SELECT 'signal', id::text, instrument_id FROM shop.signals WHERE id = 900
    UNION ALL SELECT 'book', id::text, order_id FROM shop.books WHERE id = 900 ORDER BY 1, 2
"""


@pytest.fixture(scope="module")
def shop(cluster: URL) -> Iterator[Shop]:
    with shop_of(cluster) as shop:
        yield shop


def test_a_neighbour_s_children_keep_their_parents(shop: Shop) -> None:
    """CASCADE, SET NULL, NO ACTION: no child goes or changes, its parent stays; the rest is undone, later that too."""
    before = shop.digest()
    with running(shop) as run, shop.beside() as neighbour:
        run.write(
            "INSERT INTO shop.instruments (id, symbol) VALUES (900, 'T0'), (901, 'T1'), (902, 'T2'), (903, 'T3')",
            "UPDATE shop.instruments SET v = 5 WHERE id < 5",
            "INSERT INTO shop.orders (client_id, instrument_id) VALUES ('t1', 901), ('t2', 902)",
            "INSERT INTO shop.touched VALUES (500)",
        )
        neighbour.exec_driver_sql("INSERT INTO shop.orders (client_id, instrument_id) VALUES ('neighbour', 900)")
        neighbour.exec_driver_sql("INSERT INTO shop.signals VALUES (900, 902)")
        neighbour.exec_driver_sql("INSERT INTO shop.books SELECT 900, id FROM shop.orders WHERE client_id = 't1'")
        theirs = shop.rows(HANGING)
        assert [
            ("instruments", "deleted", 1, ""),
            ("instruments", "kept", 1, "referenced from shop.signals"),
            ("instruments", "kept", 2, "referenced from shop.orders"),
            ("instruments", "restored", 4, ""),
            ("orders", "deleted", 1, ""),
            ("orders", "kept", 1, "referenced from shop.books"),
            ("touched", "deleted", 1, ""),
        ] == run.undo()
        assert theirs == shop.rows(HANGING)
        assert [(900,), (901,), (902,)] == shop.rows("SELECT id FROM shop.instruments WHERE id >= 900 ORDER BY 1")
        assert [] == run.undo(), "it is told once"
        neighbour.exec_driver_sql("DELETE FROM shop.books WHERE id = 900")
        neighbour.exec_driver_sql("DELETE FROM shop.signals WHERE id = 900")
        neighbour.exec_driver_sql("DELETE FROM shop.orders WHERE client_id = 'neighbour'")
        assert [("instruments", "deleted", 3, ""), ("orders", "deleted", 1, "")] == run.undo()
    assert before == shop.digest()
    assert 0 == shop.logged()


def test_a_neighbour_s_child_of_a_row_that_was_only_inserted(shop: Shop) -> None:
    """Where a test only inserted, no cascade of the short way takes a neighbour's rows along either."""
    for child in ("orders (client_id, instrument_id) VALUES ('n', 910)", "signals VALUES (910, 910)"):
        with running(shop) as run, shop.beside() as neighbour:
            run.write("INSERT INTO shop.instruments (id, symbol) VALUES (910, 'T0'), (911, 'T1')")
            neighbour.exec_driver_sql(f"INSERT INTO shop.{child}")
            assert ("instruments", "kept", 1, f"referenced from shop.{child.split(' ')[0]}") in run.undo()
            assert [(910,)] == shop.rows("SELECT id FROM shop.instruments WHERE id >= 900")
            assert [(910,)] == shop.rows(
                "SELECT instrument_id FROM shop.orders WHERE client_id = 'n' "
                "UNION ALL SELECT instrument_id FROM shop.signals WHERE id = 910"
            )
            neighbour.exec_driver_sql("DELETE FROM shop.orders WHERE client_id = 'n'")
            neighbour.exec_driver_sql("DELETE FROM shop.signals WHERE id = 910")


def test_a_neighbour_s_reference_to_a_unique_value(shop: Shop) -> None:
    """A row that a neighbour refers to by a value that the test gave it keeps that value."""
    with running(shop) as run, shop.beside() as neighbour:
        run.write("UPDATE shop.codes SET code = 'ours' WHERE id = 9")
        neighbour.exec_driver_sql("INSERT INTO shop.uses VALUES (90, 'ours')")
        assert [("codes", "kept", 1, "referenced from shop.uses")] == run.undo()
        assert [("ours",)] == shop.rows("SELECT code FROM shop.uses WHERE id = 90")
        neighbour.exec_driver_sql("DELETE FROM shop.uses WHERE id = 90")
        assert [("codes", "restored", 1, "")] == run.undo()


def test_an_image_whose_parent_a_neighbour_deleted(shop: Shop) -> None:
    """A deleted row cannot return below a parent that is gone; its image stays in the log until it can."""
    with running(shop) as run, shop.beside() as neighbour:
        run.write("DELETE FROM shop.children WHERE id = 5")
        neighbour.exec_driver_sql("DELETE FROM shop.parents WHERE id = 5")
        assert [("children", "kept", 1, "its row in shop.parents is gone")] == run.undo()
        neighbour.exec_driver_sql("INSERT INTO shop.parents VALUES (5, 'p5')")
        assert [("children", "restored", 1, "")] == run.undo()


def test_what_a_neighbour_changed_since_stays(shop: Shop) -> None:
    """A row changed, inserted in place of a deleted one, deleted, or standing where an image has to return: theirs."""
    before = shop.digest()
    mine = "SELECT * FROM shop.swaps WHERE id IN (1, 4, 6, 300, 700) ORDER BY id"
    with running(shop) as run, shop.beside() as neighbour:
        run.write(
            "UPDATE shop.swaps SET a = 100 WHERE id IN (1, 2, 3)",
            "DELETE FROM shop.swaps WHERE id IN (4, 5)",
            "UPDATE shop.swaps SET a = 44 WHERE id = 6",
            "INSERT INTO shop.swaps VALUES (300, 'n', 300, 1), (301, 'm', 301, 1)",
        )
        for change in (
            "UPDATE shop.swaps SET b = 77 WHERE id = 1",
            "INSERT INTO shop.swaps VALUES (4, 'nb4', 4, 4)",
            "DELETE FROM shop.swaps WHERE id = 6",
            "UPDATE shop.swaps SET b = 9 WHERE id = 300",
            "INSERT INTO shop.swaps VALUES (700, 'k5', 700, 0)",
        ):
            neighbour.exec_driver_sql(change)
        theirs = shop.rows(mine)
        assert [
            ("swaps", "deleted", 1, ""),
            ("swaps", "kept", 1, "deleted by somebody else"),
            ("swaps", "kept", 1, "its unique value (k) is taken"),
            ("swaps", "kept", 3, "changed by somebody else"),
            ("swaps", "restored", 2, ""),
        ] == run.undo()
        assert theirs == shop.rows(mine)
        assert [(2, 2), (3, 3)] == shop.rows("SELECT id, a FROM shop.swaps WHERE id IN (2, 3, 301) ORDER BY id")
        assert [("D", 4, 4), ("D", 5, 5), ("U", 1, 1), ("U", 6, 6)] == shop.rows(
            "SELECT helios_what::text, id, a FROM shop_undo.swaps WHERE helios_kept AND a IS NOT NULL ORDER BY 1, 2"
        )
        neighbour.exec_driver_sql("DELETE FROM shop.swaps WHERE id IN (4, 700)")
        assert [("swaps", "restored", 2, "")] == run.undo(), "their place is free again"
        neighbour.exec_driver_sql("DELETE FROM shop.swaps WHERE id = 300")
        neighbour.exec_driver_sql("INSERT INTO shop.swaps VALUES (6, 'k6', 6, 6)")
        neighbour.exec_driver_sql("UPDATE shop.swaps SET a = 1, b = 1 WHERE id = 1")
        assert [] == run.undo(), "somebody has put them back by hand"
    assert before == shop.digest()
    assert 0 == shop.logged()


def test_a_neighbour_s_change_between_two_of_the_test(shop: Shop) -> None:
    """What the neighbour wrote is the state to go back to, not the one before it."""
    with running(shop) as run, shop.beside() as neighbour:
        run.write("UPDATE shop.swaps SET a = 50 WHERE id = 1")
        neighbour.exec_driver_sql("UPDATE shop.swaps SET b = 51 WHERE id = 1")
        run.write("UPDATE shop.swaps SET a = 60 WHERE id = 1")
        assert [("swaps", "restored", 1, "")] == run.undo()
        assert [(50, 51)] == shop.rows("SELECT a, b FROM shop.swaps WHERE id = 1")
        neighbour.exec_driver_sql("UPDATE shop.swaps SET a = 1, b = 1 WHERE id = 1")


def test_a_swap_above_children_is_refused_loudly(shop: Shop) -> None:
    """Unique values swapped where children would go with a deletion: kept, told, the log kept, and the rest undone."""
    with running(shop) as run, shop.beside() as neighbour:
        run.write(
            "INSERT INTO shop.parents VALUES (50, 'p50')",
            "UPDATE shop.parents SET k = 'tmp' WHERE id = 1",
            "UPDATE shop.parents SET k = 'p1' WHERE id = 2",
            "UPDATE shop.parents SET k = 'p2' WHERE id = 1",
            "UPDATE shop.swaps SET a = -1",
        )
        changes = run.undo()
        assert ("parents", "kept", 2, "its unique value (k) is taken") in changes
        assert ("swaps", "restored", 20, "") in changes
        assert [(5, 10)] == shop.rows(
            "SELECT (SELECT count(*) FROM shop.children), (SELECT count(*) FROM shop.parents)"
        )
        assert [("p1",), ("p2",)] == shop.rows("SELECT DISTINCT k FROM shop_undo.parents WHERE k LIKE 'p_' ORDER BY 1")
        for key, id_ in (("tmp", 1), ("p2", 2), ("p1", 1)):
            neighbour.exec_driver_sql(f"UPDATE shop.parents SET k = '{key}' WHERE id = {id_}")
        assert [] == run.undo()


def test_a_writer_who_poses_as_an_undo(shop: Shop) -> None:
    """Setting what an undo sets neither hides a write from the log nor keeps the product's triggers from their work."""
    before = shop.digest()
    with running(shop) as run:
        run.write(
            "SET helios.undoing TO 'long'", "UPDATE shop.audited SET v = v + 1", "INSERT INTO shop.touched VALUES (900)"
        )
        assert [(20, 1)] == shop.rows(
            "SELECT (SELECT count(*) FROM shop.history), (SELECT touches FROM shop.touched WHERE id = 900)"
        )
        run.undo()
    with shop.beside() as neighbour:
        neighbour.exec_driver_sql("SET helios.undoing TO 'long'; UPDATE shop.audited SET v = 100 WHERE id = 1")
        assert [(1,)] == shop.rows("SELECT count(*) FROM shop.history")
        neighbour.exec_driver_sql("DELETE FROM shop.history; UPDATE shop.audited SET v = 1 WHERE id = 1")
        neighbour.exec_driver_sql("DELETE FROM shop.history")
    assert before == shop.digest()
