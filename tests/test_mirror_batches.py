"""What a batch of the relay must never do: found by chaos, each on its own."""

import threading
import uuid

import pytest
from installation import engine_of, run_sql
from redis import Redis
from sqlalchemy import text

from helios import mirrors, schema
from helios.mirrors import image
from helios.mirrors import relay as relay_module


@pytest.fixture
def relayed(database, valkey, monkeypatch):
    """A relay of a fresh database, which has mirrored everything once."""
    monkeypatch.setenv("DATABASE_URL", database.render_as_string(hide_password=False))
    monkeypatch.delenv("DATABASE_MIGRATION_URL", raising=False)
    schema.upgrade()
    client = Redis.from_url(valkey.render_as_string(hide_password=False))
    run_sql(
        database,
        "INSERT INTO helios_trading.instruments (exchange, market, symbol) VALUES ('x', 'spot', 'A')",
        "INSERT INTO helios_trading.accounts (exchange, market, name) VALUES ('x', 'spot', 'main')",
        f"INSERT INTO helios_trading.orders (id, account_id, instrument_id, client_order_id, side, type, status, "
        f"submitted_at) VALUES ('{uuid.uuid4()}', 1, 1, 'x', 'BUY', 'LIMIT', 'NEW', now())",
    )
    made = mirrors.Relay(engine_of(database), client)
    made.step()
    yield made
    made.close()
    client.close()


def test_a_batch_in_which_orders_only_end(relayed, database):
    """The last order that ended leaves a hash that says "none", and the relay goes on."""
    run_sql(database, "UPDATE helios_trading.orders SET status = 'FILLED'")
    assert relayed.step()
    assert () == mirrors.check(relayed).differences


def test_half_a_batch_under_the_old_token_is_impossible(relayed, database, monkeypatch):
    """A relay that dies in a long batch, and PostgreSQL that goes back just then: all is mirrored anew."""
    monkeypatch.setattr(relay_module, "AT_ONCE", 1)
    _, store = relayed.sides()
    whole = store.write
    written = []

    def die_after_the_first(*arguments, **more):
        if written:
            raise ConnectionError("died")
        written.append(arguments)
        whole(*arguments, **more)

    monkeypatch.setattr(store, "write", die_after_the_first)
    with engine_of(database).connect() as connection:
        connection.execute(
            text("INSERT INTO helios_trading.tickers (instrument_id, last_price, event_at) VALUES (1, 7, now())")
        )
        connection.execute(text("UPDATE helios_trading.orders SET price = 2"))
        connection.commit()
        with pytest.raises(ConnectionError):
            relayed.step()
        relayed.close()
        # What an older copy looks like: neither the rows nor their entries were ever there.
        connection.execute(text("ALTER TABLE helios_trading.tickers DISABLE TRIGGER USER"))
        connection.execute(text("ALTER TABLE helios_trading.orders DISABLE TRIGGER USER"))
        connection.execute(text("DELETE FROM helios_trading.tickers"))
        connection.execute(text("UPDATE helios_trading.orders SET price = NULL"))
        connection.execute(text("TRUNCATE helios_trading.mirror_outbox"))
        connection.commit()
    relayed.step()
    assert () == mirrors.check(relayed).differences
    assert relayed.counts.rebuilds == 2


def fill(database) -> None:
    """Have a batch of several parts."""
    run_sql(
        database,
        "INSERT INTO helios_trading.instruments (exchange, market, symbol) "
        "SELECT 'x', 'um', n::text FROM generate_series(1, 60) AS n",
        "INSERT INTO helios_trading.tickers (instrument_id, last_price, event_at) "
        "SELECT id, 1, now() FROM helios_trading.instruments",
    )


@pytest.fixture
def in_parts(monkeypatch):
    """Ten things are a part already, so that what is read goes ahead of what is written."""
    monkeypatch.setattr(image, "AT_ONCE", 10)


@pytest.mark.usefixtures("in_parts")
def test_a_batch_of_many_parts_is_read_ahead(relayed, database, monkeypatch):
    """Everything of it comes to Redis, in one MULTI or in several."""
    fill(database)
    assert relayed.step()
    assert () == mirrors.check(relayed).differences
    monkeypatch.setattr(relay_module, "AT_ONCE", 15)
    run_sql(database, "UPDATE helios_trading.tickers SET last_price = 2")
    assert relayed.step()
    assert () == mirrors.check(relayed).differences
    assert 1 == relayed.counts.rebuilds


@pytest.mark.usefixtures("in_parts")
@pytest.mark.parametrize("fails", ["reading", "writing"])
def test_what_is_read_ahead_ends_with_its_batch(relayed, database, monkeypatch, fails):
    """Whichever side fails: the failure is told, no thread is left, and the next step brings everything."""
    fill(database)
    source, store = relayed.sides()

    def fail(*_arguments, **_more):
        raise ConnectionError("died")

    reading = image.rows
    parts = []

    def fail_at_the_third(*arguments):
        parts.append(arguments)
        return reading(*arguments) if len(parts) < 3 else fail()

    with monkeypatch.context() as patched, pytest.raises(ConnectionError, match="died") as told:
        if fails == "reading":
            patched.setattr(image, "rows", fail_at_the_third)
        else:
            patched.setattr(store, "write", fail)
        relayed.step()
    assert told.traceback  # whose frames live as long as it is looked at
    assert [] == [each.name for each in threading.enumerate() if "ThreadPool" in each.name]
    assert "idle" == state_of(database, source.connection.info.backend_pid)
    relayed.close()
    assert relayed.step()
    assert () == mirrors.check(relayed).differences


def state_of(database, pid: int) -> str:
    """Ask what a connection is doing."""
    with engine_of(database).connect() as connection:
        return connection.scalar(text("SELECT state FROM pg_stat_activity WHERE pid = :pid"), {"pid": pid})
