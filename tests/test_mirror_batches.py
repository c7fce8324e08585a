"""What a batch of the relay must never do: found by chaos, each on its own."""

import uuid

import pytest
from installation import engine_of, run_sql
from redis import Redis
from sqlalchemy import text

from helios import mirrors, schema
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
