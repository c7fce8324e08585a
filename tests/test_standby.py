"""Reading sessions on a real hot standby: fresh or not read, whatever happens to it or to its primary."""

import json
import time
from dataclasses import replace
from datetime import timedelta
from threading import Event, Thread

import pytest
from replicas import Pair, pair
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError, InternalError

from helios import db
from helios.cli import doctor
from helios.settings import Settings

ASK = text("SELECT n FROM counted")
LONG = timedelta(seconds=30)
SHORT = timedelta(milliseconds=100)
RESUME = "SELECT pg_wal_replay_resume()"


@pytest.fixture(scope="module")
def both():
    """A primary and its standby, with a table that counts and a login that may read it."""
    with pair() as made:
        made.primary.ask(
            "CREATE TABLE counted AS SELECT 0 AS n", "CREATE ROLE reads LOGIN", "GRANT SELECT ON counted TO reads"
        )
        made.follow()
        yield made


@pytest.fixture
def servers(both: Pair):
    """The two, the standby up to date."""
    both.standby.ask(RESUME)
    both.primary.ask("UPDATE counted SET n = 0")
    both.caught_up()
    return both


@pytest.fixture
def settings(servers):
    """A service's settings."""
    return Settings.from_environment({"DATABASE_URL": servers.primary.url, "DATABASE_READ_URL": servers.standby.url})


@pytest.fixture
def engines(settings):
    """The engines of both."""
    engines = db.create_engine(settings), db.create_read_engine(settings)
    yield engines
    for each in engines:
        each.dispose()


def seen(factory):
    """What a new session reads, and whether on the standby."""
    with factory() as session:
        return session.scalar(ASK), session.on_standby


def seen_on_standby(factory):
    """What a new session reads, once the standby is fresh: of what nobody waits for the log may be flushed late."""
    found = seen(factory)
    end = time.monotonic() + 20
    while not found[1] and time.monotonic() < end:
        found = seen(factory)
    return found


def test_a_fresh_standby_is_read(engines):
    """Each transaction tells where it reads; between two nobody answers."""
    factory = db.create_read_session_factory(*engines, max_lag=LONG)
    seen_on_standby(factory)
    with factory() as session:
        assert session.on_standby is None
        assert 0 == session.scalar(ASK)
        assert session.on_standby is True
        session.commit()
        assert session.on_standby is None


def test_without_a_standby_the_primary_is_read(settings):
    """DATABASE_READ_URL is not set."""
    settings = replace(settings, database_read_url=None)
    engine = db.create_engine(settings)
    assert db.create_read_engine(settings) is None
    assert db.create_async_read_engine(settings) is None
    assert (0, False) == seen(db.create_read_session_factory(engine, None))
    engine.dispose()


def test_a_standby_that_lags_is_not_read(servers, engines):
    """What the standby lacks is seen all the same, from the primary; once it has caught up, it is read again."""
    servers.standby.ask("SELECT pg_wal_replay_pause()")
    servers.primary.ask("UPDATE counted SET n = 1")
    factory = db.create_read_session_factory(*engines, max_lag=LONG)
    assert (1, False) == seen(factory)
    servers.standby.ask(RESUME)
    servers.caught_up()
    assert (1, True) == seen_on_standby(factory)


def test_a_proof_lasts_as_long_as_the_limit(servers, engines):
    """What was proved is read for so long, and no longer, while the standby lags."""
    brief, long = (db.create_read_session_factory(*engines, max_lag=each) for each in (timedelta(microseconds=1), LONG))
    assert (0, True) == seen_on_standby(long)
    servers.standby.ask("SELECT pg_wal_replay_pause()")
    servers.primary.ask("UPDATE counted SET n = 1")
    assert (0, True) == seen(long)
    assert (1, False) == seen(brief)


def test_without_a_limit_the_standby_is_read_whatever_it_has(servers, engines):
    """`max_lag=None` asks the primary nothing."""
    servers.standby.ask("SELECT pg_wal_replay_pause()")
    servers.primary.ask("UPDATE counted SET n = 1")
    asked = []
    event.listen(engines[0], "engine_connect", lambda *_: asked.append(1))
    assert (0, True) == seen_on_standby(db.create_read_session_factory(*engines, max_lag=None))
    assert [] == asked


@pytest.mark.parametrize("last", ["SELECT 1", "SELECT pg_switch_wal()", "CHECKPOINT"])
def test_an_idle_primary_makes_no_standby_stale(servers, engines, last):
    """A standby that has replayed everything is fresh, however long ago that was; also where a page just began."""
    servers.primary.ask("UPDATE counted SET n = 5", last)
    servers.caught_up()
    assert (5, True) == seen_on_standby(db.create_read_session_factory(*engines, max_lag=LONG))


def test_never_staler_than_the_limit(servers, engines):
    """While one writes, and replay halts again and again, nothing older than the limit is seen; both sides answer."""
    factory = db.create_read_session_factory(*engines, max_lag=SHORT)
    acknowledged, stop = [], Event()

    def write():
        engine = db.create_engine(Settings.from_environment({"DATABASE_URL": servers.primary.url}))
        while not stop.is_set():
            with engine.begin() as connection:
                number = connection.scalar(text("UPDATE counted SET n = n + 1 RETURNING n"))
            acknowledged.append((time.monotonic(), number))
        engine.dispose()

    writer = Thread(target=write)
    writer.start()
    answered, began = [], time.monotonic()
    try:
        while time.monotonic() < began + 1.5 or (len(set(answered)) < 2 and time.monotonic() < began + 20):
            for halted in (True, False):
                servers.standby.ask(f"SELECT pg_wal_replay_{'pause' if halted else 'resume'}()")
                for _ in range(20):
                    due = time.monotonic() - SHORT.total_seconds()
                    number, on_standby = seen(factory)
                    least = max((each for moment, each in acknowledged[-2000:] if moment < due), default=0)
                    assert number >= least
                    answered.append(on_standby)
    finally:
        stop.set()
        writer.join()
    assert {True, False} == set(answered)


def test_a_reading_session_writes_nothing(servers, engines):
    """Neither server takes it, and the next transaction reads on."""
    for standby in (engines[1], None):
        with db.create_read_session_factory(engines[0], standby)() as session:
            with pytest.raises(InternalError, match="read-only transaction"):
                session.execute(text("UPDATE counted SET n = 9"))
            session.rollback()
            assert 0 == session.scalar(ASK)
    with engines[0].begin() as connection:  # the connection that only read is in the pool
        connection.execute(text("UPDATE counted SET n = 3"))


def test_the_standbys_engine_may_be_used_by_itself(engines):
    """Before a reading session used its connection, and after."""
    for _ in range(2):
        with engines[1].connect() as connection:
            assert 0 == connection.scalar(ASK)
        assert (0, True) == seen_on_standby(db.create_read_session_factory(*engines))


def told_of_standby(helios, settings, monkeypatch):
    """What doctor says of DATABASE_READ_URL."""
    for name, url in (("DATABASE_URL", settings.database_url), ("DATABASE_READ_URL", settings.database_read_url)):
        monkeypatch.setenv(name, url.render_as_string(hide_password=False))
    findings = {each["check"]: each for each in doctors_findings(helios, monkeypatch)}
    return tuple(findings["standby"][each] for each in ("ok", "found", "remedy"))


def doctors_findings(helios, monkeypatch):
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    return json.loads(helios("doctor", "--json")[1])


def test_doctor_is_content_with_a_standby_that_replays(helios, settings, monkeypatch):
    """It is well, and says how long replaying took."""
    ok, found, remedy = told_of_standby(helios, settings, monkeypatch)
    assert (True, "") == (ok, remedy)
    assert "had all that was written after" in found


def test_doctor_names_a_standby_that_lags(helios, servers, settings, monkeypatch):
    """What it lacks, that its replay is paused, and how to go on."""
    servers.standby.ask("SELECT pg_wal_replay_pause()")
    servers.primary.ask("UPDATE counted SET n = 1")
    ok, found, remedy = told_of_standby(helios, settings, monkeypatch)
    assert (False, True) == (ok, "its replay is paused; the primary is read instead" in found)
    assert "pg_wal_replay_resume" in remedy


@pytest.mark.parametrize(
    ("of", "more", "said"),
    [
        ("standby", {"query": {"host": "/nowhere"}}, "/nowhere"),
        ("standby", {"database": "postgres"}, "is a standby of another server or database"),
        ("primary", {}, "is no standby, for it takes writes itself"),
    ],
)
def test_doctor_names_what_is_no_standby_of_this_database(of, more, said, helios, settings, monkeypatch):
    """A server that is not reached, another database, the primary itself: each is told with what to do."""
    url = settings.database_read_url if of == "standby" else settings.database_url
    settings = replace(settings, database_read_url=url.set(**more))
    ok, found, remedy = told_of_standby(helios, settings, monkeypatch)
    assert (False, True) == (ok, said in found)
    assert "DATABASE_READ_URL" in remedy


def test_doctor_names_a_standby_of_another_timeline(settings, engines):
    """What was promoted elsewhere, or cut off in a failover, has to follow this primary first."""
    elsewhere = text(f"SELECT server, 'FFFFFFFF' AS timeline, position FROM ({doctor.REPLAYED}) AS replayed")
    with pytest.MonkeyPatch.context() as patch, engines[0].connect() as primary, engines[1].connect() as standby:
        patch.setattr(doctor, "REPLAYED", elsewhere)
        found, remedy = doctor.look_at_standby(primary, standby)
    assert "follows timeline FFFFFFFF" in found
    assert "pg_rewind" in remedy


def test_doctor_is_silent_where_no_standby_is_named(helios, settings, monkeypatch):
    """Without DATABASE_READ_URL there is nothing to find."""
    monkeypatch.setenv("DATABASE_URL", settings.database_url.render_as_string(hide_password=False))
    monkeypatch.delenv("DATABASE_READ_URL", raising=False)
    assert "standby" not in {each["check"] for each in doctors_findings(helios, monkeypatch)}


def test_a_standby_that_is_down_costs_one_attempt(engines, settings):
    """The primary is read, and for a second nobody knocks at the standby."""
    gone = replace(settings, database_read_url=settings.database_read_url.set(query={"host": "/nowhere"}))
    standby = db.create_read_engine(gone)
    knocks = []
    event.listen(standby, "do_connect", lambda *_: knocks.append(1), insert=True)
    factory = db.create_read_session_factory(engines[0], standby)
    assert [(0, False)] * 3 == [seen(factory) for _ in range(3)]
    assert 1 == len(knocks)


def test_a_primary_in_the_place_of_a_standby_proves_nothing(settings):
    """A promoted server may be a second primary: DATABASE_URL says which one counts."""
    engine = db.create_engine(settings)
    assert (0, False) == seen(db.create_read_session_factory(engine, engine))
    engine.dispose()


@pytest.mark.parametrize("other", [{"timeline": "000000FE"}, {"server": 1}])
def test_another_timeline_or_server_proves_nothing(engines, other):
    """An old standby may have replayed more of a timeline that was given up than there is of the new one."""
    factory = db.create_read_session_factory(*engines)
    assert (0, True) == seen_on_standby(factory)
    route = factory.kw["route"]
    known = [replace(each, **other) for each in route.positions]
    route.positions.clear()
    route.positions.extend(known)
    assert (0, False) == seen(factory)


def test_a_login_that_only_reads_may(servers):
    """What is asked of both servers needs no right."""
    urls = [each.url.replace("helios@", "reads@") for each in (servers.primary, servers.standby)]
    settings = Settings.from_environment(dict(zip(("DATABASE_URL", "DATABASE_READ_URL"), urls, strict=True)))
    engine, standby = db.create_engine(settings), db.create_read_engine(settings)
    servers.caught_up()
    assert (0, True) == seen_on_standby(db.create_read_session_factory(engine, standby))
    engine.dispose()
    standby.dispose()


@pytest.fixture
async def async_engines(settings):
    """The asynchronous engines of both."""
    engines = db.create_async_engine(settings), db.create_async_read_engine(settings)
    yield engines
    for each in engines:
        await each.dispose()


async def test_asynchronous_sessions_read_likewise(servers, async_engines):
    """From the standby, else the primary; and they write nothing."""
    async with db.create_async_read_session_factory(*async_engines, max_lag=LONG)() as session:
        assert 0 == await session.scalar(ASK)
        assert session.sync_session.on_standby is True
        with pytest.raises(InternalError, match="read-only transaction"):
            await session.execute(text("UPDATE counted SET n = 9"))
    servers.standby.ask("SELECT pg_wal_replay_pause()")
    servers.primary.ask("UPDATE counted SET n = 1")
    async with db.create_async_read_session_factory(*async_engines, max_lag=LONG)() as session:
        assert 1 == await session.scalar(ASK)
        assert session.sync_session.on_standby is False


def test_after_a_failover_reads_and_writes_go_on(servers):
    """The primary is killed, the standby promoted, a new standby made: one address each, and no error in between."""
    both = "&".join(f"host={servers.sockets}:{port}" for port in (5432, 5433))
    address = f"postgresql://helios@/helios?{both}&target_session_attrs="
    settings = Settings.from_environment(
        {"DATABASE_URL": address + "read-write", "DATABASE_READ_URL": address + "standby"}
    )
    engine, standby = db.create_engine(settings), db.create_read_engine(settings)
    writing, reading = db.create_session_factory(engine), db.create_read_session_factory(engine, standby)
    increment = text("UPDATE counted SET n = n + 1 RETURNING n")
    assert 1 == db.with_retries(writing, lambda session: session.scalar(increment))
    servers.caught_up()
    assert (1, True) == seen_on_standby(reading)
    servers.fail_over()
    assert 2 == db.with_retries(writing, lambda session: session.scalar(increment))
    assert (2, False) == seen(reading)
    servers.follow()
    servers.caught_up()
    assert (2, True) == seen_on_standby(reading)
    engine.dispose()
    standby.dispose()


def test_a_primary_that_is_down_leaves_what_was_proved(servers, settings):
    """Reads go on from the standby for as long as the limit says, and no longer."""
    engine, standby = db.create_engine(settings), db.create_read_engine(settings)
    factory = db.create_read_session_factory(engine, standby, max_lag=timedelta(seconds=30))
    brief = db.create_read_session_factory(engine, standby, max_lag=timedelta(microseconds=1))
    assert (0, True) == seen_on_standby(factory)
    servers.primary.end(9)
    try:
        assert (0, True) == seen(factory)
        with pytest.raises(DBAPIError):
            seen(brief)
    finally:
        servers.primary.start()
    assert (0, True) == seen_on_standby(factory)
    engine.dispose()
    standby.dispose()
