"""A run outside of pytest, its parts in this process, and who is refused while its undo is pending."""

import os
import signal
import threading
from contextlib import ExitStack
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from installation import alembic, engine_of, rows, run_sql, use, variables
from kit import client, content, keys
from sqlalchemy import URL, MetaData, text

from helios import db
from helios.errors import EnvironmentRefusedError, HeliosError, InputError
from helios.mirrors import Place, Relay, check
from helios.models import Instrument, Ticker, metadata
from helios.schema import environment
from helios.testing import digest, tracked
from helios.testing.proof import differences
from helios.testing.run import Run
from helios.testing.signals import interrupt
from helios.testing.subject import move, subject_of, worker_schema
from helios.testing.sweeping import starting


@pytest.fixture
def here(kept_database, valkey, monkeypatch):
    """This process works on a database with real data; nothing of it may be different afterwards."""
    use(monkeypatch, kept_database, REDIS_URL=valkey.render_as_string(hide_password=False))
    before = content(kept_database), keys(valkey)
    yield kept_database
    assert before == (content(kept_database), keys(valkey))


def instrument(symbol: str) -> Instrument:
    return Instrument(exchange="kit", market="spot", symbol=symbol)


def test_tracked_undoes_what_is_written_inside(here):
    """Committed, seen by others, gone afterwards; the digest of everything is as before."""
    before = digest()
    with tracked(name="a check") as run:
        with run.sessions.begin() as session:
            session.add(instrument("A"))
        run.redis.set("price:BTCUSDT", "1")
        assert [("A",)] == rows(here, "SELECT symbol FROM helios_trading.instruments WHERE exchange = 'kit'")
        changed = differences(before, digest())
        assert ["instruments", "price:BTCUSDT"] == [
            each.split()[1].split(".")[-1].removeprefix("0:") for each in sorted(changed, reverse=True)
        ]
        assert ["a check"] == [each.test for each in run.tracker.inserted]
    assert before == digest()


def test_another_database_s_relay_is_no_difference(here, valkey):
    """Its heartbeat comes and goes, and lives a minute; any other key of its mirrors counts."""
    name = "helios:another.helios_trading:{0}:heartbeat"
    with client(valkey) as there:
        there.set(name, 1, px=60_000)
        before = digest()
        there.set(name, 2, px=30_000)
        assert before == digest()
        there.set(name.replace("heartbeat", "ticker:binance:spot:heartbeat"), 1)
        assert 1 == len(differences(before, digest()))
        there.delete(name, name.replace("heartbeat", "ticker:binance:spot:heartbeat"))


def test_an_error_inside_is_undone_too(here):
    """The error goes on, and nothing stays."""
    with pytest.raises(ZeroDivisionError):
        with tracked() as run:
            with run.sessions.begin() as session:
                session.add(instrument("A"))
            raise ZeroDivisionError


def test_what_a_run_took_back_is_not_told_as_somebody_elses(here):
    """The undo of the last test touches keys, which the end of the run does not take for a neighbour's change."""
    run = Run.begin(subject_of())
    run.enter("a test")
    run.redis.set("kit:A", "1")
    run.redis.set("price:BTCUSDT", "1")
    run.leave()
    run.end()
    assert [] == [told for scope in run.scopes for told in scope.others]


@pytest.mark.parametrize("over", [True, False], ids=["over", "at work"])
def test_what_another_run_wrote_is_not_told_as_somebody_elses(here, over):
    """Within a test of this run: once it is over, nobody knows the ids that the rows carry which its undo put back."""
    run = Run.begin(subject_of())
    run.enter("a test")
    with ExitStack() as at_work:
        another = at_work.enter_context(tracked())
        with another.sessions.begin() as session:
            session.execute(text("UPDATE helios_trading.tickers SET last_price = 7"))
        if over:
            at_work.close()
        run.leave()
    run.end()
    assert [] == [told for scope in run.scopes for told in scope.others]


def test_a_run_that_ended_before_a_test_hides_nothing_in_it(here, monkeypatch):
    """What somebody without the label changes from then on is told."""
    run = Run.begin(subject_of())
    with tracked() as another, another.sessions.begin() as session:
        session.add(instrument("A"))
    run.enter("a test")
    with monkeypatch.context() as unlabelled:
        unlabelled.delenv("PGOPTIONS")
        run_sql(here, "UPDATE helios_trading.instruments SET symbol = symbol")
    run.leave()
    run.end()
    assert "helios_trading.instruments" in run.scopes[0].others[0]


def test_what_is_changed_before_the_first_test_is_told(here, monkeypatch):
    """Also of a run that has none: it is looked at from its beginning on."""
    with tracked():
        pass
    run = Run.begin(subject_of())
    with monkeypatch.context() as unlabelled:
        unlabelled.delenv("PGOPTIONS")
        run_sql(here, "UPDATE helios_trading.instruments SET symbol = symbol")
    run.end()
    assert "helios_trading.instruments" in run.scopes[0].others[0]


def test_process_and_signal_are_as_before(here):
    """Label and handler are there inside, and gone afterwards, also when nothing went wrong."""
    before = dict(os.environ), signal.getsignal(signal.SIGTERM)
    with tracked() as run:
        assert str(run.id) == os.environ["HELIOS_TEST_RUN"]
        assert f"helios.test_run={run.id}" in os.environ["PGOPTIONS"]
        assert interrupt is signal.getsignal(signal.SIGTERM)
    assert before == (dict(os.environ), signal.getsignal(signal.SIGTERM))


def test_a_handler_of_ones_own_is_left_alone(here):
    """Who handles SIGTERM already goes on doing so; a thread cannot set a handler, and needs none."""

    def own(*_: object) -> None: ...

    before = signal.signal(signal.SIGTERM, own)
    try:
        with tracked():
            assert own is signal.getsignal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    seen = []

    def elsewhere() -> None:
        with tracked():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert [before] == seen


def test_engines_opened_before_the_run_are_labelled_in_it(here):
    """A service's engine has pooled connections already: they are replaced, so that what they write is undone."""
    engine = db.create_engine()
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    with tracked():
        with engine.begin() as connection:
            connection.execute(text("UPDATE helios_trading.tickers SET last_price = 7"))
    engine.dispose()


def test_two_scopes_of_one_run(here):
    """What a test wrote is undone at its end; what was written before it, at the end of the run."""
    run = Run.begin(subject_of())
    try:
        with run.sessions.begin() as session:
            session.add(instrument("WIDE"))
        run.enter("one")
        with run.sessions.begin() as session:
            session.add(instrument("NARROW"))
        run.leave()
        assert [("WIDE",)] == rows(here, "SELECT symbol FROM helios_trading.instruments WHERE exchange = 'kit'")
    finally:
        run.end()
    assert [] == run.failures


def test_migrations_are_refused_while_an_undo_is_pending(here, valkey):
    """The message names the run, and what to do; the run's end makes way."""
    env = variables(here, REDIS_URL=valkey.render_as_string(hide_password=False))
    with tracked() as run:
        _, talk = alembic("upgrade", "head", env=env, expected=1)
        assert f"test run {run.id}" in talk
        assert "helios sweep" in talk
    alembic("upgrade", "head", env=env)


def test_one_run_begins_at_a_time(here):
    """Who comes second waits, and says what for where that does not end; whoever comes then begins."""
    subject = subject_of("", "")
    with subject.direct() as one, subject.direct() as other:
        with starting(one, subject.schema):
            with pytest.raises(
                HeliosError, match=f"has been beginning in schema '{subject.schema}' for more than 0.1 s"
            ):
                with starting(other, subject.schema, wait=0.1):
                    pass
        with starting(other, subject.schema, wait=0):
            pass


def test_a_production_process_is_refused(here, monkeypatch):
    """The marker says test, the process believes to be production: no run, and no trace of one."""
    monkeypatch.setenv("HELIOS_ENVIRONMENT", "production")
    with pytest.raises(HeliosError):
        with tracked():
            pass
    assert "HELIOS_TEST_RUN" not in os.environ


def test_no_schema_is_made_beside_production(here, monkeypatch):
    """A database in which any schema is marked production is none for tests, under whatever name."""
    with engine_of(here).begin() as connection:
        environment.mark(connection, "helios_trading", "production")
    try:
        own = MetaData(schema="brand_new")
        monkeypatch.setattr("helios.testing.subject.load", lambda *_: own)
        with pytest.raises(EnvironmentRefusedError, match="schema 'helios_trading' of the same database is production"):
            with tracked("x:y"):
                pass
    finally:
        with engine_of(here).begin() as connection:
            environment.mark(connection, "helios_trading", "test")
    assert [] == rows(here, "SELECT 1 FROM pg_namespace WHERE nspname = 'brand_new'")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "names nothing: write package.module:attribute"),
        ("nowhere.at.all:metadata", "cannot be imported"),
        ("helios.models:nothing", "module helios.models has no 'nothing'"),
        ("helios.models:Interval", "name a MetaData, or a declarative base"),
    ],
)
def test_a_metadata_that_is_none_is_refused(name, message):
    """With the setting's name and value, and what to write."""
    with pytest.raises(InputError, match=message):
        subject_of(name)


@pytest.mark.parametrize(
    ("schema", "expected"),
    [("helios_trading", "helios_trading_gw3"), ("helios_trading_gw1", "helios_trading_gw3"), ("a" * 63, None)],
)
def test_the_schema_of_a_worker(schema, expected):
    """Named after the schema and the worker; its log's name fits PostgreSQL's 63 bytes as well."""
    found = worker_schema(schema, "gw3")
    assert expected in (None, found)
    assert len(f"{found}_undo".encode()) <= 63
    assert found.endswith("_gw3")
    assert worker_schema("b" * 63, "gw3") != worker_schema("b" * 62 + "c", "gw3")


def test_tables_move_to_another_schema(monkeypatch):
    """Those of the schema, no others; where they name none, PostgreSQL's search path does."""
    monkeypatch.setenv("PGOPTIONS", "")  # so that what is set here is taken back
    copy = MetaData()
    for table in metadata.sorted_tables[:2]:
        table.to_metadata(copy, schema=None)
    other = metadata.sorted_tables[2].to_metadata(copy, schema="elsewhere")
    move(copy, "public", "public_gw0")
    assert {"public_gw0", "elsewhere"} == {each.schema for each in copy.tables.values()}
    assert "elsewhere" == other.schema
    assert "-c search_path=public_gw0" == os.environ["PGOPTIONS"]


def test_mirrors_go_with_the_rows_that_they_show(here):
    """The tracker names the keys; once the rows are taken back, the relay's own code takes the mirrors back."""
    relay = Relay(engine_of(here), db.create_redis())
    relay.rebuild("a test")
    with tracked(name="a test") as run:
        with run.sessions.begin() as session:
            session.add(traded := instrument("MIRRORED"))
            session.flush()
            session.add(Ticker(instrument_id=traded.id, last_price=Decimal(7), event_at=datetime.now(UTC)))
        (key,) = [key for each in run.tracker.inserted for key in each.mirrors]
        relay.drain()
        assert b'"7"' in run.redis.get(key)
    with db.create_redis() as redis:
        assert redis.get(key) is None
        assert () == check(relay, wait=5).differences
        relay.close()
        assert 0 < redis.unlink(*redis.scan_iter(mirrors_of(here)))


def test_mirrors_that_nobody_keeps_are_not_made(here):
    """A Redis without mirrors stays without them."""
    with tracked() as run:
        with run.sessions.begin() as session:
            session.add(instrument("A"))
    with db.create_redis() as redis:
        assert [] == list(redis.scan_iter(mirrors_of(here)))


def mirrors_of(url: URL) -> str:
    """The pattern of one database's mirrors: those of others may lie in the same Redis."""
    return Place(str(url.database), "helios_trading").pattern
