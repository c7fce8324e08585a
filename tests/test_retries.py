"""Work that is repeated where that is safe, on real failures; and told where nobody can know."""

from datetime import timedelta
from pathlib import Path
from threading import Event, Thread

import psycopg2
import pytest
from installation import COPIED, made, rows, run_sql, use
from own_servers import ask
from server_user import until
from sqlalchemy import URL, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError, InternalError

from helios import db
from helios.errors import UncertainError, UnreachableError
from helios.models import Account, Market

COUNT = "SELECT id FROM counted ORDER BY id"
SHORT = timedelta(seconds=0.5)
PID = text("SELECT pg_backend_pid()")
BREAKS_AT_COMMIT = """
    CREATE FUNCTION break_once() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF nextval('breaks') = 1 THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF; RETURN NULL;
    END $$
"""


@pytest.fixture(scope="module")
def place(cluster: URL):
    """A database with a table that counts."""
    with made(cluster) as url:
        run_sql(url, "CREATE TABLE counted (id integer PRIMARY KEY, n integer NOT NULL DEFAULT 0)")
        yield url


@pytest.fixture
def url(place, monkeypatch):
    """That database, its table empty, and the settings for it."""
    run_sql(place, "TRUNCATE counted", "INSERT INTO counted VALUES (0)")
    use(monkeypatch, place, DATABASE_ROLE_PREFIX=COPIED)
    return place


@pytest.fixture
def factory(url):
    """A service's sessions."""
    engine = db.create_engine()
    yield db.create_session_factory(engine)
    engine.dispose()


@pytest.fixture
def breaking(url):
    """The first commit of a row whose id is above 100 loses its connection."""
    run_sql(
        url,
        "CREATE SEQUENCE breaks",
        BREAKS_AT_COMMIT,
        """CREATE CONSTRAINT TRIGGER breaking AFTER INSERT ON counted DEFERRABLE INITIALLY DEFERRED
           FOR EACH ROW WHEN (new.id > 100) EXECUTE FUNCTION break_once()""",
    )
    yield
    run_sql(url, "DROP FUNCTION break_once CASCADE", "DROP SEQUENCE breaks")


def end_backend(url, session):
    """Have the server end a session's connection."""
    run_sql(url, f"SELECT pg_terminate_backend({session.scalar(PID)})")


def insert(number, *, again=""):
    """A statement that inserts a row."""
    return text(f"INSERT INTO counted (id) VALUES ({number}) {again}")


def test_work_is_done_once_and_committed(factory, url):
    """What the work gives is returned."""
    assert 7 == db.with_retries(
        factory, lambda session: session.scalar(text("INSERT INTO counted VALUES (7) RETURNING id"))
    )
    assert [(0,), (7,)] == rows(url, COUNT)


def test_a_lost_connection_before_the_commit_is_repeated(factory, url):
    """The server ends the connection in the middle of the work; nothing is doubled."""
    tries = []

    def work(session):
        session.execute(text("UPDATE counted SET n = n + 1"))
        tries.append(1)
        if len(tries) == 1:
            end_backend(url, session)
        session.execute(insert(1))

    db.with_retries(factory, work)
    assert 2 == len(tries)
    assert [(0, 1), (1, 0)] == rows(url, "SELECT id, n FROM counted ORDER BY id")


def test_a_serialization_failure_is_repeated(factory, url):
    """Another session changed the row that a REPEATABLE READ transaction is about to change."""
    tries = []

    def work(session):
        session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        before = session.scalar(text("SELECT n FROM counted WHERE id = 0"))
        tries.append(before)
        if len(tries) == 1:
            run_sql(url, "UPDATE counted SET n = n + 10")
        session.execute(text("UPDATE counted SET n = :n"), {"n": before + 1})

    db.with_retries(factory, work)
    assert [0, 10] == tries
    assert [(11,)] == rows(url, "SELECT n FROM counted")


def test_a_deadlock_is_repeated(factory, url):
    """Two sessions take two rows in opposite order; both get through."""
    run_sql(url, "INSERT INTO counted VALUES (1)")
    first_holds, second_holds = Event(), Event()

    def take(session, order, mine, other):
        session.execute(text("SET LOCAL deadlock_timeout = '20ms'"))
        session.execute(text(f"UPDATE counted SET n = n + 1 WHERE id = {order[0]}"))
        mine.set()
        assert other.wait(10)
        session.execute(text(f"UPDATE counted SET n = n + 1 WHERE id = {order[1]}"))

    def second():
        db.with_retries(factory, lambda session: take(session, (1, 0), second_holds, first_holds))

    thread = Thread(target=second)
    thread.start()
    db.with_retries(factory, lambda session: take(session, (0, 1), first_holds, second_holds))
    thread.join()
    assert [(2,), (2,)] == rows(url, "SELECT n FROM counted")


def test_a_commit_whose_answer_was_lost_is_not_repeated(factory, url, breaking):
    """Whether it counts nobody knows, so the work is left to whoever knows it."""
    tries = []

    def work(session):
        tries.append(1)
        session.execute(insert(101))

    with pytest.raises(UncertainError, match="look whether the rows are there"):
        db.with_retries(factory, work)
    assert 1 == len(tries)


def test_idempotent_work_is_repeated_even_then(factory, url, breaking):
    """Inserting under an id that a second one does not change is done again."""
    db.with_retries(
        factory, lambda session: session.execute(insert(101, again="ON CONFLICT DO NOTHING")), idempotent=True
    )
    assert [(0,), (101,)] == rows(url, COUNT)


def test_work_that_commits_by_itself_is_not_repeated(factory, url):
    """Its first half counts already."""
    tries = []

    def work(session):
        tries.append(1)
        session.execute(insert(len(tries)))
        session.commit()
        end_backend(url, session)
        session.execute(insert(50))

    with pytest.raises(UncertainError):
        db.with_retries(factory, work)
    assert [(0,), (1,)] == rows(url, COUNT)


def test_other_failures_are_raised_at_once(factory, url):
    """A defect in the work is not repeated, and what it wrote is rolled back."""
    tries = []

    def work(session):
        tries.append(1)
        session.execute(insert(1))
        session.execute(insert(0))

    with pytest.raises(IntegrityError):
        db.with_retries(factory, work)
    with pytest.raises(ZeroDivisionError):
        db.with_retries(factory, lambda session: (session.execute(insert(2)), 1 // 0))
    assert (1, [(0,)]) == (len(tries), rows(url, COUNT))


def test_objects_are_flushed_before_the_commit(factory, url):
    """What only the flush finds is no uncertain commit."""
    with pytest.raises(DBAPIError, match="accounts"):
        db.with_retries(factory, lambda session: session.add(Account(exchange="x", name="y", market=Market.SPOT)))


def test_a_server_that_stays_away_is_one_sentence(monkeypatch):
    """After `patience` the failure is told, without the password."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:s3cret@127.0.0.1:1/d")
    tries = []

    def work(session):
        tries.append(1)
        session.execute(select(1))

    with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:1/d") as told:
        db.with_retries(db.create_session_factory(db.create_engine()), work, patience=timedelta(seconds=0.1))
    assert "s3cret" not in str(told.value)
    assert len(tries) > 1


@pytest.fixture
def stranger(url):
    """That database's URL, of a login that is asked for its password and says another one."""
    hba = Path(ask(url, "SHOW hba_file"))
    before = hba.read_text()
    run_sql(url, "CREATE ROLE stranger LOGIN PASSWORD 'another'")
    hba.write_text(f"local all stranger scram-sha-256\n{before}")
    run_sql(url, "SELECT pg_reload_conf()")
    wrong = f"postgresql://stranger:s3cret@/{url.database}?host={url.query['host']}"
    until(lambda: refused(wrong))
    yield wrong
    hba.write_text(before)
    run_sql(url, "SELECT pg_reload_conf()", "DROP ROLE stranger")


def refused(url):
    try:
        psycopg2.connect(url).close()
    except psycopg2.OperationalError:
        return True
    return False


async def test_a_wrong_password_is_tried_once(stranger, monkeypatch):
    """A login that is refused is told at once, without the password, sync and async: no patience mends it."""
    monkeypatch.setenv("DATABASE_URL", stranger)
    sync_engine, engine = db.create_engine(), db.create_async_engine()
    tries = []

    def work(session):
        tries.append("sync")
        session.execute(select(1))

    async def async_work(session):
        tries.append("async")
        await session.execute(select(1))

    with pytest.raises(UnreachableError, match="lets this login in") as told:
        db.with_retries(db.create_session_factory(sync_engine), work, patience=SHORT)
    with pytest.raises(UnreachableError, match="lets this login in") as told_async:
        await db.with_async_retries(db.create_async_session_factory(engine), async_work, patience=SHORT)
    assert ["sync", "async"] == tries
    assert "s3cret" not in f"{told.value} {told_async.value}"
    await engine.dispose()


def test_a_primary_that_is_a_standby_now_is_left(factory, url):
    """Its connections answer, and take no writes: they are given up, and the next one finds the primary."""
    with factory() as session:
        session.execute(text("SET default_transaction_read_only = on"))
        session.commit()
    with pytest.raises(InternalError, match="read-only transaction"), factory.begin() as session:
        session.execute(insert(1))
    db.with_retries(factory, lambda session: session.execute(insert(1)))
    with factory() as session:
        session.execute(text("SET default_transaction_read_only = on"))
        session.commit()
    db.with_retries(factory, lambda session: session.execute(insert(2)))
    assert [(0,), (1,), (2,)] == rows(url, COUNT)


async def test_asynchronous_work_is_repeated_likewise(url, breaking):
    """Before the commit always, during the commit where it is idempotent, else UncertainError."""
    engine = db.create_async_engine()
    factory = db.create_async_session_factory(engine)
    tries = []

    async def work(session):
        tries.append(1)
        await session.execute(insert(1))
        if len(tries) == 1:
            run_sql(url, f"SELECT pg_terminate_backend({await session.scalar(PID)})")
            await session.execute(select(1))
        return "done"

    async def breaks(session):
        await session.execute(insert(101, again="ON CONFLICT DO NOTHING"))

    assert "done" == await db.with_async_retries(factory, work)
    with pytest.raises(UncertainError):
        await db.with_async_retries(factory, breaks)
    run_sql(url, "ALTER SEQUENCE breaks RESTART")
    await db.with_async_retries(factory, breaks, idempotent=True)
    with pytest.raises(IntegrityError):
        await db.with_async_retries(factory, lambda session: session.execute(insert(0)))
    assert (2, [(0,), (1,), (101,)]) == (len(tries), rows(url, COUNT))
    await engine.dispose()
