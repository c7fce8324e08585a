"""Engines, sessions and Redis clients from the settings: against real servers, sync and asynchronous."""

import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from installation import engine_of, login, use, variables
from redis import Redis
from sqlalchemy import URL, select, text
from sqlalchemy.exc import DBAPIError, OperationalError

from helios import db
from helios.errors import HeliosError, RightsError, SchemaError, SettingError, UnreachableError
from helios.models import Account, Instrument, Market, Ticker
from helios.settings import Settings


@pytest.fixture
def settings(upgraded: URL) -> Settings:
    """The settings of a migrated database."""
    return Settings.from_environment()


def test_a_session_commits_what_its_block_wrote(settings):
    """`factory.begin()` commits at its end; objects stay readable afterwards."""
    factory = db.create_session_factory(db.create_engine(settings))
    with factory.begin() as session:
        account = Account(exchange="binance", name="main", market=Market.SPOT)
        session.add(account)
    assert "main" == account.name
    with factory() as session:
        assert account.id == session.scalars(select(Account.id)).one()


def test_a_session_rolls_back_what_failed(settings):
    """An error inside the block leaves nothing."""
    factory = db.create_session_factory(db.create_engine(settings))
    with pytest.raises(RuntimeError, match="boom"), factory.begin() as session:
        session.add(Account(exchange="binance", name="main", market=Market.SPOT))
        session.flush()
        raise RuntimeError("boom")
    with factory() as session:
        assert [] == session.scalars(select(Account)).all()


async def test_an_asynchronous_session_does_the_same(settings):
    """The extra `helios[async]`: psycopg 3, exact numbers, moments in UTC, relations loaded with the statement."""
    engine = db.create_async_engine(settings)
    factory = db.create_async_session_factory(engine)
    at = datetime(2025, 1, 1, tzinfo=UTC)
    async with factory.begin() as session:
        instrument = Instrument(exchange="binance", market=Market.SPOT, symbol="BTCUSDT")
        session.add(Ticker(instrument=instrument, last_price=Decimal("0.000000001234"), event_at=at))
    async with factory() as session:
        ticker = (await session.scalars(select(Ticker))).one()
    assert (Decimal("0.000000001234"), at) == (ticker.last_price, ticker.event_at)
    await engine.dispose()


def test_an_asynchronous_engine_without_its_extra_says_what_to_install(settings, monkeypatch):
    """One sentence with the extra's name, rather than an ImportError from the depths."""
    monkeypatch.setattr(db.engines, "find_spec", lambda _: None)
    with pytest.raises(HeliosError, match=r"helios\[async\]"):
        db.create_async_engine(settings)


def test_the_settings_reach_the_connection(database, monkeypatch):
    """application_name, statement timeout and pool sizes are what was configured."""
    use(
        monkeypatch,
        database,
        DATABASE_APPLICATION_NAME="grid-bot",
        DATABASE_STATEMENT_TIMEOUT="0.2",
        DATABASE_POOL_SIZE="1",
        DATABASE_POOL_OVERFLOW="0",
        DATABASE_POOL_TIMEOUT="0.1",
        DATABASE_POOL_RECYCLE="77",
    )
    engine = db.create_engine()
    with engine.connect() as connection:
        assert "grid-bot" == connection.scalar(text("SELECT current_setting('application_name')"))
        with pytest.raises(DBAPIError, match="statement timeout"):
            connection.execute(text("SELECT pg_sleep(5)"))
        with pytest.raises(Exception, match="QueuePool limit of size 1 overflow 0 reached"):
            engine.connect()
    assert 77 == engine.pool._recycle  # noqa: SLF001 - SQLAlchemy shows it nowhere else
    engine.dispose()


def test_options_of_the_environment_are_carried_along(database, monkeypatch):
    """PGOPTIONS, and options in the URL, survive the settings' own."""
    use(monkeypatch, database, DATABASE_STATEMENT_TIMEOUT="60")
    monkeypatch.setenv("PGOPTIONS", "-c helios.actor=desk")
    with db.create_engine().connect() as connection:
        assert "desk" == connection.scalar(text("SELECT current_setting('helios.actor')"))
    url = database.update_query_dict({"options": "-c helios.actor=url"})
    monkeypatch.setenv("DATABASE_URL", url.render_as_string(hide_password=False))
    with db.create_engine().connect() as connection:
        assert "url" == connection.scalar(text("SELECT current_setting('helios.actor')"))


def test_tls_settings_reach_the_driver():
    """Both sslmode and sslrootcert are handed to libpq; the URL's own win."""
    settings = Settings.from_environment({"DATABASE_SSLMODE": "verify-full", "DATABASE_SSLROOTCERT": "/ca.pem"})
    plain, own = URL.create("postgresql", host="h"), URL.create("postgresql", host="h", query={"sslmode": "require"})
    assert ("verify-full", "/ca.pem") == tuple(
        db.connect_args(settings, plain)[each] for each in ("sslmode", "sslrootcert")
    )
    assert "sslmode" not in db.connect_args(settings, own)


def test_an_unreachable_server_is_one_sentence():
    """The sentence names the server and the setting, not the password."""
    settings = Settings.from_environment({"DATABASE_URL": "postgresql://u:s3cret@127.0.0.1:1/d"})
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:1/d.*check DATABASE_URL") as caught:
        with db.connect(db.create_engine(settings)):
            pass
    assert "s3cret" not in str(caught.value)
    assert "s3cret" not in repr(db.create_engine(settings))


def test_a_slow_server_is_given_up_on():
    """DATABASE_CONNECT_TIMEOUT is handed to the driver."""
    assert (
        3
        == db.connect_args(Settings.from_environment({"DATABASE_CONNECT_TIMEOUT": "3"}), URL.create("x"))[
            "connect_timeout"
        ]
    )


def test_a_lost_connection_is_one_sentence(settings):
    """A server that ends the session is said to have gone away."""
    engine = db.create_engine(settings)
    with pytest.raises(UnreachableError, match="was lost"), db.connect(engine) as connection:
        pid = connection.scalar(text("SELECT pg_backend_pid()"))
        with engine_of(settings.database_url).connect() as other:
            other.execute(text(f"SELECT pg_terminate_backend({pid})"))
        connection.execute(text("SELECT 1"))


def test_a_pooled_connection_that_died_is_replaced(settings):
    """A restart between two uses costs the service no error."""
    engine = db.create_engine(settings)
    with engine.connect() as connection:
        pid = connection.scalar(text("SELECT pg_backend_pid()"))
    with engine_of(settings.database_url).connect() as other:
        other.execute(text(f"SELECT pg_terminate_backend({pid})"))
    with engine.connect() as connection:
        assert 1 == connection.scalar(text("SELECT 1"))


def test_tables_that_are_not_there_are_one_sentence(database, monkeypatch):
    """Before the first upgrade the message says how to make them."""
    use(monkeypatch, database)
    with pytest.raises(SchemaError, match="run `helios upgrade` first"), db.connect(db.create_engine()) as connection:
        connection.execute(select(Account.id))


def test_a_missing_right_is_one_sentence(upgraded, monkeypatch):
    """A login that is in no role is told so."""
    outsider = login(upgraded, "outsider")
    use(monkeypatch, outsider)
    with pytest.raises(RightsError, match="permission denied"), db.connect(db.create_engine()) as connection:
        connection.execute(select(Account.id))


def test_other_errors_stay_what_they_are(settings):
    """A lock that another session holds for too long is not explained away."""
    engine = db.create_engine(settings)
    with pytest.raises(OperationalError, match="lock timeout"), db.connect(engine) as connection:
        connection.execute(text("SET LOCAL lock_timeout = 1"))
        with engine_of(settings.database_url).connect() as other:
            other.execute(text("SELECT pg_advisory_lock(2)"))
            connection.execute(text("SELECT pg_advisory_lock(2)"))


def test_a_redis_client_works(valkey, monkeypatch):
    """REDIS_URL and REDIS_TIMEOUT make a client that reaches the server."""
    monkeypatch.setenv("REDIS_URL", valkey.render_as_string(hide_password=False))
    monkeypatch.setenv("REDIS_TIMEOUT", "2.5")
    client = db.create_redis()
    assert isinstance(client, Redis)
    assert client.ping()
    assert 2.5 == client.connection_pool.connection_kwargs["socket_timeout"]
    client.close()


def test_in_production_the_embedded_servers_do_not_serve():
    """Without DATABASE_URL, production gets an error and no server."""
    with pytest.raises(SettingError, match="set DATABASE_URL"):
        db.create_engine(Settings.from_environment({"HELIOS_ENVIRONMENT": "production"}))


@pytest.mark.parametrize("name", ["helios", "helios.settings", "helios.errors"])
def test_what_everybody_imports_is_light(name, database):
    """Neither models nor Alembic come along, so that the schema's name is read only when it is needed."""
    script = f"import sys, {name}; print('helios.models.base' in sys.modules, 'alembic' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], env=variables(database), capture_output=True, text=True, check=True
    )
    assert "False False" == done.stdout.strip()


def test_models_live_in_the_configured_schema(database):
    """DATABASE_SCHEMA decides where every model's table is."""
    script = "from helios.models import metadata; print({table.schema for table in metadata.tables.values()})"
    done = subprocess.run(
        [sys.executable, "-c", script], env=variables(database, "desk_7"), capture_output=True, text=True, check=True
    )
    assert "{'desk_7'}" == done.stdout.strip()
