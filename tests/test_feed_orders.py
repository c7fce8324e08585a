"""Orders, fills, positions and balances end the same, whatever the exchange says first, twice or late."""

import uuid
from collections.abc import Iterator
from typing import Any

import exchange
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, create_engine, select
from sqlalchemy.orm import Session

from helios import queries
from helios.feed import Feed
from helios.models import Account, Balance, Fill, Instrument, Market, Order, OrderHistory, Position

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
        assert [] == queries.position_differences(connection)
