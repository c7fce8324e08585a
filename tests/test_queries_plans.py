"""Plans at a size that counts: indexes are used, partitions of other intervals and years left out, nothing sorted."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from installation import engine_of, made
from sqlalchemy import create_engine, event, text
from sqlalchemy.pool import NullPool
from tables import PARENTS, SCHEMA, insert

from helios import queries
from helios.models import Interval

FIRST = datetime(2025, 12, 28, tzinfo=UTC)  # minutes lie on both sides of the new year
NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)
FILL = text(f"""
    INSERT INTO "{SCHEMA}".klines (instrument_id, interval, open_time, open, high, low, close, volume)
    SELECT i, :interval, :first + n * make_interval(secs => :seconds), 2, 3, 1, 2, n
    FROM generate_series(0, :count - 1) AS n, generate_series(1, 20) AS i
""")
SERIES = {
    Interval.M1: (FIRST, 8000),
    Interval.M5: (FIRST, 1000),
    Interval.H1: (FIRST - timedelta(days=300), 1000),
    Interval.D1: (FIRST - timedelta(days=700), 800),
}
ORDERS = f"""
    INSERT INTO "{SCHEMA}".orders (id, account_id, instrument_id, client_order_id, side, type, status, submitted_at)
    SELECT gen_random_uuid(), 1, 1 + mod(n, 20), 'plan-' || n, 'BUY', 'LIMIT',
           CASE WHEN mod(n, 500) = 0 THEN 'UNKNOWN' WHEN mod(n, 100) = 0 THEN 'NEW' ELSE 'FILLED' END,
           '2025-01-01T00:00Z'
    FROM generate_series(1, 20000) AS n
"""
FILLS = f"""
    INSERT INTO "{SCHEMA}".fills (order_id, trade_id, price, quantity, filled_at)
    SELECT id, '1', 2, 3, submitted_at FROM "{SCHEMA}".orders WHERE status = 'FILLED'
"""


@pytest.fixture(scope="module")
def url(cluster, template):
    """A database with 216,000 candles in four intervals, five years and 20 instruments, and 20,000 orders."""
    with made(cluster, template) as url:
        with engine_of(url).connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for table, values in PARENTS.items():
                insert(connection, table, values)
            connection.exec_driver_sql(
                f"""INSERT INTO "{SCHEMA}".instruments (exchange, market, symbol)
                SELECT 'binance', 'um', 'PLAN' || n FROM generate_series(2, 20) AS n"""
            )
            for interval, (first, count) in SERIES.items():
                for year in range(2024, 2027):
                    make = text(f'SELECT "{SCHEMA}".make_kline_partition(:interval, :year)')
                    connection.execute(make, {"interval": interval.value, "year": year})
                seconds = interval.length.total_seconds()
                told = {"interval": interval.value, "first": first, "seconds": seconds, "count": count}
                connection.execute(FILL, told)
            connection.exec_driver_sql(ORDERS)
            connection.exec_driver_sql(FILLS)
            connection.exec_driver_sql("VACUUM ANALYZE")
        yield url


@pytest.fixture(params=["psycopg2", "psycopg"])
def connection(url, request):
    """A connection through each driver: one puts values into the statement, the other sends them beside it."""
    engine = create_engine(url.set(drivername=f"postgresql+{request.param}"), poolclass=NullPool)
    with engine.connect() as connection:
        yield connection


def plan(connection, ask):
    """Give the nodes of the plan of the one statement that `ask` sends."""
    ask(connection)  # the first of an engine looks how klines are laid out, and knows it for a minute
    sent = []

    def remember(_connection, _cursor, statement, parameters, _context, _many):
        sent.append((statement, parameters))

    event.listen(connection, "before_cursor_execute", remember)
    ask(connection)
    event.remove(connection, "before_cursor_execute", remember)
    [(statement, parameters)] = sent
    found = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}", parameters).scalar_one()
    [whole] = json.loads(found) if isinstance(found, str) else found
    return list(nodes(whole["Plan"]))


def nodes(node):
    yield node
    for below in node.get("Plans", ()):
        yield from nodes(below)


def scans(found):
    """How each table is read: {table: {kinds of scan}}."""
    read = {}
    for node in found:
        if "Relation Name" in node:
            read.setdefault(node["Relation Name"], set()).add(node["Node Type"])
    return read


def leaves(interval, *years):
    return {f"klines_{interval}_{year}" for year in years}


def kinds(found):
    return {node["Node Type"] for node in found}


def test_the_newest_are_read_from_the_end_of_the_index(connection):
    """Only the interval's own partitions, newest first, through their keys; no sort."""
    found = plan(connection, queries.klines(3, Interval.M1, last=500).rows)
    assert leaves("1m", *range(2024, 2029)) == set(scans(found))
    assert {"Limit", "Append", "Index Scan"} == kinds(found)
    assert {"Backward"} == {node["Scan Direction"] for node in found if "Scan Direction" in node}


@pytest.mark.parametrize(
    ("since", "until", "years"),
    [
        (FIRST, FIRST + timedelta(hours=3), [2025]),
        (NEW_YEAR, NEW_YEAR + timedelta(hours=3), [2026]),
        (NEW_YEAR - timedelta(hours=3), NEW_YEAR + timedelta(hours=3), [2025, 2026]),
    ],
)
def test_a_range_reads_its_years_alone(connection, since, until, years):
    """Other years are pruned when the statement is planned; the order comes from the index."""
    found = plan(connection, queries.klines(3, Interval.M1, since=since, until=until).rows)
    assert leaves("1m", *years) == set(scans(found))
    assert kinds(found) <= {"Append", "Index Scan"}


def test_the_newest_of_a_range_too(connection):
    """Bounds and `last` together: the end of the year's index."""
    found = plan(connection, queries.klines(3, Interval.M1, until=NEW_YEAR, since=FIRST, last=10).rows)
    assert ({"klines_1m_2025"}, {"Limit", "Index Scan"}) == (set(scans(found)), kinds(found))


def test_the_newest_of_each_looks_once_for_each_instrument(connection):
    """A nested loop over the instruments, each a look from the end of the index."""
    found = plan(connection, queries.latest_of_each(Interval.M1).rows)
    read = scans(found)
    read.pop("instruments")
    assert leaves("1m", *range(2024, 2029)) == set(read)
    assert {"Index Scan"} == set().union(*read.values())
    assert "Nested Loop" in kinds(found)


@pytest.mark.parametrize("interval", [Interval.M1, Interval.H1])
def test_gaps_read_the_index_alone(connection, interval):
    """Index-only scans in order, so that nothing is sorted before the look at the next candle."""
    found = plan(connection, queries.gaps(3, interval).rows)
    read = scans(found)
    assert leaves(interval, *range(2024, 2029)) == set(read)
    with_rows = {leaf for leaf in read if leaf in leaves("1m", 2025, 2026) | leaves("1h", 2025)}
    assert {"Index Only Scan"} == set().union(*(read[leaf] for leaf in with_rows))
    assert "WindowAgg" in kinds(found)
    below_window = next(node for node in found if node["Node Type"] == "WindowAgg")
    assert "Sort" not in kinds(nodes(below_window))


def test_gaps_within_a_year_read_that_year(connection):
    """Bounds prune."""
    found = plan(connection, queries.gaps(3, Interval.M1, since=FIRST, until=NEW_YEAR).rows)
    assert {"klines_1m_2025": {"Index Only Scan"}} == scans(found)


@pytest.mark.parametrize("count", [True, False])
def test_coverage_reads_indexes_alone(connection, count):
    """Counted or not, no candle itself is read."""
    found = plan(connection, lambda reader: queries.coverage(reader, count=count))
    filled = {table: kinds for table, kinds in scans(found).items() if table in leaves("1m", 2025, 2026)}
    assert leaves("1m", 2025, 2026) == set(filled)
    assert {"Index Only Scan"} == set().union(*filled.values())


@pytest.mark.parametrize("of", [{"account_id": 1}, {"account_id": 1, "instrument_id": 3}, {}])
@pytest.mark.parametrize("question", [queries.open_orders, queries.unresolved_orders])
def test_open_orders_come_from_their_own_index(connection, question, of):
    """The partial index of open orders, however many there are that ended."""
    found = plan(connection, question(**of).rows)
    assert "ix_orders_open" in {node.get("Index Name") for node in found}
    assert "Seq Scan" not in scans(found)["orders"]


def test_positions_of_an_instrument_find_its_orders_by_index(connection):
    """An account's orders in an instrument; of how many fills there are depends whether those are read by key."""
    found = plan(connection, queries.positions(account_id=1, instrument_id=3).rows)
    assert "Seq Scan" not in scans(found)["orders"]


def test_a_price_is_one_look(connection):
    """One row by its key; with so few rows a scan would do as well."""
    connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
    insert = f'INSERT INTO "{SCHEMA}".tickers (instrument_id, last_price, event_at) VALUES (3, 1, now())'
    connection.exec_driver_sql(insert)
    found = plan(connection, lambda reader: queries.current_price(reader, 3))
    assert ["pk_tickers"] == [node["Index Name"] for node in found if "Index Name" in node]
