"""Orders, fills, positions and balances end the same, whatever the exchange says first, twice or late."""

import json
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import exchange
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, create_engine, select
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session, selectinload

from helios import queries
from helios.db import create_async_session_factory
from helios.errors import InputError
from helios.feed import AsyncFeed, Feed, Taken
from helios.models import (
    Account,
    Balance,
    Fill,
    Instrument,
    Market,
    Order,
    OrderOrigin,
    OrderStatus,
    OrderType,
    Position,
    PositionSide,
)

State = dict[str, list[tuple[Any, ...]]]


def state_of(engine: Engine, account: str) -> State:
    """Everything that an account has, without the numbers and moments that are made here."""
    mine = Account.name == account
    orders = [
        getattr(Order, column.name)
        for column in Order.__table__.columns
        if column.name not in {"id", "account_id", "instrument_id", "session_id", "recorded_at"}
    ]
    fills = [getattr(Fill, c.name) for c in Fill.__table__.columns if c.name not in {"order_id", "recorded_at"}]
    positions = [Position.position_side, Position.quantity, Position.entry_price, Position.realized_pnl]
    with Session(engine) as session:
        return {
            "orders": sorted(
                map(
                    tuple,
                    session.execute(
                        select(Instrument.symbol, *orders).join(Order.account).join(Order.instrument).where(mine)
                    ),
                ),
                key=repr,
            ),
            "fills": sorted(
                map(
                    tuple,
                    session.execute(
                        select(Order.exchange_order_id, *fills).join(Fill.order).join(Order.account).where(mine)
                    ),
                ),
                key=repr,
            ),
            "positions": sorted(
                map(
                    tuple,
                    session.execute(
                        select(Instrument.symbol, *positions, Position.event_at)
                        .join(Position.account)
                        .join(Position.instrument)
                        .where(mine)
                    ),
                ),
                key=repr,
            ),
            "balances": sorted(
                map(
                    tuple,
                    session.execute(
                        select(Balance.asset, Balance.free, Balance.locked, Balance.event_at)
                        .join(Balance.account)
                        .where(mine)
                    ),
                )
            ),
        }


@pytest.fixture(scope="module")
def pooled(writer: Engine) -> Iterator[Engine]:
    """The writer's login with connections that are kept, as a service has them."""
    engine = create_engine(writer.url)
    yield engine
    engine.dispose()


def an_account() -> str:
    return f"account-{uuid.uuid4().hex[:12]}"


def place(engine: Engine, feed: Feed, orders: list[exchange.Message]) -> None:
    """Write orders as a service does before it sends them: with its own id and none of the exchange's."""
    feed.take_all([exchange.exchange_info(symbol) for symbol in SYMBOLS])
    with Session(engine) as session, session.begin():
        account = Account(exchange="binance", name=feed.recorder.account, market=feed.recorder.market)
        for told in orders:
            traded = session.scalars(select(Instrument).filter_by(symbol=told["s"], market=feed.recorder.market)).one()
            order = Order(
                account=account,
                instrument=traded,
                client_order_id=told["c"],
                side=told["S"],
                type="LIMIT",
                status="PENDING_NEW",
                position_side=told.get("ps", "BOTH"),
                price=told["p"],
                quantity=told["q"],
                submitted_at=datetime(2025, 6, 15, 15, 6, tzinfo=UTC),
            )
            session.add(order)


SYMBOLS = [f"F{uuid.uuid4().hex[:6].upper()}USDT" for _ in range(2)]


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(seed=st.randoms(use_true_random=False), futures=st.booleans(), batched=st.booleans())
def test_any_order_of_messages_ends_the_same(pooled, seed, futures, batched) -> None:
    """Any order of the same messages, each any number of times, ends in the same orders, fills, positions, balances."""
    day = exchange.Day(seed, SYMBOLS, futures=futures)
    market = Market.UM if futures else Market.SPOT
    shuffled = [each for each in day.messages for _ in range(seed.choice([1, 1, 2, 3]))]
    seed.shuffle(shuffled)
    first, second = an_account(), an_account()
    in_order = Feed(pooled, market=market, account=first)
    out_of_order = Feed(pooled, market=market, account=second)
    ours = [told for told in day.placed if told["c"].startswith("client") and seed.random() < 0.5]
    place(pooled, in_order, ours)
    place(pooled, out_of_order, ours)
    for message in day.messages:
        in_order.take(message)
    if batched:
        middle = seed.randint(0, len(shuffled))
        out_of_order.take_all(shuffled[:middle])
        out_of_order.take_all(shuffled[middle:])
    else:
        for message in shuffled:
            out_of_order.take(message)
    for message in shuffled:
        note(repr(message))
    assert state_of(pooled, first) == state_of(pooled, second)
    with pooled.connect() as connection:
        assert [] == queries.position_differences().rows(connection)


def feeding(engine: Engine, account: str, path: Path) -> subprocess.Popen[str]:
    """Start a process that feeds a file of messages with the same login."""
    url = engine.url.render_as_string(hide_password=False)
    program = Path(__file__).with_name("feeding.py")
    return subprocess.Popen([sys.executable, program, url, account, path], stdout=subprocess.PIPE, text=True)


def test_two_processes_lose_and_double_nothing(pooled, tmp_path) -> None:
    """Two processes feed one account at once, each all messages in an order of its own: one state, each fill once."""
    seed = exchange.chance(7)
    day = exchange.Day(seed, SYMBOLS, orders=25)
    alone, together = an_account(), an_account()
    Feed(pooled, account=alone).take_all(day.messages)
    running = []
    for number in range(2):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(seed.sample(day.messages, len(day.messages))))
        running.append(feeding(pooled, together, path))
    ends = [each.communicate(timeout=60)[0].splitlines()[-1] for each in running]
    assert [str(len(day.messages))] * 2 == ends
    assert [0, 0] == [each.returncode for each in running]
    assert state_of(pooled, alone) == state_of(pooled, together)


def test_two_threads_in_batches_do_not_wait_for_each_other_for_ever(pooled) -> None:
    """Batches with the same orders in opposite directions, many at once, all end, and in one state."""
    day = exchange.Day(exchange.chance(8), SYMBOLS, orders=12)
    alone, together = an_account(), an_account()
    Feed(pooled, account=alone).take_all(day.messages)
    batches = [day.messages, day.messages[::-1]] * 4
    with ThreadPoolExecutor(4) as pool:
        taken = list(pool.map(lambda batch: Feed(pooled, account=together).take_all(batch), batches))
    trades = {fill[:2] for fill in state_of(pooled, alone)["fills"]}
    assert len(trades) <= sum(each.fills for each in taken)
    assert state_of(pooled, alone) == state_of(pooled, together)


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_feed_started_again_with_everything(pooled, tmp_path, seed) -> None:
    """A feed killed at any moment, and then fed everything again, ends as one that was not killed."""
    chance = exchange.chance(seed)
    day = exchange.Day(chance, SYMBOLS, orders=10)
    whole, killed = an_account(), an_account()
    Feed(pooled, account=whole).take_all(day.messages)
    path = tmp_path / "messages.json"
    path.write_text(json.dumps(day.messages * 100))  # again and again, so that it does not end before it is killed
    process = feeding(pooled, killed, path)
    assert process.stdout is not None
    for _ in range(chance.randint(1, len(day.messages) - 1)):
        process.stdout.readline()
    process.kill()
    assert -signal.SIGKILL == process.wait()
    process.stdout.close()
    assert [] != state_of(pooled, killed)["orders"]
    for message in day.messages:
        Feed(pooled, account=killed).take(message)
    assert state_of(pooled, whole) == state_of(pooled, killed)


def orders_of(engine: Engine, feed: Feed) -> list[Order]:
    """The feed's orders with fills and history, by the exchange's id."""
    options = [selectinload(Order.fills), selectinload(Order.history)]
    chosen = select(Order).join(Order.account).where(Account.name == feed.recorder.account).options(*options)
    with Session(engine) as session:
        return list(session.scalars(chosen.order_by(Order.exchange_order_id)))


@pytest.fixture
def feed(pooled) -> Feed:
    return Feed(pooled, account=an_account())


def test_an_order_as_it_is_told(pooled, feed) -> None:
    """NEW, a fill, a cancellation under an id of its own: one order, its fill, and three steps of history."""
    feed.take(exchange.execution_report())
    taken = feed.take(exchange.executed(7, "1", "1"))
    assert (1, 1, 1) == (taken.orders, taken.fills, taken.positions)
    last = {"x": "CANCELED", "X": "CANCELED", "z": "1", "Z": "100", "c": "cancel-1", "C": "client-1"}
    feed.take({"subscriptionId": 0, "event": exchange.execution_report(**last, T=exchange.START + 20)})
    [order] = orders_of(pooled, feed)
    assert ("client-1", "1001", OrderStatus.CANCELED) == (order.client_order_id, order.exchange_order_id, order.status)
    assert (Decimal(3), Decimal(1), Decimal(100)) == (
        order.quantity,
        order.filled_quantity,
        order.filled_quote_quantity,
    )
    assert OrderOrigin.ADOPTED is order.origin
    [fill] = order.fills
    assert ("7", Decimal("0.001"), "BNB", False) == (fill.trade_id, fill.fee, fill.fee_asset, fill.is_maker)
    assert ["NEW", "PARTIALLY_FILLED", "CANCELED"] == [str(each.new_status) for each in order.history]
    assert not any(each.irregular for each in order.history)


def test_a_message_again_writes_nothing(feed) -> None:
    """The same messages again change no row, and say so."""
    messages = [exchange.execution_report(), exchange.executed(7, "1", "1"), exchange.account_position(USDT=("1", "0"))]
    for message in messages:
        feed.take(message)
    for message in messages:
        assert Taken() == feed.take(message)


def test_a_fill_after_the_cancellation(pooled, feed) -> None:
    """A trade that happened after a cancellation is recorded, flagged, and counted in the position."""
    feed.take(exchange.execution_report())
    feed.take(exchange.execution_report(x="CANCELED", X="CANCELED", C="client-1", T=exchange.START + 5))
    feed.take(exchange.executed(9, "3", "3", X="FILLED", at=6))
    [order] = orders_of(pooled, feed)
    assert (OrderStatus.FILLED, Decimal(3)) == (order.status, order.filled_quantity)
    assert [False, False, True] == [each.irregular for each in order.history]
    assert [("BTCUSDT", PositionSide.BOTH, Decimal(3), Decimal(100), Decimal(0))] == positions_of(pooled, feed)


def positions_of(engine: Engine, feed: Feed) -> list[tuple[Any, ...]]:
    return [each[:5] for each in state_of(engine, feed.recorder.account)["positions"]]


def test_an_order_of_ours_whose_trades_come_first(pooled, feed) -> None:
    """An order placed here is found again, although its trade came before anyone said whose it is."""
    place(pooled, feed, [{"s": SYMBOLS[0], "c": "mine", "S": "BUY", "q": "3", "p": "100"}])
    [placed] = orders_of(pooled, feed)
    feed.take([exchange.rest_trade(symbol=SYMBOLS[0], id=5, qty="2")])
    assert 2 == len(orders_of(pooled, feed))
    feed.take(exchange.execution_report(s=SYMBOLS[0], c="mine"))
    [order] = orders_of(pooled, feed)
    assert (placed.id, OrderOrigin.STRATEGY, "1001") == (order.id, order.origin, order.exchange_order_id)
    assert (OrderStatus.NEW, Decimal(2), ["5"]) == (
        order.status,
        order.filled_quantity,
        [fill.trade_id for fill in order.fills],
    )
    assert [(SYMBOLS[0], PositionSide.BOTH, Decimal(2), Decimal(100), Decimal(0))] == positions_of(pooled, feed)


@pytest.mark.parametrize(
    ("client", "kind", "origin"),
    [
        ("autoclose-1721", "LIMIT", OrderOrigin.LIQUIDATION),
        ("adl_autoclose", "MARKET", OrderOrigin.LIQUIDATION),
        ("settlement_autoclose-9", "MARKET", OrderOrigin.LIQUIDATION),
        ("x", "LIQUIDATION", OrderOrigin.LIQUIDATION),
        ("web_5f2c", "LIMIT", OrderOrigin.MANUAL),
        ("android_9", "LIMIT", OrderOrigin.MANUAL),
        ("someone-elses", "LIMIT", OrderOrigin.ADOPTED),
    ],
)
def test_where_an_order_came_from(pooled, client, kind, origin) -> None:
    """An order that was not placed here tells by its client id or type whether the exchange or a person made it."""
    feed = Feed(pooled, market=Market.UM, account=an_account())
    feed.take(exchange.order_trade_update(c=client, o=kind, ot=kind))
    assert [(client, origin)] == [(order.client_order_id, order.origin) for order in orders_of(pooled, feed)]


def test_a_client_id_used_twice(pooled, feed) -> None:
    """Of two orders with one client id both are recorded, and the older keeps it, whichever came first."""
    feed.take(exchange.execution_report(i=1002, T=exchange.START + 9, O=exchange.START + 9))
    feed.take(exchange.execution_report(i=1001))
    assert [("1001", "client-1"), ("1002", None)] == [
        (order.exchange_order_id, order.client_order_id) for order in orders_of(pooled, feed)
    ]


def test_words_that_nobody_knows(pooled, feed) -> None:
    """A status, a type, or a time in force of tomorrow is kept as unknown, never refused."""
    feed.take(exchange.execution_report(X="ASLEEP", x="SLEEP", o="TELEPATHIC", f="GTV"))
    [order] = orders_of(pooled, feed)
    assert (OrderStatus.UNKNOWN, OrderType.UNKNOWN, None) == (order.status, order.type, order.time_in_force)


def test_a_liquidation_without_trade_ids(pooled) -> None:
    """A fill that the exchange gives no id is kept once, by its moment."""
    feed = Feed(pooled, market=Market.UM, account=an_account())
    told = {"c": "autoclose-1", "ot": "LIQUIDATION", "x": "CALCULATED", "X": "FILLED", "l": "3", "z": "3", "L": "90"}
    for _ in range(2):
        feed.take(exchange.order_trade_update(**told))
    [order] = orders_of(pooled, feed)
    assert [(f"calculated-{exchange.START}", Decimal(3))] == [(fill.trade_id, fill.quantity) for fill in order.fills]


def test_a_long_and_a_short_kept_apart(pooled) -> None:
    """A trade told without its side of the book moves to it, once its order tells."""
    feed = Feed(pooled, market=Market.UM, account=an_account())
    trade = exchange.rest_trade(qty="3", side="BUY")
    feed.take([trade])
    assert [("BTCUSDT", PositionSide.BOTH, Decimal(3))] == [each[:3] for each in positions_of(pooled, feed)]
    feed.take(exchange.order_trade_update(ps="LONG", z="3", X="FILLED", x="TRADE", T=exchange.START + 10))
    assert [("BTCUSDT", PositionSide.LONG, Decimal(3))] == [each[:3] for each in positions_of(pooled, feed)]


def test_the_newest_balance_counts(pooled, feed) -> None:
    """A balance that comes late does not take the place of a newer one; of one moment, less is believed."""
    feed.take(exchange.account_position(at=5, USDT=("7", "1"), BTC=("1", "0")))
    feed.take(exchange.account_position(at=4, USDT=("9", "0")))
    feed.take(exchange.account_position(at=5, BTC=("2", "0")))
    held = [(asset, free, locked) for asset, free, locked, _ in state_of(pooled, feed.recorder.account)["balances"]]
    assert [("BTC", Decimal(1), Decimal(0)), ("USDT", Decimal(7), Decimal(1))] == held


def test_an_account_of_another_market(pooled, feed) -> None:
    """An account is of one market; a feed of another is refused, and nothing is written."""
    feed.take(exchange.execution_report())
    other = Feed(pooled, market=Market.UM, account=feed.recorder.account)
    with pytest.raises(InputError, match=r"belongs to market spot, not um: name another account"):
        other.take(exchange.order_trade_update(s="NEVERUSDT"))
    with Session(pooled) as session:
        assert session.scalars(select(Instrument).filter_by(symbol="NEVERUSDT")).first() is None


def test_what_the_tables_do_not_take(feed) -> None:
    """A fill of a price below zero is refused with a sentence, and the order it came with is not half written."""
    with pytest.raises(InputError, match=r"ck_fills_price_is_positive.*nothing was written"):
        feed.take(exchange.executed(7, "1", "1", L="-5"))
    assert Taken(orders=1, fills=1, positions=1) == feed.take(exchange.executed(7, "1", "1"))


async def test_asynchronous_sessions(writer, pooled) -> None:
    """An asynchronous feed ends as the other one does."""
    day = exchange.Day(exchange.chance(3), SYMBOLS, orders=5)
    engine = create_async_engine(writer.url.set(drivername="postgresql+psycopg"))
    sync, asynchronous = an_account(), an_account()
    feed = AsyncFeed(create_async_session_factory(engine), account=asynchronous)
    Feed(pooled, account=sync).take_all(day.messages)
    for message in day.messages:
        await feed.take(message)
    await feed.take_all([*day.messages, exchange.ticker_stream(SYMBOLS[0], "5"), exchange.kline_stream(SYMBOLS[0])])
    await engine.dispose()
    assert state_of(pooled, sync) == state_of(pooled, asynchronous)
