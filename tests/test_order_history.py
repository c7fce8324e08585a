"""The history of orders: every change is written by itself, whoever makes it, and what is irregular is said aloud."""

import re
import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from itertools import product

import pytest
from sqlalchemy import Connection, Engine, create_engine, delete, select, text, update
from sqlalchemy.orm import Session
from tables import DAY, ORDER, PARENTS, SCHEMA, insert, wait_until_blocked

from helios.models import (
    OPEN_STATUSES,
    TRANSITIONS,
    AlertLevel,
    DataQualityMetric,
    Order,
    OrderHistory,
    OrderStatus,
    QualitySubject,
)

ORDERS = f'"{SCHEMA}".orders'
PAIRS = list(product(OrderStatus, OrderStatus))


@pytest.fixture
def order(engine: Engine) -> Iterator[uuid.UUID]:
    """An order that is committed, for tests with several connections; it is deleted after the test."""
    key = uuid.uuid4()
    with engine.begin() as connection:
        insert(connection, "orders", PARENTS["orders"] | {"id": str(key), "client_order_id": str(key)})
    yield key
    with engine.begin() as connection:
        connection.execute(delete(OrderHistory).where(OrderHistory.order_id == key))
        connection.execute(delete(Order).where(Order.id == key))


def through_orm(connection: Connection) -> None:
    with Session(connection, join_transaction_mode="create_savepoint") as session:
        order = session.get_one(Order, ORDER)
        order.status = OrderStatus.PARTIALLY_FILLED
        order.filled_quantity = Decimal("0.000000001234")
        order.updated_at = datetime.fromisoformat(DAY)
        session.commit()


def through_core(connection: Connection) -> None:
    values = {"status": "PARTIALLY_FILLED", "filled_quantity": "0.000000001234"}
    connection.execute(update(Order).values(values | {"updated_at": datetime.fromisoformat(DAY)}))


def through_raw_sql(connection: Connection) -> None:
    change = "status = 'PARTIALLY_FILLED', filled_quantity = 0.000000001234"
    connection.execute(text(f"UPDATE {ORDERS} SET {change}, updated_at = '{DAY}'"))


def set_status(connection: Connection, *statuses: str) -> None:
    """Change the order's status, step by step."""
    for status in statuses:
        connection.execute(text(f"UPDATE {ORDERS} SET status = '{status}' WHERE id = '{ORDER}'"))


def history(connection: Connection, key: str | uuid.UUID = ORDER) -> list[OrderHistory]:
    """All versions of the order, from the first."""
    query = select(OrderHistory).where(OrderHistory.order_id == key).order_by(OrderHistory.version)
    return list(Session(connection).scalars(query))


def alerts(connection: Connection) -> list[DataQualityMetric]:
    return list(Session(connection).scalars(select(DataQualityMetric)))


def test_the_first_version_is_what_was_inserted(connection: Connection) -> None:
    """Nothing before it; all that was told in it."""
    (first,) = history(connection)
    assert (1, None, None, OrderStatus.NEW) == (first.version, first.old_status, first.old_state, first.new_status)
    assert ("helios-1", "LIMIT", False, 1) == tuple(
        first.new_state[name] for name in ("client_order_id", "type", "reduce_only", "instrument_id")
    )
    assert first.irregular is False
    assert first.recorded_at.tzinfo is UTC


@pytest.mark.parametrize("change", [through_orm, through_core, through_raw_sql])
def test_a_change_writes_its_history(connection: Connection, change: Callable[[Connection], None]) -> None:
    """Through ORM, Core and raw SQL alike: both states, the exchange's time, and exact numbers as text."""
    change(connection)
    _, second = history(connection)
    assert (2, OrderStatus.NEW, OrderStatus.PARTIALLY_FILLED) == (second.version, second.old_status, second.new_status)
    assert second.old_state is not None
    assert ("0", "0.000000001234") == (second.old_state["filled_quantity"], second.new_state["filled_quantity"])
    assert ("NEW", "PARTIALLY_FILLED") == (second.old_state["status"], second.new_state["status"])
    assert datetime.fromisoformat(DAY) == second.exchange_at
    assert second.irregular is False
    assert [] == alerts(connection)


TOLD_APART = {"id", "updated_at", "recorded_at"}
OTHERS = {
    "client_order_id": "other",
    "exchange_order_id": "77",
    "side": "SELL",
    "type": "MARKET",
    "time_in_force": "IOC",
    "position_side": "LONG",
    "reduce_only": "true",
    "origin": "adopted",
    "status": "CANCELED",
    "price": "5",
    "stop_price": "5",
    "quantity": "5",
    "quote_quantity": "5",
    "filled_quantity": "5",
    "filled_quote_quantity": "5",
    "reject_reason": "why not",
    "submitted_at": "2025-03-02 00:00:00+00",
    "account_id": "2",
    "instrument_id": "2",
    "session_id": PARENTS["trading_sessions"]["id"],
}


@pytest.mark.parametrize("column", [column.name for column in Order.__table__.columns if column.name not in TOLD_APART])
def test_a_change_of_any_column_is_a_change(connection: Connection, column: str) -> None:
    """The history tells of every column but the id and the times of recording."""
    insert(connection, "accounts", PARENTS["accounts"] | {"name": "second"})
    insert(connection, "instruments", PARENTS["instruments"] | {"symbol": "ETHUSDT"})
    for table in ("accounts", "instruments"):  # whatever number the database gave, the second is meant
        OTHERS[table[:-1] + "_id"] = str(connection.scalar(text(f'SELECT max(id) FROM "{SCHEMA}".{table}')))
    connection.execute(text(f"UPDATE {ORDERS} SET {column} = :value"), {"value": OTHERS[column]})
    _, second = history(connection)
    assert second.old_state is not None
    changed = {name for name, value in second.new_state.items() if value != second.old_state[name]}
    assert {column} == changed


def test_numbers_keep_their_digits_in_the_history(connection: Connection) -> None:
    """A reader of JSON would make floats of them; as text they stay what they are."""
    connection.execute(update(Order).values(price="1000000000000.000000001234", quantity="5E+3"))
    _, second = history(connection)
    assert ("1000000000000.000000001234", "5000") == (second.new_state["price"], second.new_state["quantity"])


@pytest.mark.parametrize(
    "change",
    ["status = status", "filled_quantity = 0.00", "updated_at = now()", "recorded_at = now(), status = 'NEW'"],
)
def test_an_update_that_changes_nothing_writes_nothing(connection: Connection, change: str) -> None:
    """Neither the same values again, nor the same number with more zeros, nor a mere later time."""
    assert 1 == connection.execute(text(f"UPDATE {ORDERS} SET {change}")).rowcount
    assert 1 == len(history(connection))


def test_an_upsert_writes_history_like_an_update(connection: Connection) -> None:
    """INSERT ... ON CONFLICT DO UPDATE changes the row that is there."""
    names, values = ", ".join(PARENTS["orders"]), "', '".join(PARENTS["orders"].values())
    upsert = f"INSERT INTO {ORDERS} ({names}) VALUES ('{values}') ON CONFLICT (id) DO UPDATE SET status = 'CANCELED'"
    connection.execute(text(upsert))
    assert [None, "NEW"] == [each.old_status for each in history(connection)]


def test_versions_have_no_holes(connection: Connection) -> None:
    """Each change counts one, also where a statement in between was taken back."""
    set_status(connection, "PARTIALLY_FILLED")
    with connection.begin_nested() as savepoint:
        set_status(connection, "CANCELED")
        savepoint.rollback()
    set_status(connection, "FILLED")
    assert [1, 2, 3] == [each.version for each in history(connection)]
    assert ["NEW", "PARTIALLY_FILLED", "FILLED"] == [each.new_status for each in history(connection)]


def test_many_orders_in_one_statement_each_have_their_own_versions(connection: Connection) -> None:
    """One UPDATE of three orders writes three versions 2."""
    for number in (2, 3):
        insert(
            connection, "orders", PARENTS["orders"] | {"id": str(uuid.uuid4()), "client_order_id": f"helios-{number}"}
        )
    connection.execute(update(Order).values(status="CANCELED"))
    query = select(OrderHistory.version).order_by(OrderHistory.version)
    assert [1, 1, 1, 2, 2, 2] == list(connection.scalars(query))


def test_the_session_user_is_the_actor(engine: Engine, connection: Connection) -> None:
    """Who logged in, though the function that writes runs as its owner and the role may be another."""
    connection.execute(text("CREATE ROLE somebody"))
    connection.execute(text(f'GRANT USAGE ON SCHEMA "{SCHEMA}" TO somebody'))
    connection.execute(text(f"GRANT SELECT, UPDATE ON {ORDERS} TO somebody"))
    connection.execute(text("SET LOCAL ROLE somebody"))
    set_status(connection, "CANCELED")
    connection.execute(text("RESET ROLE"))
    assert [engine.url.username] * 2 == [each.actor for each in history(connection)]


def test_helios_actor_names_the_actor(connection: Connection) -> None:
    """A service says for whom it acts; an empty name counts as none."""
    connection.execute(text("SELECT set_config('helios.actor', 'strategy grid-7', true)"))
    set_status(connection, "PARTIALLY_FILLED")
    connection.execute(text("SELECT set_config('helios.actor', '', true)"))
    set_status(connection, "FILLED")
    assert ["strategy grid-7", "helios"] == [each.actor for each in history(connection)[1:]]
    assert {"helios"} == {each.login for each in history(connection)}  # whatever was said


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_python_and_sql_know_the_same_life_cycle(connection: Connection, old: OrderStatus, new: OrderStatus) -> None:
    """TRANSITIONS and order_transition_is_known() agree on each pair."""
    known = text(f"SELECT \"{SCHEMA}\".order_transition_is_known('{old}', '{new}')")
    assert (new in TRANSITIONS[old]) is connection.scalar(known)


def test_the_life_cycle_has_an_end() -> None:
    """From every status an end is reached, and from an end nothing."""
    ends = set(OrderStatus) - set(OPEN_STATUSES)
    assert {"FILLED", "CANCELED", "REJECTED", "EXPIRED", "EXPIRED_IN_MATCH"} == ends
    assert all(TRANSITIONS[status] & ends for status in OPEN_STATUSES)
    assert all(not TRANSITIONS[status] for status in ends)


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_a_transition_outside_the_life_cycle_is_stored_flagged_and_raised(
    connection: Connection, old: OrderStatus, new: OrderStatus
) -> None:
    """What the exchange says is never refused; what the life cycle does not know is flagged, and only that."""
    insert(connection, "orders", PARENTS["orders"] | {"id": str(uuid.uuid4()), "client_order_id": "x", "status": old})
    connection.execute(text(f"UPDATE {ORDERS} SET status = '{new}' WHERE client_order_id = 'x'"))
    irregular = old != new and new not in TRANSITIONS[old]
    assert new is connection.scalar(select(Order.status).where(Order.client_order_id == "x"))
    versions = select(OrderHistory.irregular).join(Order).where(Order.client_order_id == "x").order_by("version")
    assert [False, irregular][: 1 + (old != new)] == list(connection.scalars(versions))
    assert irregular == (len(alerts(connection)) == 1)


def test_the_alert_says_what_happened(connection: Connection) -> None:
    """Subject, level, instrument, and a sentence that names the order and both statuses."""
    set_status(connection, "FILLED", "NEW")
    (alert,) = alerts(connection)
    assert (QualitySubject.ORDERS, AlertLevel.WARNING, 1) == (alert.subject, alert.alert_level, alert.instrument_id)
    assert [f"Order {ORDER} went from FILLED to NEW, which its life cycle does not know"] == alert.reasons


def test_a_fill_after_the_end_is_irregular_too(connection: Connection) -> None:
    """The status stays, the filled quantity moves: real, recorded, and said aloud."""
    set_status(connection, "CANCELED")
    connection.execute(update(Order).values(filled_quantity="0.5"))
    assert [False, False, True] == [each.irregular for each in history(connection)]
    (alert,) = alerts(connection)
    assert [f"Order {ORDER} is CANCELED, but its filled quantity changed"] == alert.reasons


def test_a_fill_of_an_open_order_is_regular(connection: Connection) -> None:
    """So is a later word about what a finished order cost."""
    connection.execute(update(Order).values(filled_quantity="0.5"))
    set_status(connection, "FILLED")
    connection.execute(update(Order).values(filled_quote_quantity="50"))
    assert [False] * 4 == [each.irregular for each in history(connection)]
    assert [] == alerts(connection)


def test_the_times_in_a_state_are_in_utc(connection: Connection) -> None:
    """Whatever zone the session is in, the same moment is written the same way."""
    connection.execute(text("SET LOCAL timezone TO 'Asia/Tokyo'"))
    set_status(connection, "CANCELED")
    assert "2025-03-01T00:00:00+00:00" == history(connection)[1].new_state["submitted_at"]


def test_concurrent_updates_give_ordered_versions(engine: Engine, order: uuid.UUID) -> None:
    """The second waits for the first and counts on from it."""

    def second() -> None:
        with engine.begin() as connection:
            connection.execute(text("SET LOCAL application_name TO 'second'"))
            connection.execute(update(Order).where(Order.id == order).values(filled_quantity=2))

    thread = threading.Thread(target=second)
    with engine.begin() as first:
        first.execute(update(Order).where(Order.id == order).values(filled_quantity=1))
        thread.start()
        wait_until_blocked(engine, "second")
    thread.join(10)
    with engine.connect() as connection:
        versions = history(connection, order)
    assert [(1, "0"), (2, "1"), (3, "2")] == [(each.version, each.new_state["filled_quantity"]) for each in versions]
    assert "1" == (versions[2].old_state or {})["filled_quantity"]


def test_many_writers_leave_no_hole(engine: Engine, order: uuid.UUID) -> None:
    """Four writers, ten changes each: versions 1 to 41, each beginning where the last one ended."""
    crowd = create_engine(engine.url, pool_size=4)

    def write() -> None:
        for _ in range(10):
            with crowd.begin() as connection:
                connection.execute(
                    update(Order).where(Order.id == order).values(filled_quantity=Order.filled_quantity + 1)
                )

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    crowd.dispose()
    with engine.connect() as connection:
        versions = history(connection, order)
    assert list(range(1, 42)) == [each.version for each in versions]
    assert [each.new_state for each in versions[:-1]] == [each.old_state for each in versions[1:]]


def test_nobody_calls_the_functions_unasked(connection: Connection) -> None:
    """PUBLIC has no right on any function; each looks things up in its own schema, and in pg_temp last."""
    query = text(
        "SELECT proname, proacl::text, proconfig FROM pg_proc "
        f"WHERE pronamespace = '{SCHEMA}'::regnamespace ORDER BY proname"
    )
    found = connection.execute(query).all()
    assert 18 == len(found)
    for name, rights, configuration in found:
        assert "{helios=X/helios}" == rights, name
        assert f"search_path={SCHEMA},pg_temp" in [re.sub('[" ]', "", each) for each in configuration], name
