"""What unlabelled connections change during a test is seen and told, and never blamed on the test."""

import time

import pytest
import redis
from own_servers import client, recording_client
from sqlalchemy import create_engine, delete, insert, select, text

from helios import label
from helios.models import Instrument, Market
from helios.testing import redis_log
from helios.testing.audit import rows
from helios.testing.audit.keys import RedisAudit
from helios.testing.audit.rows import PostgresAudit

TABLES = [Instrument.__table__]


@pytest.fixture
def connection(migrated):
    """The kit's own connection: direct, in autocommit."""
    engine = create_engine(migrated, isolation_level="AUTOCOMMIT")
    with engine.connect() as made:
        yield made
    engine.dispose()


@pytest.fixture
def neighbour(migrated):
    """An unlabelled service."""
    engine = create_engine(migrated, connect_args={"application_name": "grid-bot"})
    yield engine
    with engine.begin() as made:
        made.execute(delete(Instrument).where(Instrument.exchange == "audited"))
    engine.dispose()


def wrote(engine, symbol, *, savepoint=False, commit=True):
    """Write one row, and give the transaction's id."""
    with engine.connect() as made:
        if savepoint:
            with made.begin_nested():
                made.execute(insert(Instrument).values(exchange="audited", market=Market.SPOT, symbol=symbol))
        else:
            made.execute(insert(Instrument).values(exchange="audited", market=Market.SPOT, symbol=symbol))
        found = made.scalar(text("SELECT pg_current_xact_id()::text::bigint"))
        (made.commit if commit else made.rollback)()
    return found


def test_a_quiet_database_is_reported_quiet(connection):
    """Nothing was written: nothing is told."""
    audit = PostgresAudit(connection, TABLES)
    audit.begin()
    connection.execute(select(Instrument)).all()
    assert audit.report() is None


def test_a_neighbours_rows_are_told_with_who_is_connected(connection, neighbour, symbol):
    """The table, how many rows, and the application_name of everybody who is there."""
    audit = PostgresAudit(connection, TABLES)
    audit.begin()
    wrote(neighbour, symbol)
    wrote(neighbour, f"{symbol}2")
    with neighbour.connect():
        found = audit.report()
    assert ("postgresql", {"helios_trading.instruments": 2}) == (found.store, found.what)
    assert any(each.startswith("grid-bot (") for each in found.candidates)


def test_what_the_run_knows_is_not_told(connection, neighbour, symbol):
    """Its own transactions, and those rolled back."""
    audit = PostgresAudit(connection, TABLES)
    audit.begin()
    known = wrote(neighbour, symbol)
    wrote(neighbour, f"{symbol}2", commit=False)
    assert audit.report([known]) is None
    audit.begin()
    assert audit.report() is None


def test_savepoints_of_rows_that_are_gone_are_not_told(connection, neighbour, symbol):
    """A savepoint has an id that nobody notes; after the undo no row shows it."""
    audit = PostgresAudit(connection, TABLES)
    audit.begin()
    known = wrote(neighbour, symbol, savepoint=True)
    with neighbour.begin() as made:
        made.execute(delete(Instrument).where(Instrument.symbol == symbol))
        undone = made.scalar(text("SELECT pg_current_xact_id()::text::bigint"))
    assert audit.report([known, undone]) is None


def test_a_table_too_large_to_read_is_named(connection, neighbour, symbol, monkeypatch):
    """What was not looked at is said, where somebody wrote and did not take it back."""
    monkeypatch.setattr(rows, "LARGEST", -1)  # so that a small table is a large one
    audit = PostgresAudit(connection, TABLES)
    audit.begin()
    wrote(neighbour, symbol, commit=False)
    assert audit.report() is None
    wrote(neighbour, symbol)
    found = audit.report()
    assert ({}, "not looked at, being large: helios_trading.instruments") == (found.what, found.blind)


def test_a_login_without_rights_sees_the_names_of_others(writer, neighbour, symbol):
    """No superuser is needed, nor pg_monitor: application_name and user of every session are open to all."""
    with writer.connect().execution_options(isolation_level="AUTOCOMMIT") as plain, neighbour.connect() as other:
        other.scalar(text("SELECT 1"))
        audit = PostgresAudit(plain, TABLES)
        assert any(each.startswith("grid-bot (") for each in audit.connected())


@pytest.fixture
def plain(valkey):
    """A neighbour of an empty Redis."""
    made = client(valkey)
    made.flushall()
    made.client_setname("grid-bot")
    yield made
    made.flushall()
    made.close()


@pytest.fixture
def keys(plain, valkey):
    """An audit that has begun, from a client that is not the neighbour's."""
    own = client(valkey)
    audit = RedisAudit(own, ["helios:trading.helios_trading:"])
    audit.begin()
    yield audit
    audit.close()
    own.close()


@pytest.fixture
def recorded(plain, valkey, monkeypatch):
    """A labelled client of a run that has begun."""
    redis_log.begin(plain, 7, "here")
    monkeypatch.setenv(label.VARIABLE, "7")
    made = recording_client(valkey)
    yield made
    made.close()


def test_what_labelled_clients_write_is_not_told(recorded, keys, plain):
    """Nor the log itself, nor mirrors, nor the heartbeat of another database's, nor what anybody reads."""
    recorded.set("a", 1)
    recorded.zadd("z", {"a": 1})
    recorded.zpopmin("z")
    plain.get("a")
    plain.set("helios:trading.helios_trading:{0}:tickers:1", 1)
    plain.set("helios:another.helios_trading:{0}:heartbeat", 1, px=60_000)
    redis_log.mark(plain, 7)
    assert keys.report() is None


def test_a_neighbours_keys_are_told(recorded, keys, plain):
    """By name, with the names of the clients that are connected."""
    recorded.set("a", 1)
    plain.set("b", 1)
    plain.set("c", 1, px=1)
    plain.delete("b")
    found = keys.report()
    assert ("redis", {"b", "c"}) == (found.store, found.what.keys())
    assert any(each.startswith("grid-bot (last command del)") for each in found.candidates)
    keys.begin()
    assert keys.report() is None


def test_what_another_run_took_back_meanwhile_is_not_told(recorded, keys, plain):
    """It is in no log any more when the run is over, so it cannot be told from a neighbour's."""
    redis_log.begin(plain, 8, "here")
    plain.set("as of the other run", 1)
    redis_log.close(plain, 8)
    recorded.set("a", 1)
    assert keys.report() is None
    keys.begin()
    plain.set("b", 1)
    assert {"b"} == keys.report().what.keys()


def test_keys_that_a_script_did_not_declare_are_told(recorded, keys):
    """Also when it is a labelled client that runs it."""
    recorded.eval("redis.call('SET', KEYS[1], 1) redis.call('SET', 'undeclared', 1)", 1, "declared")
    assert {"undeclared"} == keys.report().what.keys()


def test_an_emptied_database_is_told(keys, plain):
    """FLUSHDB names no keys, but is not passed over."""
    plain.set("a", 1)
    plain.flushdb()
    assert "a database was emptied" == keys.report().blind


def test_an_audit_follows_a_client_of_the_older_protocol(valkey, plain):
    """It speaks the newer one itself; answers decoded to text do not disturb it."""
    own = redis.Redis.from_url(valkey.render_as_string(hide_password=False), protocol=2, decode_responses=True)
    audit = RedisAudit(own)
    audit.begin()
    plain.set(b"\xff", 1)
    assert {"\\xff"} == audit.report().what.keys()
    audit.close()
    own.close()


def test_a_quiet_test_costs_next_to_nothing(connection, keys):
    """One statement, and one word to Redis: a tenth of a millisecond each, where the machine is idle."""
    audit = PostgresAudit(connection, TABLES)
    for each in (audit, keys):
        times = []
        for _ in range(50):
            start = time.perf_counter()
            each.report()
            times.append(time.perf_counter() - start)
        assert min(times) < 0.0005
