"""The tracker: what sessions of every kind inserted, as far as it was committed, with test, table and key."""

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import NullPool

from helios.errors import InputError
from helios.models import Account, Instrument, Kline, Ticker
from helios.testing import Tracker


@pytest.fixture
def factory(owner):
    """Sessions whose rows are taken back with the connection's own transaction."""
    with owner.connect() as connection:
        transaction = connection.begin()
        yield sessionmaker(connection, join_transaction_mode="create_savepoint", expire_on_commit=False)
        transaction.rollback()


@pytest.fixture
def tracker(factory):
    tracker = Tracker()
    tracker.follow(factory)
    yield tracker
    tracker.close()


def instrument(symbol: str, number: int = 0) -> Instrument:
    return Instrument(exchange="binance", market="spot", symbol=f"{symbol}{number}")


def names(tracker: Tracker) -> list[str]:
    return [each.table for each in tracker.inserted]


def test_an_insert_is_told_with_test_table_and_key(tracker, factory, symbol):
    """What a commit made certain is logged under the test that runs."""
    tracker.test = "test_orders.py::test_one"
    with factory.begin() as session:
        row = instrument(symbol)
        session.add(row)
    tracker.test = "test_orders.py::test_two"
    [told] = tracker.of("test_orders.py::test_one")
    assert ("test_orders.py::test_one", "instruments", (row.id,)) == (told.test, told.table, told.key)
    assert f"instruments {row.id}" == str(told)
    assert [] == tracker.of("test_orders.py::test_two")


def test_a_cascade_and_a_merge_are_told_too(tracker, factory, symbol):
    """Rows that come along with another, and those that merge inserts."""
    with factory.begin() as session:
        row = instrument(symbol)
        row.ticker = Ticker(last_price="1.5", event_at=session.scalar(text("SELECT now()")))
        session.add(row)
        session.merge(Account(exchange="binance", name=symbol, market="spot"))
    assert ["accounts", "instruments", "tickers"] == sorted(names(tracker))


def test_a_rollback_leaves_no_story(tracker, factory, symbol):
    """Neither a rollback, nor a session that is closed without a commit."""
    with factory() as session:
        session.add(instrument(symbol))
        session.flush()
        session.rollback()
        session.add(instrument(symbol, 1))
        session.flush()
    assert [] == tracker.inserted


def test_a_savepoint_counts_as_it_ends(tracker, factory, symbol):
    """Of two savepoints the one rolled back is forgotten; one released inside one rolled back as well."""
    with factory.begin() as session:
        with session.begin_nested():
            session.add(kept := instrument(symbol, 1))
        with session.begin_nested() as outer:
            with session.begin_nested():
                session.add(instrument(symbol, 2))
            outer.rollback()
        assert [] == tracker.inserted
    assert [(kept.id,)] == [each.key for each in tracker.inserted]


def test_a_released_savepoint_in_a_transaction_that_fails_is_forgotten(tracker, factory, symbol):
    """The commit of a savepoint is not the commit of the transaction."""
    with pytest.raises(ZeroDivisionError):
        with factory.begin() as session:
            with session.begin_nested():
                session.add(instrument(symbol))
            raise ZeroDivisionError
    assert [] == tracker.inserted


def test_the_same_session_again_starts_afresh(tracker, factory, symbol):
    """Each transaction of a session is told once."""
    with factory() as session:
        for number in range(3):
            session.add(instrument(symbol, number))
            session.commit()
    assert 3 == len(tracker.inserted)


def test_scoped_sessions_are_followed(factory, symbol):
    """A scoped_session hands over what its factory makes."""
    tracker = Tracker()
    scoped = scoped_session(factory)
    tracker.follow(scoped)
    tracker.follow(scoped)
    scoped.add(instrument(symbol))
    scoped.commit()
    scoped.remove()
    tracker.close()
    assert ["instruments"] == names(tracker)


async def test_asynchronous_sessions_are_followed(migrated, symbol):
    """An async_sessionmaker, alone or scoped; other asynchronous sessions are not its business."""
    engine = create_async_engine(migrated.set(drivername="postgresql+psycopg"), poolclass=NullPool)
    try:
        async with engine.connect() as connection:
            outer = await connection.begin()
            options = {"bind": connection, "join_transaction_mode": "create_savepoint"}
            factory = async_sessionmaker(**options)
            tracker = Tracker()
            tracker.follow(async_scoped_session(factory, scopefunc=lambda: 1))
            async with factory.begin() as session:
                session.add(instrument(symbol))
            async with AsyncSession(**options) as other, other.begin():
                other.add(instrument(symbol, 1))
            await outer.rollback()
    finally:
        await engine.dispose()
    assert ["instruments"] == names(tracker)


def test_a_key_of_several_columns_and_its_mirrors(factory, symbol):
    """The key is told whole, and so are the Redis keys that show the row."""
    tracker = Tracker(mirrors=lambda instance: [f"m:{instance.interval}"])
    tracker.follow(factory)
    with factory.begin() as session:
        moment = session.scalar(text("SELECT date_trunc('hour', now())"))
        prices = dict.fromkeys(("open", "high", "low", "close", "volume"), 1)
        session.add(Kline(instrument_id=7, interval="1h", open_time=moment, **prices))
    tracker.close()
    assert [((7, "1h", moment), ("m:1h",))] == [(each.key, each.mirrors) for each in tracker.inserted]


def test_a_two_phase_commit_is_told(migrated, symbol):
    """Prepared and committed counts as committed."""
    engine = create_engine(migrated, poolclass=NullPool)
    factory = sessionmaker(engine, twophase=True, expire_on_commit=False)
    tracker = Tracker()
    tracker.follow(factory)
    with factory() as session:
        row = instrument(symbol)
        session.add(row)
        session.prepare()
        assert [] == tracker.inserted
        session.commit()
        key = row.id
        session.delete(row)
        session.commit()
    assert [(key,)] == [each.key for each in tracker.inserted]


def test_who_is_not_followed_any_more_is_not_told(tracker, factory, symbol):
    """After close() nothing is logged."""
    tracker.close()
    with factory.begin() as session:
        session.add(instrument(symbol))
    assert [] == tracker.inserted


def test_only_session_factories_are_followed(owner):
    """What is no factory is refused with its repr; a Session class is one."""
    with pytest.raises(InputError, match="is no session factory: pass a sessionmaker"):
        Tracker().follow(owner)
    tracker = Tracker()
    tracker.follow(type("Own", (Session,), {}))
    tracker.close()
