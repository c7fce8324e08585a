"""Questions about klines: answers against plainly computed ones, in every form they are read in."""

import sys
import uuid
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from itertools import pairwise

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from helios import queries
from helios.errors import HeliosError, InputError
from helios.models import Instrument, Interval, Kline, Market
from helios.queries import frames

START = datetime(2025, 3, 29, tzinfo=UTC)  # the night after, clocks go forward in Europe
HOUR = timedelta(hours=1)
LONG = Decimal("0.123456789012345678901234567890")


@pytest.fixture
def connection(owner):
    with owner.connect() as connection:
        yield connection


@pytest.fixture
def instrument(connection, symbol):
    """An instrument without klines; gone with the test's transaction."""
    return add_instrument(connection, symbol)


def add_instrument(connection, symbol, market=Market.SPOT):
    made = Instrument(exchange="binance", market=market, symbol=symbol)
    with Session(connection, join_transaction_mode="create_savepoint") as session:
        session.add(made)
        session.commit()
        return made.id


def candle(instrument_id, interval, open_time, **values):
    given = {"open": 2, "high": 3, "low": 1, "close": 2, "volume": 5} | values
    return {"instrument_id": instrument_id, "interval": interval, "open_time": open_time, **given}


def make_partitions(connection, interval, *open_times):
    for year in {each.year for each in open_times}:
        make = text("SELECT helios_trading.make_kline_partition(:interval, :year)")
        connection.execute(make, {"interval": interval, "year": year})


def write(connection, instrument_id, interval, *open_times):
    """Write candles whose volumes count them."""
    make_partitions(connection, interval, *open_times)
    rows = [candle(instrument_id, interval, each, volume=at) for at, each in enumerate(open_times)]
    connection.execute(Kline.__table__.insert(), rows)


def hours(*numbers):
    return [START + number * HOUR for number in numbers]


def times(rows):
    return [row.open_time for row in rows]


# --- a series ------------------------------------------------------------------------------------------------------


def test_the_newest_come_oldest_first(connection, instrument):
    """`last` keeps the newest; more than there are gives all."""
    write(connection, instrument, Interval.H1, *hours(*range(10)))
    assert hours(7, 8, 9) == times(queries.klines(instrument, Interval.H1, last=3).rows(connection))
    assert hours(*range(10)) == times(queries.klines(instrument, Interval.H1, last=99).rows(connection))


@pytest.mark.parametrize(
    ("since", "until", "last", "expected"),
    [
        (None, None, None, range(10)),
        (3, None, None, range(3, 10)),
        (None, 3, None, range(3)),
        (3, 5, None, (3, 4)),
        (3, 9, 2, (7, 8)),
        (None, 5, 1, (4,)),
        (5, 5, None, ()),
        (9, 3, 4, ()),
        (10, None, 4, ()),
    ],
)
def test_a_range_holds_its_start_and_not_its_end(connection, instrument, since, until, last, expected):
    """`since` is inside, `until` is not, and `last` counts from the end of the range."""
    write(connection, instrument, Interval.H1, *hours(*range(10)))
    write(connection, instrument, Interval.M1, *hours(4, 5))  # another interval of the same instrument
    bounds = {"since": None if since is None else START + since * HOUR, "until": until and START + until * HOUR}
    found = queries.klines(instrument, Interval.H1, **bounds, last=last).rows(connection)
    assert hours(*expected) == times(found)


def test_bounds_of_other_time_zones_mean_the_same_moments(connection, instrument):
    """A bound is a moment, whatever zone it is written in; answers are in UTC, whatever the session's zone is."""
    write(connection, instrument, Interval.H1, *hours(*range(5)))
    connection.execute(text("SET LOCAL TIME ZONE 'Asia/Kolkata'"))
    since = (START + 3 * HOUR).astimezone(timezone(timedelta(hours=-7)))
    [first, _] = queries.klines(instrument, Interval.H1, since=since).rows(connection)
    assert (START + 3 * HOUR, UTC) == (first.open_time, first.open_time.tzinfo)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"last": 0}, "last=0 is not a number of candles"),
        ({"since": datetime(2025, 1, 1)}, "since=.* has no time zone"),  # noqa: DTZ001 - what is refused
        ({"until": datetime(2025, 1, 1)}, "until=.* has no time zone"),  # noqa: DTZ001
        ({"interval": "7m"}, "'7m' is not an interval: choose one of 1s, 1m"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(arguments, sentence):
    """A wrong argument is named before anything is sent."""
    with pytest.raises(InputError, match=sentence):
        queries.klines(1, **{"interval": Interval.H1, **arguments})


def test_a_series_that_is_not_there_is_empty(connection):
    """An instrument that nobody knows has no candles, no gaps and no rows in a frame."""
    nobody = queries.klines(2_000_000_000, Interval.H1, last=5)
    assert [] == list(nobody.rows(connection)) == list(queries.gaps(2_000_000_000, Interval.H1).rows(connection))
    assert ((0, 12), (0, 12), (0, 12)) == (
        nobody.pandas(connection).shape,
        nobody.polars(connection).shape,
        nobody.arrow(connection).shape,
    )


# --- the newest of each --------------------------------------------------------------------------------------------


def test_the_newest_of_each_instrument(connection, symbol):
    """One row for each instrument that has candles at the interval; the others are not there."""
    spot, future, silent = (
        add_instrument(connection, symbol),
        add_instrument(connection, symbol, Market.UM),
        add_instrument(connection, symbol, Market.CM),
    )
    write(connection, spot, Interval.H1, *hours(0, 1, 2))
    write(connection, future, Interval.H1, *hours(0, 24 * 400))  # in another year's partition
    write(connection, silent, Interval.M1, *hours(0))
    query = queries.latest_of_each(Interval.H1)
    found = [row for row in query.rows(connection) if row.symbol == symbol]
    assert [("binance", Market.SPOT, START + 2 * HOUR), ("binance", Market.UM, START + 400 * 24 * HOUR)] == [
        (row.exchange, row.market, row.open_time) for row in found
    ]
    with Session(connection) as session:
        assert {(spot, START + 2 * HOUR), (future, START + 400 * 24 * HOUR)} == {
            (each.instrument_id, each.open_time)
            for each in query.objects(session)
            if each.instrument_id in (spot, future, silent)
        }


# --- gaps ----------------------------------------------------------------------------------------------------------


def plain_gaps(there, step):
    """The gaps of a series by counting: where each begins, where it ends, how many are missing."""
    return [
        (before + step, after, (after - before) // step - 1)
        for before, after in pairwise(there)
        if after - before > step
    ]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([each for each in Interval if each.length]),
    st.lists(st.integers(0, 60), unique=True, max_size=30),
    st.sampled_from(["UTC", "Europe/Berlin", "America/New_York"]),
)
@example(Interval.D1, [0, 1, 2, 5], "Europe/Berlin")
@example(Interval.W1, [0, 10], "America/New_York")
def test_gaps_are_what_counting_finds(owner, interval, numbers, zone):
    """Any holes, at any interval, in any session's time zone, over its clock changes too."""
    there = [START - START.weekday() * 24 * HOUR + number * interval.length for number in sorted(numbers)]
    with owner.connect() as connection:
        connection.execute(text(f"SET LOCAL TIME ZONE '{zone}'"))
        if there:
            write(connection, -1, interval, *there)
        found = queries.gaps(-1, interval).rows(connection)
    assert plain_gaps(there, interval.length) == [tuple(row) for row in found]


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Kiritimati", "America/Los_Angeles"])
def test_gaps_of_months(connection, instrument, zone):
    """Months are counted in UTC, over years and short Februaries."""
    connection.execute(text(f"SET LOCAL TIME ZONE '{zone}'"))
    there = [datetime(2024, 1, 1), datetime(2024, 2, 1), datetime(2024, 4, 1), datetime(2025, 3, 1)]  # noqa: DTZ001
    write(connection, instrument, Interval.MO1, *(each.replace(tzinfo=UTC) for each in there))
    assert [
        (datetime(2024, 3, 1, tzinfo=UTC), datetime(2024, 4, 1, tzinfo=UTC), 1),
        (datetime(2024, 5, 1, tzinfo=UTC), datetime(2025, 3, 1, tzinfo=UTC), 10),
    ] == [tuple(row) for row in queries.gaps(instrument, Interval.MO1).rows(connection)]


def test_gaps_within_bounds(connection, instrument):
    """A gap counts where the candles on both sides of it are inside."""
    write(connection, instrument, Interval.H1, *hours(0, 2, 4, 6))
    bounds = {"since": START + HOUR, "until": START + 6 * HOUR}
    [gap] = queries.gaps(instrument, Interval.H1, **bounds).rows(connection)
    assert (START + 3 * HOUR, START + 4 * HOUR, 1) == tuple(gap)


def test_gaps_are_no_objects(connection):
    """Asked for objects, the answer is a sentence that names the columns."""
    with Session(connection) as session, pytest.raises(InputError, match="start, until, missing are no model's"):
        queries.gaps(1, Interval.H1).objects(session)


# --- coverage ------------------------------------------------------------------------------------------------------


def test_coverage_counts_or_does_not(connection, symbol, instrument):
    """Rows, first, last and missing of each interval; without counting, rows and missing are untold."""
    write(connection, instrument, Interval.H1, *hours(0, 1, 5))
    write(connection, instrument, Interval.MO1, datetime(2024, 1, 1, tzinfo=UTC), datetime(2025, 3, 1, tzinfo=UTC))
    by_hour, by_month = [each for each in queries.coverage(connection) if each.symbol == symbol]
    assert (3, 6, 3, *hours(0, 5)) == (by_hour.rows, by_hour.expected, by_hour.missing, by_hour.first, by_hour.last)
    assert (instrument, Interval.MO1, 2, 13) == (
        by_month.instrument_id,
        by_month.interval,
        by_month.rows,
        by_month.missing,
    )
    uncounted, _ = [each for each in queries.coverage(connection, count=False) if each.symbol == symbol]
    assert (None, None, 6, *hours(0, 5)) == (
        uncounted.rows,
        uncounted.missing,
        uncounted.expected,
        uncounted.first,
        uncounted.last,
    )


# --- forms of an answer --------------------------------------------------------------------------------------------


@pytest.fixture
def exact(connection, instrument):
    """Two candles: one whose figures fit every table, one that lacks what may be lacking."""
    make_partitions(connection, Interval.H1, START)
    first, second = hours(0, 1)
    connection.execute(
        Kline.__table__.insert(),
        [
            candle(instrument, "1h", first, close="2.000000000000000001", volume="12345678901234567890.5", trades=7),
            candle(instrument, "1h", second, close="2.5", volume="0.00000001", trades=None),
        ],
    )
    return queries.klines(instrument, Interval.H1)


CLOSES = [Decimal("2.000000000000000001"), Decimal("2.5")]
VOLUMES = [Decimal("12345678901234567890.5"), Decimal("0.00000001")]


def test_rows_are_named_tuples(connection, exact):
    """Every column of the table by name, exact and in UTC."""
    first, second = exact.rows(connection)
    assert [column.name for column in Kline.__table__.columns] == list(first._fields) == list(exact.columns)
    assert (CLOSES, VOLUMES, [7, None]) == tuple(
        [getattr(row, name) for row in (first, second)] for name in ("close", "volume", "trades")
    )
    assert (Interval.H1, UTC) == (first.interval, first.open_time.tzinfo)


def test_objects_are_followed_by_their_session(connection, exact):
    """The same candle is the same object, also after a query of SQLAlchemy's own."""
    with Session(connection) as session:
        objects = exact.objects(session)
        assert CLOSES == [each.close for each in objects]
        assert list(objects) == list(session.scalars(select(Kline).filter_by(instrument_id=objects[0].instrument_id)))
        assert exact.rows(session) == exact.rows(connection)


def test_arrow_keeps_every_digit(connection, exact):
    """Decimals of one type for all series, moments in UTC, absent numbers absent."""
    table = exact.arrow(connection)
    assert (CLOSES, VOLUMES, [7, None]) == tuple(table[name].to_pylist() for name in ("close", "volume", "trades"))
    assert [pa.decimal128(38, 18), pa.timestamp("us", "UTC"), pa.int64(), pa.string()] == [
        table.schema.field(name).type for name in ("close", "open_time", "trades", "interval")
    ]
    assert hours(0, 1) == table["open_time"].to_pylist()


def test_polars_keeps_every_digit(connection, exact):
    """The same in polars."""
    frame = exact.polars(connection)
    assert (CLOSES, VOLUMES, [7, None]) == tuple(frame[name].to_list() for name in ("close", "volume", "trades"))
    assert [pl.Decimal(38, 18), pl.Datetime("us", "UTC"), pl.Int64, pl.String] == [
        frame.schema[name] for name in ("close", "open_time", "trades", "interval")
    ]
    assert hours(0, 1) == frame["open_time"].to_list()


def test_pandas_keeps_every_digit(connection, exact):
    """Decimals as objects; whole numbers stay whole beside absent ones."""
    frame = exact.pandas(connection)
    assert (CLOSES, VOLUMES) == tuple(list(frame[name]) for name in ("close", "volume"))
    assert ["object", "datetime64[us, UTC]", "Int64"] == [
        str(frame[name].dtype) for name in ("close", "open_time", "trades")
    ]
    assert [True, False] == list(frame["trades"].notna())
    assert hours(0, 1) == [each.to_pydatetime() for each in frame["open_time"]]
    assert [2.0, 2.5] == list(frame["close"].astype(float))


def test_a_number_too_long_for_a_column_makes_it_text(connection, instrument):
    """Thirty digits behind the point fit neither Arrow's nor polars's decimals: text, not a rounded number."""
    make_partitions(connection, Interval.H1, START)
    rows = [candle(instrument, "1h", START, volume=LONG), candle(instrument, "1h", START + HOUR, volume="1E+3")]
    connection.execute(Kline.__table__.insert(), rows)
    query = queries.klines(instrument, Interval.H1)
    texts = [str(LONG), "1000"]
    assert texts == query.arrow(connection)["volume"].to_pylist()
    assert texts == query.polars(connection)["volume"].to_list()
    assert [LONG, Decimal(1000)] == list(query.pandas(connection)["volume"])


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**22), max_value=10**22))
@example(Decimal("99999999999999999999.999999999999999999"))
@example(Decimal(10) ** 20)
@example(Decimal("1E-18"))
@example(Decimal("1E-19"))
@example(Decimal("1.10000000000000000000000"))
@example(Decimal("0E-30"))
def test_every_number_comes_back_or_becomes_text(number):
    """Whatever its digits, a number in a table equals the one in the database."""
    columns, rows = {"n": Decimal}, [(number,), (None,)]
    for values in (
        frames.arrow(columns, rows)["n"].to_pylist(),
        frames.polars(columns, rows)["n"].to_list(),
        list(frames.pandas(columns, rows)["n"]),
    ):
        assert [number, None] == [None if each is None else Decimal(each) for each in values]


def test_every_type_of_an_answer_has_its_column():
    """Ids and choices are text, truth is truth, spans are spans; a column of nothing keeps its type."""
    some = uuid.uuid4()
    columns = {"id": uuid.UUID, "market": str, "open": bool, "age": timedelta, "none": Decimal}
    rows = [(some, Market.UM, True, timedelta(seconds=3), None)]
    assert [str(some), "um", True, timedelta(seconds=3), None] == list(frames.polars(columns, rows).row(0))
    assert {"id": str(some), "market": "um", "open": True, "age": timedelta(seconds=3), "none": None} == (
        frames.arrow(columns, rows).to_pylist()[0]
    )
    frame = frames.pandas(columns, rows)
    assert (str(some), "um", True, pd.Timedelta(seconds=3), None) == tuple(frame.iloc[0])


@pytest.mark.parametrize(("form", "name"), [("pandas", "pandas"), ("polars", "polars"), ("arrow", "pyarrow")])
def test_a_library_that_is_missing_is_named(connection, exact, monkeypatch, form, name):
    """One sentence with what to install; rows do not need it."""
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(HeliosError, match=f"needs {name}, which is not installed: pip install {name}"):
        getattr(exact, form)(connection)
    assert 2 == len(exact.rows(connection))


def test_a_library_that_is_broken_says_so_itself(connection, exact, monkeypatch):
    """Only its absence is explained: an error inside it is not taken for that."""

    def broken(name):
        raise ImportError(f"{name} needs another library", name="another")

    monkeypatch.setattr(frames, "import_module", broken)
    with pytest.raises(ImportError, match="another library"):
        exact.pandas(connection)


async def test_an_asynchronous_session_reads_the_same(migrated, owner, symbol):
    """`run_sync` takes every form: psycopg 3 gives the same values."""
    with owner.begin() as connection:
        instrument = add_instrument(connection, symbol)
        write(connection, instrument, Interval.H1, *hours(0, 1, 4))
    query = queries.klines(instrument, Interval.H1, since=START, until=START + 9 * HOUR, last=2)
    engine = create_async_engine(
        migrated.set(drivername="postgresql+psycopg"), poolclass=NullPool, connect_args={"prepare_threshold": None}
    )
    async with AsyncSession(engine) as session:
        rows = await session.run_sync(query.rows)
        objects = await session.run_sync(query.objects)
        table = await session.run_sync(query.arrow)
        gaps = await session.run_sync(queries.gaps(instrument, Interval.H1).rows)
        months = await session.run_sync(queries.gaps(instrument, Interval.MO1).rows)
        latest = await session.run_sync(queries.latest_of_each(Interval.H1).rows)
        series = await session.run_sync(queries.coverage)
    await engine.dispose()
    with owner.connect() as connection:
        assert query.rows(connection) == rows
        assert queries.coverage(connection) == series
    assert hours(1, 4) == [each.open_time for each in objects] == table["open_time"].to_pylist()
    assert ([(START + 2 * HOUR, START + 4 * HOUR, 2)], []) == ([tuple(row) for row in gaps], list(months))
    assert [START + 4 * HOUR] == [row.open_time for row in latest if row.symbol == symbol]
