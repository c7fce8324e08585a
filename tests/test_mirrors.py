"""The mirrors end to end: every way of writing, seen in Redis after the next step of the relay."""

import json
import uuid

import pytest
from redis import Redis
from sqlalchemy import URL, Engine, create_engine, text
from sqlalchemy.pool import NullPool

from helios import mirrors, schema


@pytest.fixture(scope="module")
def home_of_mirrors(cluster: URL):
    name = f"t_{uuid.uuid4().hex[:12]}"
    admin = create_engine(cluster, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f'CREATE DATABASE "{name}"'))
    url = cluster.set(database=name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATABASE_URL", url.render_as_string(hide_password=False))
        schema.upgrade()
    yield create_engine(url, poolclass=NullPool)
    with admin.connect() as connection:
        connection.execute(text(f'DROP DATABASE "{name}" WITH (FORCE)'))


def test_first(home_of_mirrors: Engine, valkey: URL):
    """A first try."""
    client = Redis.from_url(valkey.render_as_string(hide_password=False))
    relay = mirrors.Relay(home_of_mirrors, client)
    assert relay.step()
    with home_of_mirrors.begin() as c:
        i = c.scalar(
            text(
                "INSERT INTO helios_trading.instruments (exchange, market, symbol) VALUES ('binance','spot','A:B{') RETURNING id"
            )
        )
        a = c.scalar(
            text(
                "INSERT INTO helios_trading.accounts (exchange, market, name) VALUES ('binance','spot','main') RETURNING id"
            )
        )
        c.execute(
            text("INSERT INTO helios_trading.tickers (instrument_id, last_price, event_at) VALUES (:i, 1.50, now())"),
            {"i": i},
        )
        c.execute(
            text(
                "INSERT INTO helios_trading.klines (instrument_id, interval, open_time, open, high, low, close, volume) SELECT :i, '1m', timestamptz '2025-01-01Z' + n * interval '1 minute', 1, 2, 1, 2, 5 FROM generate_series(1, 300) n"
            ),
            {"i": i},
        )
        c.execute(
            text(
                "INSERT INTO helios_trading.orders (id, account_id, instrument_id, client_order_id, side, type, status, submitted_at) VALUES (gen_random_uuid(), :a, :i, 'x', 'BUY', 'LIMIT', 'NEW', now())"
            ),
            {"i": i, "a": a},
        )
        c.execute(
            text(
                "INSERT INTO helios_trading.positions (account_id, instrument_id, quantity, event_at) VALUES (:a, :i, 3, now())"
            ),
            {"i": i, "a": a},
        )
    assert relay.step()
    assert not relay.step()
    with home_of_mirrors.connect() as c:
        m = mirrors.Mirror.of(c, client)
        print(c.execute(text("select * from helios_trading.mirror_outbox")).all())
    for k in client.scan_iter("helios:*"):
        print(k, client.type(k))
    seen = m.texts(m.place.key("ticker", "binance", "spot", "A:B{"))
    print(seen)
    assert json.loads(seen.contents[0])["last_price"] == "1.50"
    print(m.hashes(m.place.key("orders", "binance", "main"), m.place.key("positions", "binance", "main")))
    found = mirrors.check(relay)
    print(found, mirrors.status(home_of_mirrors, client), mirrors.metrics(relay, 0))
    assert not found.differences
    assert found.compared == 4
    assert relay.source.one(__import__("helios.mirrors.source", fromlist=["EMPTY"]).EMPTY)[0]
    assert mirrors.check(relay).compared == 4
    client.delete(m.place.key("ticker", "binance", "spot", "A:B{"))
    assert ["missing"] == [d.kind for d in mirrors.check(relay).differences]
    from helios.mirrors.auditing import Audit

    assert 1 == Audit(relay).step()
    assert not mirrors.check(relay).differences
    relay.close()
