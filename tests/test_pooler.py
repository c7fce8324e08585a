"""What services do, through pgbouncer in transaction mode; and who says that a direct connection is needed."""

import asyncio
import os
import signal
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import exchange
import make_klines
import psycopg
import psycopg2
import pytest
from installation import ask, finish, libpq, rows, run_sql, start, use, variables
from pooling import bouncer, needs_pgbouncer, through
from replicas import pair
from server_user import until
from sqlalchemy import URL, select, text
from sqlalchemy.exc import DBAPIError

from helios import db, mirrors, queries, schema
from helios.backfill import Mode, load, recognise
from helios.errors import PoolerError
from helios.feed import AsyncFeed, Feed
from helios.models import Account, Instrument, Interval, Kline, Market, Ticker
from helios.settings import Settings
from helios.testing import tracked

pytestmark = needs_pgbouncer
JANUARY = datetime(2025, 1, 1, tzinfo=UTC)
NAMED = "leads through a pooler.*DATABASE_MIGRATION_URL"
PID = text("SELECT pg_backend_pid()")


@pytest.fixture(scope="module")
def pooler(migrated, writer):
    """The folder of a pooler's socket, with two connections to PostgreSQL for each login."""
    with bouncer(migrated.query["host"], [migrated.username, writer.url.username]) as sockets:
        yield sockets


@pytest.fixture(scope="module")
def lenient(migrated, writer):
    """The same of a pooler that drops what it does not know, as many are set up."""
    users = [migrated.username, writer.url.username]
    with bouncer(migrated.query["host"], users, more="ignore_startup_parameters = options") as sockets:
        yield sockets


@pytest.fixture
def url(pooler, writer, monkeypatch):
    """A service's address: a writer's login, through the pooler; and the settings for it."""
    use(monkeypatch, through(writer.url, pooler))
    return through(writer.url, pooler)


@pytest.fixture
def engine(url):
    """A service's engine."""
    engine = db.create_engine()
    yield engine
    engine.dispose()


@pytest.fixture
async def async_engine(url):
    """An asynchronous service's engine."""
    engine = db.create_async_engine()
    yield engine
    await engine.dispose()


@pytest.fixture
def counted(migrated, writer):
    """A row that services count up in."""
    name = f"counted_{uuid.uuid4().hex[:8]}"
    run_sql(migrated, f"CREATE TABLE {name} AS SELECT 0 AS n", f"GRANT ALL ON {name} TO {writer.url.username}")
    yield name
    run_sql(migrated, f"DROP TABLE {name}")


def make_instrument(migrated, symbol):
    """List an instrument with a price; gives its id."""
    run_sql(
        migrated,
        f"INSERT INTO helios_trading.instruments (exchange, market, symbol) VALUES ('binance', 'spot', '{symbol}')",
        f"""INSERT INTO helios_trading.tickers (instrument_id, last_price, event_at)
            SELECT id, 1.50, clock_timestamp() FROM helios_trading.instruments WHERE symbol = '{symbol}'""",
    )
    return ask(migrated, "SELECT id FROM helios_trading.instruments WHERE symbol = :symbol", symbol=symbol)


# --- a pooler is recognised ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_a_pooler_is_told_from_postgresql(migrated, mode):
    """By both drivers, in either mode; a connection that is not in autocommit is left in no transaction."""
    with bouncer(migrated.query["host"], [migrated.username], mode=mode) as sockets:
        for address, expected in ((migrated, False), (through(migrated, sockets), True)):
            for driver in (psycopg2, psycopg):
                connection = driver.connect(libpq(address))
                assert expected is db.pooled(connection)
                connection.autocommit = True  # refused inside of a transaction
                assert expected is db.pooled(connection)
                connection.close()


# --- what services do ------------------------------------------------------------------------------------------


def test_sessions(engine, migrated, counted):
    """Eight threads over two connections of the server: nothing is lost, and they do share."""
    factory = db.create_session_factory(engine)

    def count(_):
        with factory.begin() as session:
            session.execute(text(f"UPDATE {counted} SET n = n + 1"))
            return session.scalar(PID)

    with ThreadPoolExecutor(8) as threads:
        processes = set(threads.map(count, range(80)))
    assert 80 == ask(migrated, f"SELECT n FROM {counted}")
    assert len(processes) <= 2


async def test_asynchronous_sessions(async_engine, migrated, counted):
    """The same statement many times on changing connections: psycopg 3 would have prepared it from the fifth on."""
    factory = db.create_async_session_factory(async_engine)

    async def count():
        for _ in range(10):
            async with factory.begin() as session:
                await session.execute(text(f"UPDATE {counted} SET n = n + :more"), {"more": 1})

    await asyncio.gather(*(count() for _ in range(8)))
    assert 80 == ask(migrated, f"SELECT n FROM {counted}")


def test_objects_and_isolation_levels(engine, symbol):
    """Objects with exact numbers; an isolation level holds for its transaction, and leaks into no other."""
    factory = db.create_session_factory(engine)
    with factory.begin() as session:
        session.connection(execution_options={"isolation_level": "SERIALIZABLE"})
        instrument = Instrument(exchange="binance", market=Market.SPOT, symbol=symbol)
        session.add(Ticker(instrument=instrument, last_price=Decimal("0.000000001234"), event_at=JANUARY))
    with factory() as session:
        assert (
            Decimal("0.000000001234")
            == session.scalars(select(Ticker).filter_by(instrument_id=instrument.id)).one().last_price
        )
        assert "read committed" == session.scalar(text("SELECT current_setting('transaction_isolation')"))


def test_work_is_repeated(engine, migrated, counted):
    """The server ends the connection below the pooler."""
    tries = []

    def work(session):
        tries.append(1)
        session.execute(text(f"UPDATE {counted} SET n = n + 1"))
        if len(tries) == 1:
            run_sql(migrated, f"SELECT pg_terminate_backend({session.scalar(PID)})")
            session.execute(select(1))

    db.with_retries(db.create_session_factory(engine), work)
    assert (2, 1) == (len(tries), ask(migrated, f"SELECT n FROM {counted}"))


async def test_a_restart_below_the_pooler(monkeypatch):
    """PostgreSQL crashes in the middle of work and comes back; sync and async services go on, nothing is doubled."""
    with pair() as servers:
        servers.primary.ask("CREATE TABLE placed (id integer PRIMARY KEY)")
        with bouncer(str(servers.sockets), ["helios"], more="server_login_retry = 1") as sockets:
            use(monkeypatch, URL.create("postgresql", "helios", database="helios", query={"host": sockets}))
            engine, async_engine = db.create_engine(), db.create_async_engine()
            factory, async_factory = db.create_session_factory(engine), db.create_async_session_factory(async_engine)
            tries = []

            def work(session):
                session.execute(text("INSERT INTO placed VALUES (1)"))
                tries.append(1)
                if len(tries) == 1:
                    servers.primary.end(signal.SIGQUIT)
                    servers.primary.start()
                session.execute(select(1))

            async def place(session):
                await session.execute(text("INSERT INTO placed VALUES (2)"))

            async with async_factory.begin() as session:  # so that there is a connection that dies
                await session.execute(select(1))
            db.with_retries(factory, work)
            await db.with_async_retries(async_factory, place)
            assert (2, 2) == (len(tries), servers.primary.ask("SELECT count(*) FROM placed"))
            engine.dispose()
            await async_engine.dispose()


def test_reading_sessions_write_nothing_and_leave_nothing(engine, counted):
    """A transaction is read-only, and the connection's next one is not."""
    reading = db.create_read_session_factory(engine, None)
    for _ in range(3):
        with reading() as session:
            assert 0 <= session.scalar(text(f"SELECT n FROM {counted}"))
            with pytest.raises(DBAPIError, match="read-only"):
                session.execute(text(f"UPDATE {counted} SET n = 1"))
        with engine.begin() as connection:
            connection.execute(text(f"UPDATE {counted} SET n = n + 1"))


def test_the_loader(engine, migrated, symbol, tmp_path):
    """A file is loaded, known when it comes again, and where it was corrected only what differs is written."""
    made = make_klines.make_file(tmp_path, symbol, "1h", start=JANUARY, rows=500)
    first = load(engine, recognise(made.path), rejects=tmp_path / "rejects")
    again = load(engine, recognise(made.path), rejects=tmp_path / "rejects")
    lines = made.path.read_text().splitlines()
    fields = lines[-1].split(",")
    lines[-1] = ",".join([*fields[:5], "77.5", *fields[6:]])
    made.path.write_text("\n".join(lines) + "\n")
    corrected = load(engine, recognise(made.path), rejects=tmp_path / "rejects")
    assert (500, 0, 1) == (first.written, again.written, corrected.written)
    assert Mode.UNCHANGED == again.mode
    [(number, volume)] = rows(
        migrated,
        """SELECT count(*) OVER (), volume FROM helios_trading.klines JOIN helios_trading.instruments AS i
           ON i.id = instrument_id WHERE symbol = :symbol ORDER BY open_time DESC LIMIT 1""",
        symbol=symbol,
    )
    assert (500, Decimal("77.5")) == (number, volume)


async def test_the_feed(engine, async_engine, migrated, symbol):
    """An order and its fill, both ways; tickers from many sessions at once."""
    feed = Feed(db.create_session_factory(engine), account=symbol)
    other = AsyncFeed(db.create_async_session_factory(async_engine), account=f"{symbol}a")
    for each in (
        exchange.execution_report(s=symbol),
        exchange.executed(1, "3", "3", s=symbol, X="FILLED"),
    ):
        assert 1 <= feed.take(each).orders
        assert 1 <= (await other.take(each)).orders
    bursts = [other.take(exchange.ticker_stream(symbol, str(at), at)) for at in range(1, 20)]
    await asyncio.gather(*bursts)
    told = rows(
        migrated,
        """SELECT account.name, orders.status, filled_quantity FROM helios_trading.orders
           JOIN helios_trading.accounts AS account ON account.id = account_id
           JOIN helios_trading.instruments AS i ON i.id = instrument_id WHERE symbol = :symbol ORDER BY 1""",
        symbol=symbol,
    )
    assert [(symbol, "FILLED", 3), (f"{symbol}a", "FILLED", 3)] == told
    assert 19 == ask(
        migrated,
        "SELECT last_price FROM helios_trading.tickers JOIN helios_trading.instruments AS i ON i.id = instrument_id "
        "WHERE symbol = :symbol",
        symbol=symbol,
    )


async def test_queries(engine, async_engine, migrated, symbol):
    """Rows, objects, and an asynchronous session; a service's start-up check as well."""
    number = make_instrument(migrated, symbol)
    run_sql(
        migrated,
        f"""INSERT INTO helios_trading.klines
                (instrument_id, interval, open_time, open, high, low, close, volume, trades)
            SELECT {number}, '1m', timestamptz '2025-01-01Z' + n * interval '1 min', 2, 3, 1, 2.50, n, 7
            FROM generate_series(1, 10) AS n""",
    )
    newest = queries.klines(number, Interval.M1, last=3)
    with db.create_session_factory(engine)() as session:
        assert [8, 9, 10] == [each.volume for each in newest.rows(session)]
        assert [Kline] * 3 == [type(each) for each in newest.objects(session)]
        assert [] == schema.pending(session.connection(), "helios_trading")
    async with db.create_async_session_factory(async_engine)() as session:
        assert 3 == len(await session.run_sync(newest.rows))
        assert Decimal("1.5") == (await session.run_sync(queries.current_price, number)).value


def test_live_figures_and_announcements(engine, migrated, valkey, symbol, monkeypatch):
    """A reader through the pooler gets what a direct relay mirrored; its commits wake the relay by NOTIFY."""
    monkeypatch.setenv("REDIS_URL", valkey.render_as_string(hide_password=False))
    make_instrument(migrated, symbol)
    client = db.create_redis()
    relay = mirrors.Relay(db.create_engine(Settings.from_environment(variables(migrated))), client)
    relay.rebuild("a test begins", take_over=True)
    live = queries.Live(client, max_lag=timedelta(seconds=30))
    with db.create_session_factory(engine)() as session:
        price = live.price(session, ("binance", "spot", symbol))
    assert (Decimal("1.50"), True) == (price.value, price.mirrored)
    factory = db.create_session_factory(engine)
    listener = psycopg2.connect(libpq(migrated))
    listener.autocommit = True
    listener.cursor().execute("LISTEN helios_mirror_helios_trading")
    follower = mirrors.announce(factory)
    with factory.begin() as session:
        session.add(Account(exchange="binance", name=symbol, market=Market.SPOT))
    until(lambda: listener.poll() or listener.notifies)
    follower.close()
    listener.close()
    relay.close()
    client.close()


# --- what needs a direct connection, and says so -----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pooler", "lenient"])
def test_migrations_say_so(kind, migrated, helios, monkeypatch, request):
    """One sentence and exit status 1, whether the pooler refuses a session's settings or drops them."""
    use(monkeypatch, through(migrated, request.getfixturevalue(kind)))
    for command in ("upgrade", "doctor"):
        status, said, talk = helios(command)
        assert 1 == status
        told = " ".join((said + talk).split())
        assert "leads through a pooler" in told
    monkeypatch.setenv("DATABASE_MIGRATION_URL", migrated.render_as_string(hide_password=False))
    assert 0 == helios("upgrade")[0]


def test_the_relay_says_so(url, migrated, valkey, helios, monkeypatch):
    """The relay of a pooler's address takes DATABASE_MIGRATION_URL, else says what is lacking; so do followers."""
    monkeypatch.setenv("REDIS_URL", valkey.render_as_string(hide_password=False))
    with pytest.raises(PoolerError, match=NAMED):
        mirrors.Relay(db.create_engine(), db.create_redis()).step()
    with pytest.raises(PoolerError, match=NAMED):
        mirrors.follow(db.create_session_factory(db.create_engine()))
    status, _, talk = helios("mirror", "run")
    assert 1 == status
    assert "relays of the mirrors, of which one leads at a time, need a direct connection" in " ".join(talk.split())
    monkeypatch.setenv("DATABASE_MIGRATION_URL", migrated.render_as_string(hide_password=False))
    assert 0 == helios("mirror", "rebuild", "--take-over")[0]
    running = start("helios.cli", "mirror", "run", env=dict(os.environ))
    led = """SELECT count(*) > 0 FROM pg_stat_activity
             WHERE datname = current_database() AND query LIKE '%mirror_points%' AND pid <> pg_backend_pid()"""
    until(lambda: ask(migrated, led))
    running.send_signal(signal.SIGTERM)
    finish(running)


@pytest.mark.parametrize("kind", ["pooler", "lenient"])
def test_the_undo_log_says_so(kind, kept_database, valkey, monkeypatch, request):
    """Without a direct connection, and where only the tests' own connections would lose their label."""
    redis_url = valkey.render_as_string(hide_password=False)
    use(monkeypatch, through(kept_database, request.getfixturevalue(kind)), REDIS_URL=redis_url)
    with pytest.raises(PoolerError, match=r"undo log of test runs.*DATABASE_MIGRATION_URL"):
        with tracked():
            pass
    monkeypatch.setenv("DATABASE_MIGRATION_URL", kept_database.render_as_string(hide_password=False))
    with pytest.raises(PoolerError, match="drops the label of a test run"):
        with tracked():
            pass


def test_a_statement_timeout_is_explained(url, monkeypatch):
    """A pooler that takes no settings of a session is named, with what to do instead."""
    monkeypatch.setenv("DATABASE_STATEMENT_TIMEOUT", "5")
    with pytest.raises(PoolerError, match="ALTER ROLE"), db.connect(db.create_engine()):
        pass
