"""Orphans: what looks like test data is found with all that hangs on it; what is real is never deleted."""

import uuid

import pytest
import redis
from sqlalchemy import Column, ForeignKey, Integer, MetaData, Table, Text, func, insert, select, text

from helios.errors import HeliosError
from helios.models import Account, Fill, Instrument, Kline, Order, Ticker, metadata
from helios.testing import orphans
from helios.testing.orphans import Rows


@pytest.fixture
def connection(owner):
    """A connection whose rows are rolled back."""
    with owner.connect() as connection:
        transaction = connection.begin()
        yield connection
        transaction.rollback()


@pytest.fixture
def rows(connection):
    return Rows(connection, metadata, orphans.links_of(metadata))


def add(connection, model, **values):
    return connection.execute(insert(model).values(**values).returning(*model.__table__.primary_key.columns)).one()


def instrument(connection, symbol: str) -> int:
    (key,) = add(connection, Instrument, exchange=f"x{uuid.uuid4().hex}", market="spot", symbol=symbol)
    add(connection, Ticker, instrument_id=key, last_price="1.5", event_at=func.now())
    candle = dict.fromkeys(("open", "high", "low", "close", "volume"), 1)
    add(connection, Kline, instrument_id=key, interval="1h", open_time=text("date_trunc('hour', now())"), **candle)
    return key


def order(connection, instrument_id: int, **values) -> uuid.UUID:
    (account,) = add(connection, Account, exchange="binance", market="spot", name=uuid.uuid4().hex)
    given = {"side": "BUY", "type": "LIMIT", "price": 1, "quantity": 1, "status": "NEW", "submitted_at": func.now()}
    (key,) = add(connection, Order, account_id=account, instrument_id=instrument_id, **given, **values)
    add(connection, Fill, order_id=key, trade_id="1", price=1, quantity=1, filled_at=func.now())
    return key


@pytest.mark.parametrize("symbol", ["TESTUSDT", "test", "DUMMYBTC", "TEST-BTC-USDT", "MOCK1"])
def test_symbols_that_look_like_tests(rows, connection, symbol):
    """A symbol that begins like a test is found, with the column and value that look so."""
    key = instrument(connection, symbol)
    found = [each for each in rows.find() if each.key == (key,)]
    assert [("instruments", f"symbol {symbol!r}", "")] == [(each.place, each.looks, each.real) for each in found]


@pytest.mark.parametrize("symbol", ["BTCUSDT", "LATESTUSDT", "CONTESTUSDT", "ATTESTBTC", "1TESTUSDT"])
def test_symbols_that_do_not(rows, connection, symbol):
    """A word inside another is no sign."""
    key = instrument(connection, symbol)
    assert [] == [each for each in rows.find() if each.key == (key,)]


@pytest.mark.parametrize("name", ["test-1", "pytest_9f", "TEST", "tst:7", "fake order"])
def test_client_ids_that_look_like_tests(rows, connection, symbol, name):
    """A client's order id with such a first word."""
    key = order(connection, instrument(connection, symbol), client_order_id=name)
    assert [f"client_order_id {name!r}"] == [each.looks for each in rows.find() if each.key == (key,)]


@pytest.mark.parametrize("name", ["testify-1", "contest-1", "grid-test", "mockingbird"])
def test_client_ids_that_do_not(rows, connection, symbol, name):
    """The word must stand alone, and first."""
    key = order(connection, instrument(connection, symbol), client_order_id=name)
    assert [] == [each for each in rows.find() if each.key == (key,)]


def test_what_hangs_on_a_row_is_counted_and_goes_with_it(rows, connection):
    """Tickers, orders, fills and history, and klines, which have no foreign key."""
    key = instrument(connection, "TESTUSDT")
    order(connection, key, client_order_id="7f")
    found = next(each for each in rows.find() if each.key == (key,))
    expected = {"tickers": 1, "klines": 1, "orders": 1, "fills": 1, "order_history": 1}
    assert expected == found.hanging
    assert expected | {"instruments": 1} == rows.delete([found])
    assert 0 == connection.scalar(select(func.count()).where(Kline.instrument_id == key))
    assert [] == [each for each in rows.find() if each.key == (key,)]


def test_what_the_exchange_knows_is_spared(rows, connection):
    """A symbol may be called TESTUSDT and trade: its order is real, and so is everything it hangs on."""
    key = instrument(connection, "TESTUSDT")
    order(connection, key, client_order_id="test-1", exchange_order_id="98765")
    found = [each for each in rows.find() if each.key == (key,) or each.place == "orders"]
    assert {"1 of its orders are known to the exchange"} == {each.real for each in found}
    with pytest.raises(HeliosError, match="is not deleted: 1 of its orders are known to the exchange"):
        rows.delete(found)
    assert 1 == connection.scalar(select(func.count()).where(Instrument.id == key))


def test_what_became_real_since_it_was_listed_is_spared(rows, connection):
    """Between the list and the deletion the exchange has taken the order."""
    key = order(connection, instrument(connection, "TESTUSDT"), client_order_id="test-1")
    listed = [each for each in rows.find() if each.key == (key,)]
    connection.execute(text("UPDATE helios_trading.orders SET exchange_order_id = '1' WHERE id = :id"), {"id": key})
    with pytest.raises(HeliosError, match="known to the exchange"):
        rows.delete(listed)


def test_a_metadata_of_ones_own(connection):
    """Columns count by their names, in any tables, children of children included; tables without a key do not."""
    own = MetaData(schema="pg_temp")
    shop = Table("shops", own, Column("id", Integer, primary_key=True), Column("name", Text))
    till = Table("tills", own, Column("id", Integer, primary_key=True), Column("shop", ForeignKey(shop.c.id)))
    Table("slips", own, Column("till", ForeignKey(till.c.id), primary_key=True))
    Table("notes", own, Column("name", Text))
    for statement in (
        "CREATE TEMP TABLE shops (id int PRIMARY KEY, name text)",
        "CREATE TEMP TABLE tills (id int PRIMARY KEY, shop int REFERENCES shops)",
        "CREATE TEMP TABLE slips (till int PRIMARY KEY REFERENCES tills)",
        "CREATE TEMP TABLE notes (name text)",
        "INSERT INTO shops VALUES (1, 'test shop'), (2, 'Tester & Sons')",
        "INSERT INTO tills VALUES (1, 1), (2, 1), (3, 2)",
        "INSERT INTO slips VALUES (2), (3)",
        "INSERT INTO notes VALUES ('test')",
    ):
        connection.execute(text(statement))
    rows = Rows(connection, own)
    (found,) = rows.find()
    assert ((1,), {"tills": 2, "slips": 1}) == (found.key, found.hanging)
    assert {"shops": 1, "tills": 2, "slips": 1} == rows.delete([found])
    assert [(2, "Tester & Sons")] == connection.execute(select(shop)).all()


def test_keys_that_look_like_tests(valkey, symbol):
    """A word between colons, or a symbol that is an orphan; Helios's own keys are none of its business."""
    with redis.Redis.from_url(valkey.render_as_string(hide_password=False)) as client:
        mine = [f"test:{symbol}", f"prices:{{fake}}:{symbol}", f"price:{symbol}", f"pytest-{symbol}"]
        not_mine = [f"latest:{symbol}x", f"price:{symbol}x", f"helios:test:{symbol}"]
        client.mset(dict.fromkeys(mine + not_mine, "1"))
        found = {key.decode() for each in orphans.keys(client, [symbol]) for key in each.key}
        client.delete(*mine, *not_mine)
    assert set(mine) == {each for each in found if symbol in each}
