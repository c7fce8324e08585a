"""Loading files of klines: what ends up in the tables, for whole files, repeated and replaced ones, killed loads."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path

import make_klines
import pytest
from server_user import alive, until
from sqlalchemy import URL, Engine, create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from helios.backfill import Mode, Report, Stage, load, recognise, tables
from helios.backfill.tiers import Tier
from helios.errors import HeliosError

JANUARY = datetime(2025, 1, 1, tzinfo=UTC)
REAL = sorted(
    path
    for folder in ("binance_um_1m", "binance_spot_1h", "ohlcv_gaps")
    for path in (Path(__file__).parents[2] / "shared/data" / folder).glob("*")
)

Loader = Callable[..., Report]


both_tiers = pytest.mark.parametrize("loaded", list(Tier), indirect=True)


@pytest.fixture
def loaded(writer: Engine, tmp_path: Path, request: pytest.FixtureRequest) -> Loader:
    """Load a file as the writer role, by the base tier unless told; rejected rows go below the test's folder."""
    tier = getattr(request, "param", Tier.BASE)

    def run(path: Path, *, strict: bool = False, again: bool = False, **options: str) -> Report:
        source, rejects = recognise(path, **options), tmp_path / "rejects"
        return load(writer, source, strict=strict, again=again, rejects=rejects, tier=tier)

    return run


@pytest.fixture
def held(owner: Engine) -> Callable[..., list[tuple[object, ...]]]:
    """Read columns of a symbol's klines, oldest first."""

    def read(symbol: str, columns: str = "open_time") -> list[tuple[object, ...]]:
        statement = f"""
            SELECT {columns} FROM helios_trading.klines AS k
            JOIN helios_trading.instruments AS i ON i.id = instrument_id
            WHERE symbol = :symbol ORDER BY open_time
        """
        with owner.connect() as connection:
            return [tuple(row) for row in connection.execute(text(statement), {"symbol": symbol})]

    return read


def distinct_times(path: Path) -> list[datetime]:
    """Read the distinct opening times of a plain file, in another way than the loader does."""
    if path.suffix == ".json":
        written = {row[0] for row in json.loads(path.read_text())}
    else:
        written = {int(line.split(",")[0]) for line in path.read_text().split() if line[:1].isdigit()}
    zero = datetime(1970, 1, 1, tzinfo=UTC)
    return sorted(zero + timedelta(milliseconds=at if at < 10**14 else at // 1000) for at in written)


@both_tiers
@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("unit", ["ms", "us"])
@pytest.mark.parametrize("zipped", [True, False])
def test_official_layouts(loaded, held, symbol, tmp_path, *, header, unit, zipped) -> None:
    """A month of candles arrives whole with and without header, in ms and us, plain and zipped."""
    made = make_klines.make_file(tmp_path, symbol, "1h", start=JANUARY, header=header, unit=unit, zipped=zipped)
    report = loaded(made.path)
    assert (744, 744, 0, 0, 0) == (report.rows, report.inserted, report.changed, report.rejected, report.missing)
    assert [(JANUARY + timedelta(hours=hour),) for hour in range(744)] == held(symbol)


@both_tiers
def test_values_are_exact(loaded, held, symbol, tmp_path) -> None:
    """Every number is stored as the file has it."""
    made = make_klines.make_file(tmp_path, symbol, "1h", start=JANUARY, rows=100)
    loaded(made.path)
    columns = "open, high, low, close, volume, quote_volume, trades, taker_buy_volume, taker_buy_quote_volume"
    rows = [line.split(",") for line in made.path.read_text().split()]
    assert [tuple(Decimal(row[place]) for place in (1, 2, 3, 4, 5, 7, 8, 9, 10)) for row in rows] == held(
        symbol, columns
    )


@both_tiers
def test_ccxt_json(loaded, held, symbol, tmp_path) -> None:
    """Candles as ccxt returns them arrive with their digits as written; what they do not have is NULL."""
    made = make_klines.make_file(
        tmp_path,
        symbol,
        "1m",
        start=JANUARY,
        rows=300,
        layout="ccxt",
        name=f"{symbol[:-4]}_USDT-1m.json",
        defects=("gap",),
    )
    report = loaded(made.path)
    assert (295, 5) == (report.inserted, report.missing)
    assert {(None, None, None, None)} == set(
        held(symbol, "trades, quote_volume, taker_buy_volume, taker_buy_quote_volume")
    )
    first = made.path.read_text()[2:].split("]")[0].split(", ")
    assert tuple(map(Decimal, first[1:])) == held(symbol, "open, high, low, close, volume")[0]


@both_tiers
def test_plain_candles_take_nothing_away(loaded, held, symbol, tmp_path) -> None:
    """A file without numbers of trades leaves those that an official file brought."""
    made = make_klines.make_file(tmp_path, symbol, "1m", start=JANUARY, rows=100)
    loaded(made.path)
    before = held(symbol, "k.*")
    plain = make_klines.make_file(
        tmp_path, symbol, "1m", start=JANUARY, rows=100, layout="ccxt", name=f"{symbol}-1m.json"
    )
    report = loaded(plain.path)
    assert (Mode.COMPARED, 0, 100) == (report.mode, report.written, report.unchanged)
    assert before == held(symbol, "k.*")


@both_tiers
@pytest.mark.parametrize("interval", ["1s", "3m", "12h", "1d", "3d", "1w", "1mo"])
def test_every_kind_of_interval(loaded, held, symbol, tmp_path, interval) -> None:
    """Seconds, days, weeks from Monday and calendar months are all on their own grid."""
    start = datetime(2016, 2, 1, tzinfo=UTC)
    made = make_klines.make_file(tmp_path, symbol, interval, start=start, rows=60, name=f"{symbol}-{interval}.csv")
    report = loaded(made.path)
    assert (60, 0, 0) == (report.inserted, report.rejected, report.missing)
    assert distinct_times(made.path) == [row[0] for row in held(symbol)]


@pytest.mark.parametrize("zipped", [True, False])
def test_unchanged_file_costs_its_checksum(loaded, owner, symbol, tmp_path, *, zipped) -> None:
    """The same file again is known by its checksum, and nothing is written."""
    made = make_klines.make_file(tmp_path, symbol, "1h", start=JANUARY, rows=50, zipped=zipped)
    loaded(made.path)
    with owner.connect() as connection:
        before = connection.execute(text("SELECT count(*) FROM helios_trading.data_quality_metrics")).scalar()
    report = loaded(made.path)
    assert (Mode.UNCHANGED, 0, 50, JANUARY) == (report.mode, report.written, report.good, report.first)
    with owner.connect() as connection:
        assert before == connection.execute(text("SELECT count(*) FROM helios_trading.data_quality_metrics")).scalar()


@both_tiers
def test_the_same_again_writes_nothing(loaded, owner, symbol, tmp_path) -> None:
    """Read once more on demand, a file changes no row, and the table does not grow."""
    made = make_klines.make_file(tmp_path, symbol, "1m", start=JANUARY, rows=20_000)
    loaded(made.path)
    size = text("SELECT sum(pg_total_relation_size(relid)) FROM pg_partition_tree('helios_trading.klines')")
    versions = text(
        "SELECT md5(string_agg(xmin::text || ctid::text, '' ORDER BY open_time)) FROM helios_trading.klines"
    )
    with owner.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM helios_trading.klines"))  # by itself it would come in the middle, now and then
        before = (connection.scalar(size), connection.scalar(versions))
    report = loaded(made.path, again=True)
    assert (Mode.COMPARED, 0, 20_000) == (report.mode, report.written, report.unchanged)
    with owner.connect() as connection:
        assert before == (connection.scalar(size), connection.scalar(versions))


@both_tiers
def test_a_replaced_file_changes_only_what_differs(loaded, owner, held, symbol, tmp_path) -> None:
    """A file cut short and later replaced brings its missing rows and its corrections, and touches nothing else."""
    made = make_klines.make_file(tmp_path, symbol, "1h", start=JANUARY, rows=100)
    lines = made.path.read_text().splitlines(keepends=True)
    made.path.write_text("".join(lines[:90]))
    loaded(made.path)
    before = dict(held(symbol, "open_time, k.ctid"))
    row = lines[40].split(",")
    row[5] = "777.5"
    made.path.write_text("".join([*lines[:40], ",".join(row), *lines[41:]]))
    report = loaded(made.path)
    assert (Mode.COMPARED, 10, 1, 89) == (report.mode, report.inserted, report.changed, report.unchanged)
    after = dict(held(symbol, "open_time, k.ctid"))
    assert [JANUARY + timedelta(hours=40)] == [at for at, place in before.items() if after[at] != place]
    assert Decimal("777.5") == held(symbol, "volume")[40][0]
    with owner.connect() as connection:
        files = connection.execute(
            text(
                "SELECT f.name, sha256, rows FROM helios_trading.kline_files AS f JOIN helios_trading.instruments AS i "
                "ON i.id = instrument_id WHERE symbol = :symbol"
            ),
            {"symbol": symbol},
        ).all()
    assert [(made.path.name, hashlib.sha256(made.path.read_bytes()).hexdigest(), 100)] == [tuple(row) for row in files]


def test_years_are_made_on_demand(loaded, owner, symbol, tmp_path) -> None:
    """A year without a partition gets one, through the function that the writer may call."""
    start = datetime(2019, 12, 31, 12, tzinfo=UTC)
    made = make_klines.make_file(tmp_path, symbol, "1h", start=start, rows=24, name=f"{symbol}-1h-2019-12.csv")
    assert 24 == loaded(made.path).inserted
    with owner.connect() as connection:
        assert (
            12
            == connection.execute(
                text(
                    "SELECT count(*) FROM helios_trading.klines_1h_2020 AS k JOIN helios_trading.instruments AS i "
                    "ON i.id = instrument_id WHERE symbol = :symbol"
                ),
                {"symbol": symbol},
            ).scalar()
        )


def test_a_connection_of_the_caller(writer, held, symbol, tmp_path) -> None:
    """On a connection that is in a transaction, the caller decides what becomes of the load."""
    made = make_klines.make_file(tmp_path, symbol, "1h", start=JANUARY, rows=50)
    with writer.connect() as connection:
        with connection.begin() as outer:
            assert 50 == load(connection, recognise(made.path)).inserted
            assert Mode.COMPARED == load(connection, recognise(made.path), again=True).mode
            outer.rollback()
        assert [] == held(symbol)
        assert 50 == load(connection, recognise(made.path)).inserted
    assert 50 == len(held(symbol))


def test_autocommit_is_refused(writer, symbol, tmp_path) -> None:
    """A connection that commits each statement by itself cannot load a file whole or not at all."""
    made = make_klines.make_file(tmp_path, symbol, "1h", start=JANUARY, rows=50)
    with pytest.raises(HeliosError, match="autocommit"):
        load(writer.execution_options(isolation_level="AUTOCOMMIT"), recognise(made.path))


def test_psycopg_3(writer, held, symbol, tmp_path) -> None:
    """The other driver loads as well."""
    made = make_klines.make_file(tmp_path, symbol, "1h", start=JANUARY, rows=50)
    engine = create_engine(writer.url.set(drivername="postgresql+psycopg"), poolclass=NullPool)
    assert 50 == load(engine, recognise(made.path)).inserted
    assert Mode.COMPARED == load(engine, recognise(made.path), again=True).mode
    assert 50 == len(held(symbol))


def test_progress_is_told(writer, symbol, tmp_path) -> None:
    """Progress comes in rows and bytes, ends at the whole file, and a failing listener ends the load."""
    made = make_klines.make_file(tmp_path, symbol, "1m", start=JANUARY, rows=20_000)
    seen = []
    load(writer, recognise(made.path), progress=seen.append)
    assert (Stage.LOADING, 20_000, made.path.stat().st_size) == (seen[-1].stage, seen[-1].rows, seen[-1].bytes_read)
    assert sorted(each.rows for each in seen) == [each.rows for each in seen]

    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(writer, recognise(made.path), again=True, progress=interrupt)


def test_two_loads_of_one_series_at_once(writer, held, symbol, tmp_path) -> None:
    """Two loads of the same file at once write it once between them."""
    made = make_klines.make_file(tmp_path, symbol, "1m", start=JANUARY, rows=5000)
    with ThreadPoolExecutor(2) as pool:
        reports = list(pool.map(lambda _: load(writer, recognise(made.path), again=True), range(2)))
    assert {Mode.DIRECT, Mode.COMPARED} == {report.mode for report in reports}
    assert 5000 == sum(report.written for report in reports) == len(held(symbol))


def test_an_instrument_that_is_loaded_is_not_deleted(writer, owner, symbol, tmp_path) -> None:
    """Whoever would delete it waits for the load: klines have no foreign key that would tell."""
    source = recognise(make_klines.make_file(tmp_path, symbol, "1m", start=JANUARY, rows=10).path)
    load(writer, source)
    with owner.connect() as other, writer.begin() as connection:
        tables.hold_instrument(connection, source)
        other.execute(text("SET lock_timeout TO '50ms'"))
        with pytest.raises(OperationalError, match="lock timeout"):
            other.execute(text("DELETE FROM helios_trading.instruments WHERE symbol = :symbol"), {"symbol": symbol})


def test_a_feed_beside_the_load(writer, held, symbol, tmp_path) -> None:
    """A candle that another session commits while the copy runs is compared, not stumbled over."""
    other = make_klines.make_file(tmp_path, symbol, "1h", start=JANUARY, rows=24)
    load(writer, recognise(other.path))
    made = make_klines.make_file(tmp_path, symbol, "1m", start=JANUARY, rows=5000)
    fed = text("""
        INSERT INTO helios_trading.klines (instrument_id, interval, open_time, open, high, low, close, volume)
        SELECT id, '1m', '2025-01-02 00:00+00', 1, 2, 0.5, 1, 10 FROM helios_trading.instruments WHERE symbol = :symbol
    """)
    written = []

    def feed(_: object) -> None:
        if not written:
            written.append(True)
            with writer.begin() as session:
                assert 1 == session.execute(fed, {"symbol": symbol}).rowcount

    report = load(writer, recognise(made.path), progress=feed)
    assert (Mode.COMPARED, 4999, 1) == (report.mode, report.inserted, report.changed)
    assert 5024 == len(held(symbol))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the children of a process are told by /proc alone")
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_reading_that_writes_nothing_ends_with_its_loader(writer, symbol, tmp_path, end) -> None:
    """A child that only looks meets no broken pipe; it ends all the same when the loader is killed or interrupted."""
    path = tmp_path / f"{symbol}-1m.csv"
    make_klines.append_rows(path, symbol, "1m", datetime(2013, 1, 1, tzinfo=UTC), 60_000)
    path.write_text(path.read_text().replace(",", ", "))  # blanks have each row looked at closely, which takes its time
    process = start_load(writer.url, path)
    process.stdout.readline()
    (reader,) = children_of(process.pid)
    process.send_signal(end)
    process.wait()
    process.stdout.close()
    assert process.returncode
    until(partial(gone, reader), 10)


@both_tiers
@pytest.mark.parametrize(
    "path",
    REAL or [pytest.param(None, marks=pytest.mark.skip("no ../shared/data here; generated files prove the same"))],
    ids=lambda path: path.name if path else "none",
)
def test_real_files(loaded, held, symbol, path) -> None:
    """Real files of the archive and of ccxt arrive with exactly their distinct opening times."""
    report = loaded(path, symbol=symbol)  # its own, so that each tier writes what it read
    wanted = distinct_times(path)
    assert (len(wanted), 0) == (report.inserted, report.rejected)
    assert wanted == [row[0] for row in held(symbol)]


def start_load(url: URL, path: Path) -> "subprocess.Popen[bytes]":
    """Load a file in another process, which says when rows begin to flow."""
    program = """
        import sys
        from sqlalchemy import create_engine
        from helios.backfill import load, recognise
        report = load(create_engine(sys.argv[1]), recognise(sys.argv[2]), tier="base",
                      progress=lambda p: print(p.rows, flush=True))
    """
    command = [sys.executable, "-c", textwrap.dedent(program), url.render_as_string(hide_password=False), str(path)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def children_of(process: int) -> list[int]:
    """List the processes that a process has started."""
    return [int(each) for each in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the children of a process are told by /proc alone")
def test_killed_loads_leave_nothing(writer, owner, held, symbol, tmp_path) -> None:
    """A load killed midway leaves no row and no child, and the next one ends as if nothing had happened."""
    made = make_klines.make_file(tmp_path, symbol, "1m", start=JANUARY)
    for lines in (1, 2, 4, 8):
        process = start_load(writer.url, made.path)
        for _ in range(lines):
            process.stdout.readline()
        readers = children_of(process.pid)
        assert 1 == len(readers)
        process.kill()
        process.wait()
        process.stdout.close()
        for reader in readers:
            until(partial(gone, reader), 10)
        wait_idle(owner, writer.url.username)
        assert [] == held(symbol)
    report = load(writer, recognise(made.path))
    assert (Mode.DIRECT, 44_640) == (report.mode, report.inserted)
    assert distinct_times(made.path) == [row[0] for row in held(symbol)]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the children of a process are told by /proc alone")
def test_a_killed_reader_fails_the_load(writer, held, symbol, tmp_path) -> None:
    """When the child dies, the load says so and nothing is written."""
    made = make_klines.make_file(tmp_path, symbol, "1m", start=JANUARY)

    def end_child(_: object) -> None:
        for child in children_of(os.getpid()):
            if b"transform.program" in Path(f"/proc/{child}/cmdline").read_bytes():
                os.kill(child, signal.SIGKILL)

    with pytest.raises(HeliosError, match="its reader ended with status -9"):
        load(writer, recognise(made.path), progress=end_child, tier="base")
    assert [] == held(symbol)


def gone(process: int) -> bool:
    """Tell whether a process has ended."""
    return not alive(process)


def wait_idle(owner: Engine, login: str | None) -> None:
    """Wait until the server has noticed that a client is gone."""
    statement = text("SELECT count(*) FROM pg_stat_activity WHERE usename = :login AND datname = current_database()")
    with owner.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        until(lambda: not connection.scalar(statement, {"login": login}), 10)


def test_memory_stays_bounded(loaded, symbol, tmp_path) -> None:
    """A file of over twenty megabytes, whatever its prices, is read by a child that holds no more than some blocks."""
    rows = 170_000
    path = tmp_path / f"{symbol}-1m.csv"
    make_klines.append_rows(path, symbol, "1m", JANUARY - timedelta(days=150), rows)
    program = """
        import json, resource, subprocess, sys
        from helios.backfill.loading import Load
        from helios.backfill import recognise
        from helios.backfill.tiers import Tier
        with open(sys.argv[1], "rb") as file:
            work = Load(None, recognise(sys.argv[1]), file, False, None, lambda _: None, Tier.BASE)
            print(work.looked_at().last)
        print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(path)]
    told = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.split()
    assert 20_000_000 < path.stat().st_size
    assert int(told[1]) < 65_000  # kilobytes; what forked it, with SQLAlchemy, counts as well
    assert rows == loaded(path).inserted


def test_tables_that_are_not_there_are_told(database: URL, symbol, tmp_path) -> None:
    """A database without the tables is told in one sentence."""
    made = make_klines.make_file(tmp_path, symbol, "1h", start=JANUARY, rows=50)
    with pytest.raises(HeliosError, match=r"was not loaded: .*does not exist"):
        load(create_engine(database, poolclass=NullPool), recognise(made.path))
