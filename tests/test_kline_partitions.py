"""make_kline_partition(): partitions while others read and write, for whoever may call it and nobody else's eyes."""

import itertools
import threading
from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, Engine, select, text
from sqlalchemy.exc import DBAPIError, OperationalError
from tables import GOOD, SCHEMA, insert, wait_until_blocked

from helios.models import Interval, Kline

KLINES = f'"{SCHEMA}".klines'
SECONDS = itertools.count()


@pytest.fixture
def leaf(engine: Engine) -> Iterator[str]:
    """The name of a partition that is not there yet, and is dropped after the test if it is then."""
    name = f'"{SCHEMA}".klines_1m_2031'
    yield name
    with engine.begin() as connection:
        connection.execute(text(f"DROP TABLE IF EXISTS {name}"))


def make(connection: Connection, interval: str | None = "1m", year: int | None = 2031) -> bool:
    query = text(f'SELECT "{SCHEMA}".make_kline_partition(:interval, :year)')
    return bool(connection.scalar(query, {"interval": interval, "year": year}))


def candle(connection: Connection, moment: str = "2031-05-06 00:00:00+00", **changes: str) -> str:
    """Insert a candle by the parent; tell which partition took it."""
    insert(connection, "klines", GOOD["klines"] | {"open_time": moment} | changes)
    query = text(f"SELECT tableoid::regclass::text FROM {KLINES} WHERE open_time = '{moment}'")
    return str(connection.scalar(query)).rpartition(".")[2]


def test_a_missing_partition_is_made_once(connection: Connection) -> None:
    """True says it was made, false that it was there; afterwards candles find it."""
    assert [True, False] == [make(connection), make(connection)]
    assert "klines_1m_2031" == candle(connection)


@pytest.mark.parametrize("interval", Interval)
def test_every_interval_can_have_one(connection: Connection, interval: Interval) -> None:
    """The function knows the same intervals as the models; those of the first years are there."""
    assert [False] * 5 == [make(connection, interval, year) for year in range(2024, 2029)]
    assert make(connection, interval)
    assert f"klines_{interval}_2031" == candle(connection, interval=interval)


@pytest.mark.parametrize("interval", ["2m", "1M", "", "1m_2025", "1m; DROP TABLE klines", "1m'", None])
def test_what_is_no_interval_is_refused(connection: Connection, interval: str | None) -> None:
    """The sentence quotes it, the hint lists what may be chosen."""
    with pytest.raises(DBAPIError, match="is not an interval of klines") as refusal:
        make(connection, interval)
    assert "22023" == refusal.value.orig.pgcode
    assert f"Choose one of {', '.join(Interval)}." == refusal.value.orig.diag.message_hint


@pytest.mark.parametrize("year", [1969, 2201, 0, -1, None])
def test_what_is_no_year_is_refused(connection: Connection, year: int | None) -> None:
    """A year out of reach is a mistake in the caller's units."""
    with pytest.raises(DBAPIError, match="is not a year of klines") as refusal:
        make(connection, "1m", year)
    assert "22023" == refusal.value.orig.pgcode


@pytest.mark.parametrize("year", [1970, 2200])
def test_the_first_and_last_year_can_be_made(connection: Connection, year: int) -> None:
    """The bounds themselves are within."""
    assert make(connection, "1s", year)


def test_a_name_that_is_taken_is_said(connection: Connection) -> None:
    """A detached partition, or anybody's table, is neither attached nor taken for the partition."""
    connection.execute(text(f'CREATE TABLE "{SCHEMA}".klines_1m_2031 (a int)'))
    with pytest.raises(
        DBAPIError, match="klines_1m_2031 exists, but is not a partition of klines: attach it or drop it"
    ):
        make(connection)


def test_the_year_is_that_of_utc(connection: Connection) -> None:
    """Whatever zone the caller's session is in."""
    connection.execute(text("SET LOCAL timezone TO 'Asia/Tokyo'"))
    make(connection, "1m", 2031)
    make(connection, "1m", 2032)
    assert "klines_1m_2031" == candle(connection, "2031-01-01 00:00:00+00")
    assert "klines_1m_2031" == candle(connection, "2031-12-31 23:59:59.999999+00")
    assert "klines_1m_2032" == candle(connection, "2032-01-01 00:00:00+00")


def test_two_at_once_make_one(engine: Engine, leaf: str) -> None:
    """The second waits until the first has committed, then finds it made."""
    assert [True, False] == race(engine, commit=True)
    with engine.connect() as connection:
        assert connection.scalar(text(f"SELECT to_regclass('{leaf}')")) is not None


@pytest.mark.usefixtures("leaf")
def test_two_at_once_where_the_first_gives_up(engine: Engine) -> None:
    """The second waits until the first has rolled back, then makes it."""
    assert [True, True] == race(engine, commit=False)


def race(engine: Engine, *, commit: bool) -> list[bool]:
    """Make the same partition in two transactions at once; tell what both were told."""
    answers: list[bool] = []

    def second() -> None:
        with engine.begin() as connection:
            connection.execute(text("SET LOCAL application_name TO 'second'"))
            answers.append(make(connection))

    thread = threading.Thread(target=second)
    with engine.connect() as first:
        transaction = first.begin()
        answers.append(make(first))
        thread.start()
        wait_until_blocked(engine, "second")
        transaction.commit() if commit else transaction.rollback()
    thread.join(10)
    return answers


@pytest.mark.usefixtures("leaf")
def test_two_that_want_the_same_in_different_order_do_not_deadlock(engine: Engine) -> None:
    """One lock stands before all partitions, so the second waits at its first one."""
    answers: list[bool] = []

    def second() -> None:
        with engine.begin() as connection:
            connection.execute(text("SET LOCAL application_name TO 'second'"))
            answers.extend([make(connection, "1h"), make(connection, "1m")])

    thread = threading.Thread(target=second)
    with engine.begin() as first:
        assert make(first, "1m")
        thread.start()
        wait_until_blocked(engine, "second")
        assert make(first, "1h")
    thread.join(10)
    with engine.begin() as connection:
        connection.execute(text(f'DROP TABLE "{SCHEMA}".klines_1h_2031'))
    assert [False, False] == answers


def read(connection: Connection) -> None:
    connection.execute(select(Kline)).all()


def write(connection: Connection) -> None:
    insert(connection, "klines", GOOD["klines"] | {"open_time": f"2025-05-06 00:00:{next(SECONDS)}+00"})


@pytest.mark.usefixtures("leaf")
@pytest.mark.parametrize("neighbour", [read, write])
def test_open_readers_and_writers_are_passed(engine: Engine, neighbour) -> None:
    """A transaction that read or wrote klines and is still open holds nobody up, nor is it held up."""
    with engine.connect() as other:
        other.begin()
        neighbour(other)
        with engine.begin() as connection:
            connection.execute(text("SET LOCAL lock_timeout TO '200ms'"))
            assert make(connection)
            neighbour(other)  # before the partition is committed
            assert "klines_1m_2031" == candle(connection)
        neighbour_in_new_year = candle(other, "2031-06-07 00:00:00+00")  # and in it, afterwards
        assert "klines_1m_2031" == neighbour_in_new_year


@pytest.mark.parametrize("neighbour", [read, write])
def test_partition_of_would_wait_for_them(engine: Engine, neighbour) -> None:
    """The plain way stands behind every open transaction: why the function goes another way, and the test can fail."""
    plain = "FOR VALUES FROM ('2031-01-01 00:00:00+00') TO ('2032-01-01 00:00:00+00')"
    with engine.connect() as other, engine.connect() as connection:
        other.begin()
        neighbour(other)
        connection.execute(text("SET LOCAL lock_timeout TO '200ms'"))
        with pytest.raises(OperationalError, match="lock timeout"):
            connection.execute(
                text(f'CREATE TABLE "{SCHEMA}".klines_1m_2031 PARTITION OF "{SCHEMA}".klines_1m {plain}')
            )


@pytest.mark.usefixtures("leaf")
def test_it_is_made_in_a_transaction_with_an_old_snapshot(engine: Engine) -> None:
    """Also where another session made it after this transaction began to look."""
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as old:
        old.execute(text("SELECT 1 FROM pg_class LIMIT 1")).all()
        with engine.begin() as connection:
            assert make(connection)
        assert not make(old)


LEAF_CONSTRAINTS = """
    SELECT conname, pg_get_constraintdef(oid), convalidated FROM pg_constraint
    WHERE conrelid = to_regclass(:table) AND contype <> 'p' ORDER BY conname
"""


def test_the_partition_holds_what_klines_holds(connection: Connection) -> None:
    """The same constraints by the same names, the same key, and as index a part of the key's."""
    make(connection)
    leaf = f'"{SCHEMA}".klines_1m_2031'
    of_klines, of_leaf = (connection.execute(text(LEAF_CONSTRAINTS), {"table": each}).all() for each in (KLINES, leaf))
    assert of_klines == of_leaf
    assert 5 <= len([name for name, *_ in of_leaf if name.startswith("ck_klines_")])
    key = text(
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE contype = 'p' AND conrelid = to_regclass(:leaf)"
    )
    assert 'PRIMARY KEY (instrument_id, "interval", open_time)' == connection.scalar(key, {"leaf": leaf})
    root = text("SELECT pg_partition_root(CAST(:index AS regclass))::text")
    assert "pk_klines" == connection.scalar(root, {"index": f"{leaf}_pkey"}).rpartition(".")[2]


def test_the_partition_says_what_it_is(connection: Connection) -> None:
    """Its comment names interval and year; that of each interval's part, the interval."""
    make(connection)
    comment = text("SELECT obj_description(to_regclass(:table), 'pg_class')")
    of_part, of_leaf = (
        connection.scalar(comment, {"table": f'"{SCHEMA}".{each}'}) for each in ("klines_1m", "klines_1m_2031")
    )
    assert ("Candles of 1m; partitioned by UTC year", "Candles of 1m in 2031") == (of_part, of_leaf)


@pytest.fixture
def writer(connection: Connection) -> str:
    """A role that may write klines and call the function, where default privileges grant everything to everybody."""
    for statement in (
        "CREATE ROLE klines_writer",
        'CREATE ROLE "a ""quoted"" role"',
        f'ALTER DEFAULT PRIVILEGES IN SCHEMA "{SCHEMA}" GRANT ALL ON TABLES TO PUBLIC',
        f'ALTER DEFAULT PRIVILEGES IN SCHEMA "{SCHEMA}" GRANT ALL ON TABLES TO klines_writer, "a ""quoted"" role"',
        f'GRANT USAGE ON SCHEMA "{SCHEMA}" TO klines_writer',
        f"GRANT SELECT, INSERT ON {KLINES} TO klines_writer",
        f'GRANT EXECUTE ON FUNCTION "{SCHEMA}".make_kline_partition(text, integer) TO klines_writer',
    ):
        connection.execute(text(statement))
    return "klines_writer"


def test_a_writer_makes_it_and_may_insert_there_and_nothing_else(connection: Connection, writer: str) -> None:
    """The partition belongs to the owner of the function; who may insert into klines may do so there, by that right."""
    connection.execute(text(f"SET LOCAL ROLE {writer}"))
    assert make(connection)
    assert "klines_1m_2031" == candle(connection)
    insert(connection, "klines_1m_2031", GOOD["klines"] | {"open_time": "2031-07-08 00:00:00+00"})
    for statement in ("SELECT * FROM", "DELETE FROM", "TRUNCATE"):
        with pytest.raises(DBAPIError, match="permission denied"), connection.begin_nested():
            connection.execute(text(f'{statement} "{SCHEMA}".klines_1m_2031'))
    connection.execute(text("RESET ROLE"))
    rights = text(
        "SELECT grantee::regrole::text, privilege_type FROM pg_class, aclexplode(relacl) "
        f"WHERE oid = '\"{SCHEMA}\".klines_1m_2031'::regclass AND relowner = 'helios'::regrole "
        "AND grantee <> relowner"
    )
    assert [("klines_writer", "INSERT")] == connection.execute(rights).all()


def test_without_the_right_nobody_makes_one(connection: Connection) -> None:
    """PUBLIC may not call the function."""
    connection.execute(text("CREATE ROLE stranger"))
    connection.execute(text(f'GRANT USAGE ON SCHEMA "{SCHEMA}" TO stranger'))
    connection.execute(text("SET LOCAL ROLE stranger"))
    with pytest.raises(DBAPIError, match="permission denied for function make_kline_partition"):
        make(connection)


def test_the_callers_own_tables_are_not_mistaken_for_ours(connection: Connection) -> None:
    """Neither temporary tables of the same names nor the caller's search_path lead the function astray."""
    for table in ("klines", "klines_1m", "pg_class", "klines_1m_2031"):
        connection.execute(text(f"CREATE TEMPORARY TABLE {table} (a int)"))
    connection.execute(text("SET LOCAL search_path TO pg_temp, public"))
    assert make(connection)
    assert "klines_1m_2031" == candle(connection)
