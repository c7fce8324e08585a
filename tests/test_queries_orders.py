"""Questions about orders, positions and prices: who is asked for, since when, up to which moment, how old."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from sqlalchemy import text, update
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from helios import queries
from helios.errors import InputError, StaleError
from helios.models import (
    OPEN_STATUSES,
    Account,
    Fill,
    Instrument,
    Market,
    Order,
    OrderHistory,
    OrderStatus,
    OrderType,
    Position,
    PositionSide,
    Side,
    Ticker,
)

NOON = datetime(2025, 3, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


@pytest.fixture
def session(owner):
    """A session whose transaction is never committed."""
    with owner.connect() as connection, Session(connection, join_transaction_mode="create_savepoint") as session:
        yield session


@pytest.fixture
def instrument(session, symbol):
    return kept(session, Instrument(exchange="binance", market=Market.UM, symbol=symbol))


@pytest.fixture
def account(session, symbol):
    return kept(session, Account(exchange="binance", name=symbol, market=Market.UM))


def kept(session, row):
    session.add(row)
    session.flush()
    return row


def order(session, account, instrument, status=OrderStatus.NEW, *, minute=0, **values):
    given = {"side": Side.BUY, "type": OrderType.LIMIT, "submitted_at": NOON + minute * MINUTE, **values}
    number = f"{account.name}-{minute}-{status}-{len(session.identity_map)}"
    made = Order(account=account, instrument=instrument, client_order_id=number, status=status, **given)
    return kept(session, made)


def fill(session, of, quantity, minute):
    number = f"{minute}-{quantity}"
    row = Fill(order=of, trade_id=number, price=2, quantity=quantity, filled_at=NOON + minute * MINUTE)
    return kept(session, row)


# --- orders --------------------------------------------------------------------------------------------------------


def test_open_orders_are_those_that_may_still_be_filled(session, account, instrument):
    """Each status that may change is open, each that ended is not; the oldest comes first."""
    made = {status: order(session, account, instrument, status, minute=-at) for at, status in enumerate(OrderStatus)}
    found = queries.open_orders(account_id=account.id).objects(session)
    assert [made[status] for status in reversed(OPEN_STATUSES)] == list(found)


def test_open_orders_of_an_account_or_an_instrument(session, account, instrument, symbol):
    """Each keeps to its own; both together to what is both; neither gives all."""
    other_account = kept(session, Account(exchange="binance", name=f"{symbol}-2", market=Market.UM))
    other_instrument = kept(session, Instrument(exchange="binance", market=Market.SPOT, symbol=symbol))
    first = order(session, account, instrument)
    second = order(session, account, other_instrument)
    third = order(session, other_account, instrument)

    def asked(**of):
        return {row.id for row in queries.open_orders(**of).rows(session)}

    assert {first.id, second.id} == asked(account_id=account.id)
    assert {first.id, third.id} == asked(instrument_id=instrument.id)
    assert {first.id} == asked(account_id=account.id, instrument_id=instrument.id)
    assert {first.id, second.id, third.id} <= asked()
    assert set() == asked(account_id=-1)


def test_unresolved_orders_wait_for_the_exchange(session, account, instrument):
    """The three statuses that are ours to say, with since when."""
    waiting = {OrderStatus.PENDING_NEW, OrderStatus.PENDING_CANCEL, OrderStatus.UNKNOWN}
    for status in OrderStatus:
        order(session, account, instrument, status)
    found = queries.unresolved_orders(account_id=account.id, instrument_id=instrument.id).rows(session)
    assert waiting == {row.status for row in found}
    assert {row.recorded_at for row in session.query(OrderHistory).filter(OrderHistory.order_id == found[0].id)} == {
        found[0].since
    }


def test_an_unresolved_order_is_as_old_as_its_newest_change(session, account, instrument):
    """Not as old as the order: one that stood for a day and is being cancelled since now is young."""
    made = order(session, account, instrument, OrderStatus.NEW)
    old = text("UPDATE helios_trading.order_history SET recorded_at = now() - interval '1 day' WHERE order_id = :id")
    session.execute(old, {"id": made.id})
    made.status = OrderStatus.PENDING_CANCEL
    session.flush()

    def asked(older_than):
        return [row.id for row in queries.unresolved_orders(older_than, account_id=account.id).rows(session)]

    assert ([made.id], []) == (asked(timedelta(0)), asked(MINUTE))
    session.execute(old, {"id": made.id})
    assert ([made.id], []) == (asked(MINUTE), asked(timedelta(days=2)))


def test_an_unresolved_order_without_history_is_not_lost(session, account, instrument):
    """Where history was dropped, the row's own age counts."""
    made = order(session, account, instrument, OrderStatus.UNKNOWN)
    session.execute(text("DELETE FROM helios_trading.order_history WHERE order_id = :id"), {"id": made.id})
    session.execute(update(Order).where(Order.id == made.id).values(recorded_at=datetime(2025, 1, 1, tzinfo=UTC)))
    session.execute(text("DELETE FROM helios_trading.order_history WHERE order_id = :id"), {"id": made.id})
    [found] = queries.unresolved_orders(MINUTE, account_id=account.id).rows(session)
    assert (made.id, datetime(2025, 1, 1, tzinfo=UTC)) == (found.id, found.since)


def test_an_age_below_zero_is_refused():
    """It would leave nothing out, which nobody means."""
    with pytest.raises(InputError, match="is below zero"):
        queries.unresolved_orders(timedelta(seconds=-1))


# --- positions -----------------------------------------------------------------------------------------------------


def test_positions_now_and_at_a_moment(session, account, instrument):
    """Bought less sold, up to and with the moment; long and short kept apart; flat ones left out."""
    buy = order(session, account, instrument)
    sell = order(session, account, instrument, side=Side.SELL)
    short = order(session, account, instrument, side=Side.SELL, position_side=PositionSide.SHORT)
    for of, quantity, minute in ((buy, "1.5", 0), (sell, "0.5", 2), (buy, "0.000000000000000000001", 4), (short, 3, 3)):
        fill(session, of, quantity, minute)

    def at(minute):
        moment = None if minute is None else NOON + minute * MINUTE
        query = queries.positions(at=moment, account_id=account.id, instrument_id=instrument.id)
        return {row.position_side: row.quantity for row in query.rows(session)}

    both, shorted = PositionSide.BOTH, PositionSide.SHORT
    assert {} == at(-1)
    assert {both: Decimal("1.5")} == at(0) == at(1)
    assert {both: 1} == at(2)
    assert {both: 1, shorted: -3} == at(3)
    assert {both: Decimal("1.000000000000000000001"), shorted: -3} == at(4) == at(None)
    fill(session, sell, "1.000000000000000000001", 5)
    assert {shorted: -3} == at(None)
    [row] = queries.positions(account_id=account.id).rows(session)
    assert (account.id, instrument.id, NOON + 3 * MINUTE) == (row.account_id, row.instrument_id, row.filled_at)
    assert [Decimal(-3)] == queries.positions(account_id=account.id).arrow(session)["quantity"].to_pylist()


def test_a_moment_without_zone_is_refused():
    """The server would take it for the session's."""
    with pytest.raises(InputError, match=r"at=.* has no time zone"):
        queries.positions(at=datetime(2025, 1, 1))  # noqa: DTZ001 - what is refused


def test_positions_that_differ_from_their_fills(session, account, instrument):
    """A position that says something else than its fills, or has none, or is not there."""
    made = order(session, account, instrument)
    fill(session, made, "1.5", 0)

    def differing():
        found = queries.position_differences().rows(session)
        return [tuple(row)[2:] for row in found if row.account_id == account.id]

    assert [(PositionSide.BOTH, 0, Decimal("1.5"))] == differing()
    position = kept(session, Position(account=account, instrument=instrument, quantity="1.4", event_at=NOON))
    assert [(PositionSide.BOTH, Decimal("1.4"), Decimal("1.5"))] == differing()
    position.quantity = Decimal("1.50")
    session.flush()
    assert [] == differing()


# --- prices --------------------------------------------------------------------------------------------------------


def name_of(instrument):
    """The name by which an error calls it."""
    return f"{instrument.exchange} {instrument.market.value} {instrument.symbol}"


def quote(session, instrument, age=0.0, **prices):
    """Write a ticker of that age, as raw SQL, which sets when it was recorded."""
    now = session.scalar(text("SELECT clock_timestamp()"))
    moments = {"event_at": now - timedelta(seconds=age), "recorded_at": now}
    return kept(session, Ticker(instrument=instrument, **{**moments, **prices}))


def test_a_price_and_its_age(session, instrument):
    """Value, quotes, when the exchange said so, and how long ago that is."""
    ticker = quote(session, instrument, age=5, last_price="1.25", bid_price="1.2", ask_price="1.3")
    found = queries.current_price(session, instrument.id)
    assert (instrument.id, Decimal("1.25"), Decimal("1.2"), Decimal("1.3"), ticker.event_at) == (
        found.instrument_id,
        found.value,
        found.bid,
        found.ask,
        found.as_of,
    )
    assert timedelta(seconds=5) <= found.age < timedelta(seconds=35)
    assert found.age < queries.current_price(session, instrument.id).age  # also within one transaction


@pytest.mark.parametrize(
    ("prices", "value"),
    [
        ({"bid_price": 2, "ask_price": 3}, Decimal("2.5")),
        ({"last_price": 0, "bid_price": 2, "ask_price": 3}, Decimal("2.5")),
        ({"last_price": 4, "bid_price": 2, "ask_price": 3}, Decimal(4)),
        ({"last_price": 4}, Decimal(4)),
    ],
)
def test_without_a_trade_the_middle_of_the_quotes(session, instrument, prices, value):
    """A last price of zero is how exchanges say that nothing was traded."""
    quote(session, instrument, **prices)
    assert value == queries.current_price(session, instrument.id).value


@pytest.mark.parametrize(
    "prices", [{"bid_price": 2}, {"ask_price": 2}, {"last_price": 0}, {"bid_price": 0, "ask_price": 2}]
)
def test_half_a_quote_is_no_price(session, instrument, prices):
    """Nothing is made up from one side of the book."""
    quote(session, instrument, **prices)
    with pytest.raises(StaleError, match=f"{name_of(instrument)} has no price: the exchange tells neither"):
        queries.current_price(session, instrument.id)


def test_no_ticker_is_no_price(session, instrument):
    """Never a zero."""
    with pytest.raises(StaleError, match=f"{name_of(instrument)} has no price here"):
        queries.current_price(session, instrument.id, max_lag=timedelta(days=9))


def test_an_instrument_that_is_nowhere_is_called_by_its_number(session):
    """There is no other name to tell."""
    with pytest.raises(StaleError, match=r"^instrument 0 has no price here"):
        queries.current_price(session, 0)


def test_a_stale_price_is_refused(session, instrument):
    """Older than was asked for is an error that says how old; young enough is a price."""
    quote(session, instrument, age=60, last_price=1)
    assert 1 == queries.current_price(session, instrument.id, max_lag=timedelta(seconds=120)).value
    with pytest.raises(StaleError, match=rf"the price of {name_of(instrument)} is 6\d\.\d+ s old, and at most 59.5 s"):
        queries.current_price(session, instrument.id, max_lag=timedelta(seconds=59.5))


def test_an_exchange_whose_clock_runs_ahead_makes_no_price_young(session, instrument):
    """A price from the future is as old as its row here, and never younger than nothing."""
    recorded = session.scalar(text("SELECT clock_timestamp()")) - timedelta(seconds=60)
    quote(session, instrument, age=-3600, last_price=1, recorded_at=recorded)
    with pytest.raises(StaleError):
        queries.current_price(session, instrument.id, max_lag=timedelta(seconds=30))
    assert recorded == queries.current_price(session, instrument.id).as_of


def test_instruments_of_a_symbol(session, instrument, symbol):
    """All of that name; none of another."""
    spot = kept(session, Instrument(exchange="binance", market=Market.SPOT, symbol=symbol))
    assert [instrument, spot] == list(queries.instruments_named(symbol).objects(session))
    assert [] == list(queries.instruments_named(f"{symbol}X").rows(session))


async def test_an_asynchronous_session_asks_the_same(migrated, symbol):
    """Every statement runs on psycopg 3 too."""
    engine = create_async_engine(
        migrated.set(drivername="postgresql+psycopg"), poolclass=NullPool, connect_args={"prepare_threshold": None}
    )
    async with AsyncSession(engine) as session:
        instrument = Instrument(exchange="binance", market=Market.UM, symbol=symbol)
        account = Account(exchange="binance", name=symbol, market=Market.UM)
        given = {"side": Side.BUY, "type": OrderType.LIMIT, "submitted_at": NOON, "status": OrderStatus.UNKNOWN}
        made = Order(account=account, instrument=instrument, client_order_id=symbol, **given)
        session.add_all([made, Fill(order=made, trade_id="1", price=2, quantity=3, filled_at=NOON)])
        session.add(Ticker(instrument=instrument, last_price=2, event_at=datetime.now(UTC)))
        await session.flush()
        unresolved = await session.run_sync(queries.unresolved_orders(account_id=account.id).objects)
        opened = await session.run_sync(queries.open_orders(instrument_id=instrument.id).objects)
        before = await session.run_sync(queries.positions(at=NOON - MINUTE, account_id=account.id).rows)
        [position] = await session.run_sync(queries.positions(account_id=account.id).rows)
        differing = await session.run_sync(queries.position_differences().rows)
        ownerless = await session.run_sync(queries.ownerless_series().rows)
        price = await session.run_sync(queries.current_price, instrument.id)
        await session.rollback()
    await engine.dispose()
    assert ([made], [made], [], Decimal(3), Decimal(2)) == (
        list(unresolved),
        list(opened),
        list(before),
        position.quantity,
        price.value,
    )
    assert account.id in {row.account_id for row in differing}
    assert isinstance(ownerless, list)
