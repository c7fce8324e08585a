"""Rows that neighbours hang on a test's, or on which a test's hang: the short way, unique values, lost parents."""

import threading
from collections.abc import Iterator

import pytest
from sqlalchemy import URL
from sqlalchemy.exc import OperationalError
from undo_shop import Shop, running, shop_of, until_undo_waits


@pytest.fixture(scope="module")
def shop(cluster: URL) -> Iterator[Shop]:
    with shop_of(cluster) as shop:
        yield shop


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


@pytest.mark.parametrize("count", [3, 2000])
def test_a_neighbour_s_change_of_a_row_that_was_only_inserted(shop: Shop, count: int) -> None:
    """It stays, whether a few rows were inserted or so many that the short way deletes all that the run wrote."""
    with running(shop) as run, shop.beside() as neighbour:
        run.write(f"INSERT INTO shop.fleeting (id) SELECT generate_series(900, {899 + count})")
        neighbour.exec_driver_sql("UPDATE shop.fleeting SET v = 7 WHERE id = 901")
        told = [("fleeting", "deleted", count - 1, ""), ("fleeting", "kept", 1, "changed by somebody else")]
        assert told == run.undo()
        assert [(901, 7)] == shop.rows("SELECT id, v FROM shop.fleeting WHERE id >= 900")
        neighbour.exec_driver_sql("DELETE FROM shop.fleeting WHERE id = 901")


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


@pytest.mark.parametrize("change", ["SET instrument_id = NULL", "SET client_id = 'x', instrument_id = 1", None])
def test_a_neighbour_s_child_that_the_test_took_away(shop: Shop, change: str | None) -> None:
    """Hung elsewhere or deleted, it returns below the test's row, which is kept for it."""
    orders = "shop.orders WHERE qty = 910"
    with running(shop) as run, shop.beside() as neighbour:
        run.write("INSERT INTO shop.instruments (id, symbol) VALUES (910, 'T0')")
        neighbour.exec_driver_sql("INSERT INTO shop.orders (client_id, instrument_id, qty) VALUES ('n', 910, 910)")
        run.write(f"UPDATE shop.orders {change} WHERE qty = 910" if change else f"DELETE FROM {orders}")
        assert [("instruments", "kept", 1, "referenced from shop.orders"), ("orders", "restored", 1, "")] == run.undo()
        assert [("n", 910)] == shop.rows(f"SELECT client_id, instrument_id FROM {orders}")
        neighbour.exec_driver_sql(f"DELETE FROM {orders}")


def test_a_neighbour_s_child_that_the_test_changed(shop: Shop) -> None:
    """It goes back to what the neighbour wrote, below the test's row, which is kept for it."""
    with running(shop) as run, shop.beside() as neighbour:
        run.write("INSERT INTO shop.instruments (id, symbol) VALUES (910, 'T0')")
        neighbour.exec_driver_sql("INSERT INTO shop.orders (client_id, instrument_id) VALUES ('n', 910)")
        run.write(*(f"UPDATE shop.orders SET status = '{each}' WHERE client_id = 'n'" for each in "XY"), one=False)
        assert [("instruments", "kept", 1, "referenced from shop.orders"), ("orders", "restored", 1, "")] == run.undo()
        assert [("NEW", 910)] == shop.rows("SELECT status, instrument_id FROM shop.orders WHERE client_id = 'n'")
        neighbour.exec_driver_sql("DELETE FROM shop.orders WHERE client_id = 'n'")


@pytest.mark.parametrize("more", ["", "UPDATE shop.orders SET qty = 2 WHERE client_id = 'mine'"], ids=["short", "long"])
def test_a_neighbour_s_child_by_a_foreign_key_that_is_checked_late(shop: Shop, more: str) -> None:
    """A deferred foreign key is asked in time, whichever way is gone: the row is kept, and the undo does not fail."""
    with running(shop) as run, shop.beside() as neighbour:
        run.write("INSERT INTO shop.orders (client_id) VALUES ('mine')", *filter(None, [more]))
        neighbour.exec_driver_sql("INSERT INTO shop.books SELECT 910, id FROM shop.orders WHERE client_id = 'mine'")
        assert [("orders", "kept", 1, "referenced from shop.books")] == run.undo()
        neighbour.exec_driver_sql("DELETE FROM shop.books WHERE id = 910")
        assert [("orders", "deleted", 1, "")] == run.undo()


def test_an_identity_column_above_children(shop: Shop) -> None:
    """It cannot be set back without the row being deleted: kept where a child forbids that, restored elsewhere."""
    why = "its identity column cannot be set back while other rows refer to it"
    with running(shop) as run, shop.beside() as neighbour:
        run.write("UPDATE shop.numbered SET n = DEFAULT")
        assert [("numbered", "kept", 1, why), ("numbered", "restored", 1, "")] == run.undo()
        neighbour.exec_driver_sql("DELETE FROM shop.below")
        assert [("numbered", "restored", 1, "")] == run.undo()
        neighbour.exec_driver_sql("INSERT INTO shop.below VALUES (1, 1)")
    assert [(1, 1), (2, 2)] == shop.rows("SELECT * FROM shop.numbered ORDER BY id")


def test_an_identity_column_that_can_be_written_above_children(shop: Shop) -> None:
    """It is set back as any other column."""
    with running(shop) as run:
        run.write("UPDATE shop.parents SET n = n + 100", "UPDATE shop.parents SET n = n + 100")
        assert [("parents", "restored", 10, "")] == run.undo()


def test_nobody_hangs_a_row_on_one_that_is_going(shop: Shop) -> None:
    """Who refers to a row that an undo is about to delete, or to a value that it takes back, waits for it."""
    with running(shop) as run, shop.beside() as holding, shop.beside() as neighbour:
        run.write(
            "INSERT INTO shop.swaps VALUES (910, 'x', 910, 0); UPDATE shop.swaps SET b = 1 WHERE id = 910",
            "INSERT INTO shop.parents VALUES (910, 'x'); UPDATE shop.parents SET k = 'y' WHERE id = 910",
            "UPDATE shop.codes SET code = 'x' WHERE id = 9; UPDATE shop.codes SET code = 'ours' WHERE id = 9",
        )
        holding.exec_driver_sql("BEGIN; SELECT FROM shop.swaps WHERE id = 910 FOR UPDATE")
        thread = threading.Thread(target=run.undo)  # is stopped where it has decided, and begins to delete
        thread.start()
        until_undo_waits(shop, thread)
        neighbour.exec_driver_sql("SET lock_timeout TO '100ms'")
        for child in ("children VALUES (910, 910)", "uses VALUES (910, 'ours')"):
            with pytest.raises(OperationalError, match="lock timeout"):
                neighbour.exec_driver_sql(f"INSERT INTO shop.{child}")
        holding.exec_driver_sql("COMMIT")
        thread.join()
        assert [] == run.undo()
    assert [("code9",)] == shop.rows("SELECT code FROM shop.codes WHERE id = 9")
