"""Live reading: from the mirror while it may be trusted, from PostgreSQL at once where it may not."""

import signal
import time
import uuid
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial

import pytest
import redis.asyncio
from installation import engine_of, run_sql
from mirroring import stoppable_valkey
from redis import Redis
from server_user import until
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool

from helios import mirrors
from helios.errors import InputError, StaleError
from helios.mirrors import values
from helios.models import Interval, OrderStatus, Side
from helios.queries import Candle, Live

SECOND = timedelta(seconds=1)


@pytest.fixture(scope="module")
def own_valkey():
    """A Valkey that tests may stop, and start again."""
    with stoppable_valkey() as server:
        yield server


@pytest.fixture
def client(own_valkey):
    client = Redis.from_url(own_valkey.url)
    yield client
    client.close()


@pytest.fixture
def relay(migrated, client):
    """A relay of the shared database that steps when told."""
    relay = mirrors.Relay(engine_of(migrated), client)
    relay.rebuild("a test begins", take_over=True)
    yield relay
    relay.close()


@pytest.fixture
def instrument(migrated, symbol):
    """An instrument with a price of this moment and ten candles."""
    run_sql(
        migrated,
        f"INSERT INTO helios_trading.instruments (exchange, market, symbol) VALUES ('binance', 'spot', '{symbol}')",
        f"""INSERT INTO helios_trading.tickers (instrument_id, last_price, bid_price, event_at)
            SELECT id, 1.50, 1.4, clock_timestamp() FROM helios_trading.instruments WHERE symbol = '{symbol}'""",
        f"""INSERT INTO helios_trading.klines
                (instrument_id, interval, open_time, open, high, low, close, volume, trades)
            SELECT id, '1m', timestamptz '2025-01-01Z' + n * interval '1 min', 2, 3, 1, 2.50, n, 7
            FROM helios_trading.instruments, generate_series(1, 10) AS n WHERE symbol = '{symbol}'""",
    )
    return ("binance", "spot", symbol)


@pytest.fixture
def account(migrated, symbol, instrument):
    """An account with two open orders, one that has ended, a position and a flat one."""
    orders = ", ".join(
        f"('{uuid.uuid4()}', '{each}', '{status}', now() - interval '{age} s')"
        for each, status, age in (("young", "NEW", 1), ("old", "PARTIALLY_FILLED", 9), ("ended", "FILLED", 5))
    )
    run_sql(
        migrated,
        f"INSERT INTO helios_trading.accounts (exchange, market, name) VALUES ('binance', 'spot', '{symbol}')",
        f"""INSERT INTO helios_trading.orders
                (id, account_id, instrument_id, client_order_id, side, type, status, price, submitted_at)
            SELECT o.id::uuid, a.id, i.id, o.name, 'BUY', 'LIMIT', o.status, 1.10, o.at
            FROM (VALUES {orders}) AS o (id, name, status, at), helios_trading.accounts AS a,
                 helios_trading.instruments AS i WHERE a.name = '{symbol}' AND i.symbol = '{symbol}'""",
        f"""INSERT INTO helios_trading.positions (account_id, instrument_id, position_side, quantity, event_at)
            SELECT a.id, i.id, p.side, p.quantity, now()
            FROM (VALUES ('LONG', 0.30), ('SHORT', 0)) AS p (side, quantity), helios_trading.accounts AS a,
                 helios_trading.instruments AS i WHERE a.name = '{symbol}' AND i.symbol = '{symbol}'""",
    )
    return ("binance", symbol)


@pytest.fixture
def reader(owner):
    with owner.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        yield connection


@pytest.fixture
def live(client):
    """One that does not mind how long a test takes after the relay's step."""
    return Live(client, max_lag=SECOND * 30)


def set_price(url, instrument, price):
    """Set the price, as somebody else does."""
    run_sql(
        url,
        f"""UPDATE helios_trading.tickers SET last_price = {price}, event_at = clock_timestamp(),
                   recorded_at = clock_timestamp()
            WHERE instrument_id = (SELECT id FROM helios_trading.instruments WHERE symbol = '{instrument[2]}')""",
    )


# --- both sides answer alike -----------------------------------------------------------------------------------


async def test_its_connections_are_its_own_to_close(relay, migrated, instrument, own_valkey):
    """As many clients as before once it is closed, sync and async; PostgreSQL answers afterwards."""
    relay.step()
    url = migrated.set(drivername="postgresql+psycopg")
    engine = create_async_engine(url, poolclass=NullPool)
    before = len(relay.client.client_list())
    with Redis.from_url(own_valkey.url) as client, engine_of(migrated).connect() as reader:
        with Live(client, max_lag=SECOND * 30) as live:
            assert live.price(reader, instrument).mirrored
            assert before < len(relay.client.client_list())
        assert not live.price(reader, instrument).mirrored
    async with AsyncSession(engine) as session, redis.asyncio.Redis.from_url(own_valkey.url) as client:
        async with Live(client, max_lag=SECOND * 30) as live:
            assert (await session.run_sync(live.price, instrument)).mirrored
            assert before < len(relay.client.client_list())
        assert not (await session.run_sync(live.price, instrument)).mirrored
    until(lambda: before == len(relay.client.client_list()))


def test_a_price_comes_from_the_mirror_and_says_so(live, relay, reader, instrument):
    """The mirror's price has the value, the moment and the age that PostgreSQL's has."""
    assert not live.price(reader, instrument).mirrored
    relay.step()
    seen, there = live.price(reader, instrument), Live(None).price(reader, instrument)
    assert (True, False) == (seen.mirrored, there.mirrored)
    assert (Decimal("1.50"), Decimal("1.4"), None) == (seen.value, seen.bid, seen.ask)
    assert (there.as_of, there.instrument_id) == (seen.as_of, seen.instrument_id)
    assert timedelta(0) < seen.age < SECOND * 60
    assert abs(there.age - seen.age) < SECOND * 5


def test_rows_are_the_same_from_either_side(live, relay, reader, instrument, account):
    """Candles, orders and positions have the same fields and values, whoever answers."""
    relay.step()
    nobody = Live(None)
    for one, other in (
        (live.klines(reader, instrument, Interval.M1, last=3), nobody.klines(reader, instrument, Interval.M1, last=3)),
        (live.open_orders(reader, account), nobody.open_orders(reader, account)),
        (live.positions(reader, account), nobody.positions(reader, account)),
    ):
        assert (True, False) == (one.mirrored, other.mirrored)
        assert other.rows == one.rows
        assert [type(value) for row in other.rows for value in row] == [
            type(value) for row in one.rows for value in row
        ]
        assert datetime.now(UTC) - SECOND * 60 < one.as_of <= datetime.now(UTC) + SECOND
    newest = live.klines(reader, instrument, Interval.M1, last=3).rows[-1]
    assert (
        Candle(
            datetime(2025, 1, 1, 0, 10, tzinfo=UTC), *map(Decimal, ("2", "3", "1", "2.50", "10")), None, 7, None, None
        )
        == newest
    )
    oldest, youngest = live.open_orders(reader, account).rows
    assert ("old", "young", Side.BUY, OrderStatus.PARTIALLY_FILLED) == (
        oldest.client_order_id, youngest.client_order_id, oldest.side, oldest.status,
    )  # fmt: skip
    [position] = live.positions(reader, account).rows
    assert (Decimal("0.30"), instrument[2]) == (position.quantity, position.symbol)


def test_none_is_told_apart_from_absent(live, relay, migrated, reader, symbol):
    """An account without orders has none by the mirror's own word; one that is not there is an error."""
    run_sql(
        migrated,
        f"INSERT INTO helios_trading.accounts (exchange, market, name) VALUES ('binance', 'spot', '{symbol}')",
    )
    relay.step()
    answer = live.open_orders(reader, ("binance", symbol))
    assert ([], True) == (answer.rows, answer.mirrored)
    for ask in (live.open_orders, live.positions):
        with pytest.raises(InputError, match="there is no account 'nobody' at 'binance' here"):
            ask(reader, ("binance", "nobody"))
    with pytest.raises(InputError, match="there is no instrument 'binance spot NONE' here"):
        live.price(reader, ("binance", "spot", "NONE"))
    with pytest.raises(InputError, match="last=0 is not a number of candles"):
        live.klines(reader, ("binance", "spot", symbol), Interval.M1, last=0)
    for ask in (partial(live.klines, last=1), live.running):
        with pytest.raises(InputError, match="'7m' is not an interval: choose one of 1s, 1m"):
            ask(reader, ("binance", "spot", symbol), "7m")


def test_more_candles_than_the_mirror_holds(live, relay, reader, instrument):
    """What the mirror cannot prove to be all is asked of PostgreSQL."""
    relay.step()
    answer = live.klines(reader, instrument, Interval.M1, last=11)
    assert (10, False) == (len(answer.rows), answer.mirrored)


async def test_an_asynchronous_session_reads_the_same(relay, own_valkey, migrated, instrument, account):
    """With a client of redis.asyncio, by run_sync, as other queries."""
    relay.step()
    engine = create_async_engine(migrated.set(drivername="postgresql+psycopg"), poolclass=NullPool)
    client = redis.asyncio.Redis.from_url(own_valkey.url)
    live = Live(client, max_lag=SECOND * 30)
    async with AsyncSession(engine) as session:
        price = await session.run_sync(live.price, instrument)
        orders = await session.run_sync(live.open_orders, account)
        assert (True, True) == (price.mirrored, orders.mirrored)
        own_valkey.tell(signal.SIGSTOP)
        try:
            assert not (await session.run_sync(live.price, instrument)).mirrored
        finally:
            own_valkey.tell(signal.SIGCONT)
    await live.client.aclose()
    await client.aclose()
    await engine.dispose()


# --- what may not be trusted -----------------------------------------------------------------------------------


def seen_after(live, reader, instrument, happens):
    """Read by the mirror, let something happen, and read again."""
    assert live.price(reader, instrument).mirrored
    happens()
    return live.price(reader, instrument)


def test_a_dead_relay_sends_readers_to_postgresql(client, relay, migrated, reader, instrument):
    """Nobody relays a newer price: once the heartbeat is older than a second, PostgreSQL's counts."""
    live = Live(client)
    relay.step()
    home = live.meet(reader).mirror
    set_price(migrated, instrument, 9)
    relay.client.pexpire(home.place.heartbeat, 60_000 - 1_001)
    price = live.price(reader, instrument)
    assert (Decimal(9), False) == (price.value, price.mirrored)
    relay.client.delete(home.place.heartbeat)
    assert not live.price(reader, instrument).mirrored


def test_a_mirror_that_lags_more_than_allowed(live, relay, reader, instrument, account):
    """`max_lag` bounds how far the mirror may be behind; what lags more comes from PostgreSQL."""
    relay.step()
    home = live.meet(reader).mirror
    relay.client.pexpire(home.place.heartbeat, 60_000 - 5_001)
    assert not live.open_orders(reader, account, max_lag=SECOND * 5).mirrored
    assert not live.price(reader, instrument, max_lag=SECOND * 5).mirrored
    lagging = live.open_orders(reader, account)
    assert lagging.mirrored
    assert lagging.as_of < datetime.now(UTC) - SECOND * 4


def test_a_price_older_than_asked_is_refused_by_both(live, relay, migrated, reader, instrument):
    """A mirror in time holds an old price: PostgreSQL is asked, and has none younger."""
    run_sql(
        migrated,
        f"""UPDATE helios_trading.tickers SET event_at = now() - interval '9 s' WHERE instrument_id =
            (SELECT id FROM helios_trading.instruments WHERE symbol = '{instrument[2]}')""",
    )
    relay.step()
    assert live.price(reader, instrument).mirrored
    with pytest.raises(StaleError, match="at most 2 s were asked for"):
        live.price(reader, instrument, max_lag=SECOND * 2)


def test_an_emptied_redis(live, relay, reader, instrument):
    """After FLUSHALL nothing vouches for anything, until the relay has mirrored all anew."""
    relay.step()
    assert not seen_after(live, reader, instrument, relay.client.flushall).mirrored
    relay.close()  # one that runs notices by itself, within a tenth of a second
    relay.step()
    assert live.price(reader, instrument).mirrored


def test_a_key_that_was_evicted(live, relay, reader, instrument, account):
    """A price, a series and a hash that Redis dropped are asked of PostgreSQL; so is a hash that came back in part."""
    relay.step()
    place = live.meet(reader).mirror.place
    relay.client.delete(
        place.key("ticker", *instrument), place.key("klines", *instrument, "1m"), place.key("orders", *account)
    )
    assert not live.price(reader, instrument).mirrored
    assert not live.klines(reader, instrument, Interval.M1, last=3).mirrored
    relay.client.hset(place.key("orders", *account), str(uuid.uuid4()), "{}")
    assert (2, False) == ((answer := live.open_orders(reader, account)) and len(answer.rows), answer.mirrored)


def test_a_redis_that_is_down_costs_nothing(live, relay, own_valkey, reader, instrument, monkeypatch):
    """Killed, it is asked at most once a second; back again, it answers again."""
    relay.step()
    own_valkey.end(signal.SIGKILL)
    asked = []
    asking = mirrors.Mirror.texts
    monkeypatch.setattr(mirrors.Mirror, "texts", lambda *arguments: asked.append(arguments) or asking(*arguments))
    try:
        began = time.monotonic()
        assert not any(live.price(reader, instrument).mirrored for _ in range(100))
        assert 1 <= len(asked) <= 1 + (time.monotonic() - began)
    finally:
        own_valkey.start()
    relay.close()
    relay.step()
    live.aside_until = dict.fromkeys(live.aside_until, 0.0)  # as if the second had passed
    assert live.price(reader, instrument).mirrored


def test_a_redis_that_is_paused_costs_its_patience_once(relay, client, own_valkey, reader, instrument, monkeypatch):
    """Stopped, it is waited for by one read, no longer than told; the others go on to PostgreSQL."""
    monkeypatch.setattr("helios.queries.live.ASIDE", 60.0)  # a busy machine may take a second for twenty reads
    live = Live(client, max_lag=SECOND * 30, patience=timedelta(milliseconds=50))
    relay.step()
    assert live.price(reader, instrument).mirrored
    own_valkey.tell(signal.SIGSTOP)
    try:
        began = time.monotonic()
        assert not live.price(reader, instrument).mirrored
        once = time.monotonic() - began
        assert 0.05 <= once < 0.5
        asked = dict(live.aside_until)
        assert not any(live.price(reader, instrument).mirrored for _ in range(20))
        assert asked == live.aside_until
    finally:
        own_valkey.tell(signal.SIGCONT)


def test_another_servers_mirrors_are_not_read(live, relay, reader, instrument):
    """A heartbeat of another server vouches for nothing."""
    relay.step()
    relay.client.set(live.meet(reader).mirror.place.heartbeat, "1", px=60_000)
    assert not live.price(reader, instrument).mirrored


@pytest.mark.parametrize("form", ["0 200", "99 200"])
def test_values_of_another_form_are_not_read(relay, client, reader, instrument, account, monkeypatch, form):
    """A Helios that writes values otherwise relays, older or newer: its values are not misread, PostgreSQL answers."""
    with monkeypatch.context() as patch:
        patch.setattr(values, "FORM", form)
        relay.rebuild("by another version of Helios")
    live = Live(client, max_lag=SECOND * 30)
    assert not live.price(reader, instrument).mirrored
    assert not live.klines(reader, instrument, Interval.M1, last=3).mirrored
    assert not live.open_orders(reader, account).mirrored
    relay.rebuild("by this one")
    assert live.price(reader, instrument).mirrored


def test_a_renamed_instrument_is_not_read_by_its_old_name(live, relay, migrated, reader, instrument):
    """Its old name has nothing, in the mirror as in PostgreSQL; its new name has the price."""
    relay.step()
    run_sql(
        migrated, f"UPDATE helios_trading.instruments SET symbol = 'N{instrument[2]}' WHERE symbol = '{instrument[2]}'"
    )
    relay.step()
    with pytest.raises(InputError, match="there is no instrument"):
        live.price(reader, instrument)
    assert live.price(reader, (*instrument[:2], f"N{instrument[2]}")).mirrored


def test_a_read_by_the_mirror_asks_postgresql_nothing(live, relay, owner, reader, instrument):
    """Once it has met PostgreSQL, a session that is not connected yet stays so."""
    relay.step()
    live.price(reader, instrument)
    with owner.connect() as closed:
        closed.execute(text("SELECT 1"))
    assert closed.closed
    assert live.price(closed, instrument).mirrored
