"""Running candles: the feed tells them to Redis, readers have them beside the closed ones, none for long."""

import json
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import exchange
import pytest
import redis.asyncio
from chaos_mirror_servers import Valkey
from installation import engine_of
from mirroring import stoppable_valkey
from redis import Redis
from server_user import until
from sqlalchemy import URL, Engine, create_engine
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.pool import NullPool

from helios import mirrors
from helios.feed import AsyncFeed, Feed, Taken
from helios.mirrors import Mirror, values
from helios.mirrors.keys import RUNNING
from helios.models import Interval
from helios.queries import Live

MINUTE = timedelta(minutes=1)


@pytest.fixture(scope="module")
def pooled(writer: Engine) -> Iterator[Engine]:
    engine = create_engine(writer.url)
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def own_valkey() -> Iterator[Valkey]:
    with stoppable_valkey() as server:
        yield server


@pytest.fixture
def client(own_valkey) -> Iterator[Redis]:
    client = Redis.from_url(own_valkey.url)
    yield client
    client.close()


@pytest.fixture
def feed(pooled, client) -> Feed:
    return Feed(pooled, redis=client)


@pytest.fixture
def reader(pooled):
    with pooled.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        yield connection


@pytest.fixture
def relay(migrated: URL, client: Redis) -> Iterator[mirrors.Relay]:
    relay = mirrors.Relay(engine_of(migrated), client)
    relay.rebuild("a test begins", take_over=True)
    yield relay
    relay.close()


def now() -> int:
    """This minute's middle: a candle of it runs for the length of a test, or has closed seconds ago."""
    return round(time.time()) // 60 * 60_000 + 30_000


def candle(symbol: str, at: int, *, closed: bool = False, volume: str = "1", close: str = "100.5") -> dict[str, Any]:
    message = exchange.kline_stream(symbol, closed=closed, close=close, at=at)
    message["k"]["v"] = volume
    return message


def ask(live: Live, reader: Any, symbol: str) -> Any:
    return live.klines(reader, ("binance", "spot", symbol), Interval.M1, last=1, running=True)


def test_a_running_candle_is_read_beside_the_closed_ones(feed, client, relay, reader, symbol):
    """From the mirror and from PostgreSQL alike; without asking for it there is none."""
    at = now()
    assert Taken(klines=1, running=0) == feed.take(candle(symbol, at - 60_000, closed=True))
    assert Taken(running=1) == feed.take(candle(symbol, at, close="100.70"))
    live = Live(client, max_lag=timedelta(seconds=30))
    answers = [ask(live, reader, symbol)]
    relay.step()
    answers.append(ask(live, reader, symbol))
    assert [False, True] == [each.mirrored for each in answers]
    for each in answers:
        assert (Decimal("100.70"), 100) == (each.running.close, each.running.trades)
        assert [each.running.open_time - MINUTE] == [row.open_time for row in each.rows]
    assert live.klines(reader, ("binance", "spot", symbol), Interval.M1, last=1).running is None
    assert ask(Live(None), reader, symbol).running is None


def test_a_candle_that_has_closed_runs_no_longer(feed, client, reader, symbol):
    """Once the closed one is there, what Redis still holds of it is not given."""
    at = now()
    feed.take(candle(symbol, at))
    live = Live(client)
    assert live.running(reader, ("binance", "spot", symbol), Interval.M1) is not None
    feed.take(candle(symbol, at, closed=True))
    answer = ask(live, reader, symbol)
    assert (1, None) == (len(answer.rows), answer.running)


def test_late_messages_take_nothing_back(feed, client, reader, symbol):
    """Neither an earlier state of the candle, nor the candle before, nor one that ran after its close."""
    at = now()
    live = Live(client)
    burst = [candle(symbol, at, volume=each) for each in ("2", "5", "3")]
    assert Taken(running=1) == feed.take_all(burst)
    for late in (candle(symbol, at, volume="4"), candle(symbol, at - 60_000, volume="9")):
        assert Taken(running=0) == feed.take(late)
    assert Decimal(5) == live.running(reader, ("binance", "spot", symbol), Interval.M1).volume
    feed.take(candle(symbol, at, volume="6", closed=True))
    assert Taken(running=0) == feed.take(candle(symbol, at, volume="5.5"))


def test_a_candle_of_yesterday_is_not_told(feed, symbol):
    """Messages that are read again long after do not run now."""
    assert Taken(running=0) == feed.take(candle(symbol, now() - 86_400_000))


def test_a_dead_feed_leaves_no_candle_that_seems_to_run(feed, client, reader, symbol):
    """Its key expires by itself."""
    feed.take(candle(symbol, now()))
    key = Mirror.of(reader, client).place.key(RUNNING, "binance", "spot", symbol, "1m")
    assert 0 < client.pttl(key) <= 10_000
    client.delete(key)
    assert Live(client).running(reader, ("binance", "spot", symbol), Interval.M1) is None


@pytest.mark.parametrize("other", ["another form", "another server"])
def test_a_running_candle_of_another_form_or_server_is_not_misread(feed, client, reader, symbol, other, monkeypatch):
    """It says whose it is, as the heartbeat does of all the rest."""
    with monkeypatch.context() as patch:
        if other == "another form":
            patch.setattr(values, "FORM", "99 200")
        else:
            patch.setattr(values, "voucher", lambda _: "42 1 200")
            patch.setattr("helios.mirrors.reading.voucher", lambda _: "42 1 200")
        assert Taken(running=1) == feed.take(candle(symbol, now()))
    assert Live(client).running(reader, ("binance", "spot", symbol), Interval.M1) is None


def test_a_redis_that_is_paused_costs_its_patience_once(feed, own_valkey, symbol, caplog):
    """What goes into tables goes there; the rest is left out, and told of once."""
    feed.take(candle(symbol, now()))
    own_valkey.tell(signal.SIGSTOP)
    try:
        began = time.monotonic()
        numbers = map(str, range(2, 12))
        bursts = [[candle(symbol, now(), volume=each), exchange.ticker_stream(symbol, each)] for each in numbers]
        taken = [feed.take_all(each) for each in bursts]
        assert [(0, 1)] * 10 == [(each.running, each.tickers) for each in taken]
        assert time.monotonic() - began < 2
    finally:
        own_valkey.tell(signal.SIGCONT)
    assert 1 == len([each for each in caplog.records if "running candles are not told" in each.getMessage()])


def test_an_answers_last_candle_runs(feed, client, reader, symbol):
    """Of arrays, the one that closes after their receipt."""
    hour = round(time.time()) // 3600 * 3_600_000
    rows = [exchange.kline_row(hour - 3_600_000), exchange.kline_row(hour, close="7.5")]
    received_at = datetime.fromtimestamp(hour / 1000 + 1, UTC)  # whatever the clock says where an hour turns
    taken = feed.take(json.loads(json.dumps(rows)), symbol=symbol, interval="1h", received_at=received_at)
    assert Taken(klines=1, running=1) == taken
    running = Live(client).running(reader, ("binance", "spot", symbol), Interval.H1)
    assert (Decimal("7.5"), datetime.fromtimestamp(hour / 1000, UTC)) == (running.close, running.open_time)


async def test_an_asynchronous_feed_tells_the_same(writer, own_valkey, reader, client, symbol):
    """With a client of redis.asyncio; the event loop goes on meanwhile."""
    engine = create_async_engine(writer.url.set(drivername="postgresql+psycopg"), poolclass=NullPool)
    factory: async_sessionmaker[AsyncSession] = async_sessionmaker(engine)
    clients = len(client.client_list())
    async with redis.asyncio.Redis.from_url(own_valkey.url) as asynchronous:
        async with AsyncFeed(factory, redis=asynchronous) as feed:
            assert Taken(running=1) == await feed.take(candle(symbol, now(), close="3.5"))
        async with factory() as session, Live(asynchronous) as live:
            running = await session.run_sync(live.running, ("binance", "spot", symbol), Interval.M1)
    assert Decimal("3.5") == running.close
    until(lambda: clients == len(client.client_list()))
    assert running == Live(client).running(reader, ("binance", "spot", symbol), Interval.M1)
    await engine.dispose()


def test_its_connections_are_its_own_to_close(pooled, client, symbol):
    """As many clients as before once the feed is closed."""
    before = len(client.client_list())
    with Feed(pooled, redis=client) as feed:
        assert Taken(running=1) == feed.take(candle(symbol, now()))
        assert before < len(client.client_list())
    until(lambda: before == len(client.client_list()))
