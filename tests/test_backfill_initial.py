"""Files into empty partitions without their key, many files at once, Parquet: as good as one file the usual way."""

import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import make_klines
import pyarrow as pa
import pytest
from installation import COPIED, engine_of, login
from pyarrow import csv, parquet
from sqlalchemy import Engine, text

from helios.backfill import Mode, Options, Outcome, Tier, load, load_many, recognise
from helios.backfill.bounds import likely_bounds
from helios.errors import HeliosError, InputError, RightsError

JANUARY = datetime(2025, 1, 1, tzinfo=UTC)
NAMES = make_klines.HEADER.split(",")


def ask(engine: Engine, statement: str, **binds: object) -> list[tuple[object, ...]]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(statement), binds)]


def shape(engine: Engine) -> list[tuple[object, ...]]:
    """Tell all that makes a partition what it is, but its rows."""
    return ask(
        engine,
        """
        SELECT relname, relowner::regrole::text, relacl::text, pg_get_expr(relpartbound, c.oid), obj_description(c.oid),
               (SELECT array_agg(conname || ' ' || pg_get_constraintdef(oid) || coninhcount ORDER BY conname)
                FROM pg_constraint WHERE conrelid = c.oid),
               (SELECT array_agg(indexrelid::regclass::text || pg_get_indexdef(indexrelid) || indisvalid)
                FROM pg_index WHERE indrelid = c.oid),
               (SELECT array_agg(inhparent::regclass::text) FROM pg_inherits WHERE inhrelid = c.oid),
               (SELECT array_agg(pg_get_triggerdef(oid) || tgenabled::text ORDER BY tgname)
                FROM pg_trigger WHERE tgrelid = c.oid)
        FROM pg_class AS c WHERE relnamespace = 'helios_trading'::regnamespace AND relkind IN ('r', 'p')
        ORDER BY relname
        """,
    )


def test_an_initial_load(fresh, symbol, tmp_path) -> None:
    """Two years' partitions are filled and end like any others: owner, rights, constraints, key, comment."""
    start = JANUARY - timedelta(days=3)
    made = make_klines.make_file(tmp_path, symbol, "1m", start=start, rows=10_000, name=f"{symbol}-1m.csv")
    before = shape(fresh)
    report = load(fresh, recognise(made.path), initial=True)
    assert (Mode.INITIAL, 10_000, 0) == (report.mode, report.inserted, report.unchanged)
    assert before == shape(fresh)
    again = load(fresh, recognise(made.path), again=True)
    assert (Mode.COMPARED, 0, 10_000) == (again.mode, again.written, again.unchanged)
    assert Mode.UNCHANGED == load(fresh, recognise(made.path), initial=True).mode
    assert [(4320,), (5680,)] == ask(
        fresh,
        "SELECT count(*) FROM helios_trading.klines_1m_2024 "
        "UNION ALL SELECT count(*) FROM helios_trading.klines_1m_2025",
    )


def test_a_year_without_a_partition(fresh, symbol, tmp_path) -> None:
    """An initial load makes the partition that is missing, as the function would."""
    made = make_klines.make_file(tmp_path, symbol, "1h", start=datetime(2020, 1, 1, tzinfo=UTC), rows=50)
    with fresh.begin() as connection:
        connection.execute(text("SELECT helios_trading.make_kline_partition('1h', 2020)"))
    made_by_function = shape(fresh)
    with fresh.begin() as connection:
        connection.execute(text("DROP TABLE helios_trading.klines_1h_2020"))
    assert 50 == load(fresh, recognise(made.path), initial=True).inserted
    assert made_by_function == shape(fresh)


def test_defects_in_an_initial_load(fresh, symbol, tmp_path) -> None:
    """What cannot be used is left out, told and put aside as ever."""
    made = make_klines.make_file(tmp_path, symbol, "1m", start=JANUARY, rows=3000, defects=tuple(make_klines.DEFECTS))
    report = load(fresh, recognise(made.path), initial=True, rejects=tmp_path / "rejects")
    assert (made.good, made.rejected, made.duplicates) == (report.inserted, report.rejected, report.duplicates)
    assert report.rejects.exists()


def test_a_partition_with_rows_is_refused(fresh, symbol, tmp_path) -> None:
    """One row in the way, and nothing is touched."""
    first = make_klines.make_file(tmp_path, symbol, "1h", start=JANUARY, rows=24)
    load(fresh, recognise(first.path))
    other = make_klines.make_file(tmp_path, f"X{symbol}", "1h", start=JANUARY, rows=24)
    before = shape(fresh)
    with pytest.raises(InputError, match="partition klines_1h_2025 holds rows, and --initial fills only empty ones"):
        load(fresh, recognise(other.path), initial=True)
    assert before == shape(fresh)
    assert [(24,)] == ask(fresh, "SELECT count(*) FROM helios_trading.klines")


def test_a_row_that_comes_meanwhile(fresh, symbol, tmp_path) -> None:
    """A candle that a feed writes while the file is copied is not lost: the load gives way."""
    hour = make_klines.make_file(tmp_path, symbol, "1h", start=JANUARY, rows=2)
    load(fresh, recognise(hour.path))
    made = make_klines.make_file(tmp_path, symbol, "1m", start=JANUARY, rows=3000)
    fed = """
        INSERT INTO helios_trading.klines (instrument_id, interval, open_time, open, high, low, close, volume)
        SELECT id, '1m', '2025-06-01 00:00+00', 1, 2, 0.5, 1, 10 FROM helios_trading.instruments
    """
    written = []

    def feed(_: object) -> None:
        if not written:
            written.append(True)
            with fresh.begin() as session:
                session.execute(text(fed))

    with pytest.raises(InputError, match="klines_1m_2025 holds rows"):
        load(fresh, recognise(made.path), initial=True, progress=feed)
    assert [(1,)] == ask(fresh, "SELECT count(*) FROM helios_trading.klines WHERE interval = '1m'")


def test_a_partition_that_something_hangs_on(fresh, symbol, tmp_path) -> None:
    """What PostgreSQL refuses at the end is one sentence, and stops no other interval's files."""
    sources = [
        recognise(make_klines.make_file(tmp_path, symbol, interval, start=JANUARY, rows=24).path)
        for interval in ("1h", "1m")
    ]
    with fresh.begin() as connection:
        connection.execute(text("CREATE VIEW watched AS SELECT close FROM helios_trading.klines_1h_2025"))
    said = "nothing was loaded into new partitions: cannot drop table .*klines_1h_2025 because other objects depend"
    with pytest.raises(HeliosError, match=said):
        load(fresh, sources[0], initial=True)
    outcomes = {each.source.interval: each for each in load_many(fresh, sources, Options(), initial=True, jobs=1)}
    assert re.search(said, str(outcomes["1h"].error))
    assert outcomes["1m"].report
    assert [("1m", 24)] == ask(fresh, "SELECT interval, count(*) FROM helios_trading.klines GROUP BY interval")


def test_an_initial_load_leaves_the_callers_transaction_as_it_was(fresh, symbol, tmp_path) -> None:
    """Who is acting, and how long a lock is waited for, is the caller's own again behind the load."""
    made = make_klines.make_file(tmp_path, symbol, "1h", start=JANUARY, rows=24)
    theirs = text(
        "SELECT current_user, current_setting('role'), current_setting('lock_timeout'), "
        "current_setting('maintenance_work_mem')"
    )
    with fresh.begin() as connection:
        before = connection.execute(theirs).one()
        assert 24 == load(connection, recognise(made.path), initial=True).inserted
        assert before == connection.execute(theirs).one()


def test_the_right_is_needed(writer, symbol, tmp_path) -> None:
    """A writer may not exchange partitions, and is told who may."""
    made = make_klines.make_file(tmp_path, symbol, "1h", start=JANUARY, rows=24)
    with pytest.raises(RightsError, match=r"acts as \S+_owner, .* name one that may by DATABASE_MIGRATION_URL"):
        load(writer, recognise(made.path), initial=True)
    outcomes = list(load_many(writer, [recognise(made.path)], Options(), initial=True))
    assert [RightsError] == [type(each.error) for each in outcomes]


@pytest.fixture
def member(fresh: Engine) -> Engine:
    """A login that is a member of the owner role, and nothing more."""
    return engine_of(login(fresh.url, "member", f"GRANT {COPIED}_owner TO {{login}}"))


def test_a_member_of_the_owner(fresh, member, symbol, tmp_path) -> None:
    """A login of the owner role may, and what it leaves belongs to the role."""
    made = make_klines.make_file(tmp_path, symbol, "1h", start=JANUARY, rows=24)
    before = shape(fresh)
    assert 24 == load(member, recognise(made.path), initial=True).inserted
    assert before == shape(fresh)


@pytest.mark.parametrize("moment", range(4))
def test_a_killed_initial_load_leaves_nothing(fresh, symbol, tmp_path, moment) -> None:
    """Killed while it copies or at the exchange, it leaves the tables as they were, and the next start succeeds."""
    made = make_klines.make_file(tmp_path, symbol, "1m", start=JANUARY, rows=20_000)
    program = """
        import os, signal, sys
        from sqlalchemy import create_engine
        from helios.backfill import initial, load, recognise
        def die(*_): os.kill(os.getpid(), signal.SIGKILL)
        where = int(sys.argv[3])
        if where:
            setattr(initial.Initial, (None, "finish", "lock", "exchange")[where], die)
        load(create_engine(sys.argv[1]), recognise(sys.argv[2]), initial=True, progress=None if where else die)
    """
    url = fresh.url.render_as_string(hide_password=False)
    command = [sys.executable, "-c", textwrap.dedent(program), url, str(made.path), str(moment)]
    before = shape(fresh)
    assert -signal.SIGKILL == subprocess.run(command, check=False).returncode
    report = load(fresh, recognise(made.path), initial=True)
    assert 20_000 == report.inserted
    assert before == shape(fresh)


@pytest.mark.parametrize("tier", Tier)
@pytest.mark.parametrize("late", [False, True])
def test_each_year_goes_into_its_own_partition(fresh, symbol, tmp_path, tier, late) -> None:
    """A file of three years with one between that has no candle, in order, or its first row being the last."""
    starts = (datetime(2021, 12, 31, tzinfo=UTC), datetime(2024, 1, 1, tzinfo=UTC))
    lines = [",".join(row) for start in starts for row in make_klines.candles(symbol, "1h", start, 50)]
    path = tmp_path / f"{symbol}-1h.csv"
    path.write_text("\n".join([*lines[1:], lines[0]] if late else lines) + "\n")
    report = load(fresh, recognise(path), initial=True, tier=tier)
    assert (Mode.INITIAL, 100, late) == (report.mode, report.inserted, any("out of order" in r for r in report.reasons))
    years = (f"SELECT count(*) FROM helios_trading.klines_1h_{year}" for year in (2021, 2022, 2024))
    assert [(24,), (26,), (50,)] == ask(fresh, " UNION ALL ".join(years))
    again = load(fresh, recognise(path), again=True)
    assert (Mode.COMPARED, 0, 100) == (again.mode, again.written, again.unchanged)


def test_a_long_file_is_not_looked_at_before(tmp_path) -> None:
    """The ends of a file tell its years where so many rows fill them; one wrong row at the end does not."""
    made = make_klines.make_file(tmp_path, "BTCUSDT", "12h", start=datetime(2020, 1, 1, tzinfo=UTC), rows=3000)
    source = recognise(made.path)
    with made.path.open("rb") as file:
        bounds = likely_bounds(source, file)
        assert bounds
        assert [2020, 2021, 2022, 2023, 2024] == bounds.years
    lines = made.path.read_text().splitlines(keepends=True)
    made.path.write_text("".join([*lines[:100], lines[-1]]))
    with made.path.open("rb") as file:
        assert likely_bounds(source, file) is None


def test_files_of_one_interval_share_the_partition(fresh, symbol, tmp_path) -> None:
    """Several symbols and months go into one exchange; the file that cannot be used is left out."""
    paths = [
        make_klines.make_file(tmp_path, f"{letter}{symbol}", "1h", start=start, rows=100).path
        for letter in "AB"
        for start in (JANUARY, JANUARY + timedelta(days=31))
    ]
    bad = tmp_path / f"C{symbol}-1h.csv"
    bad.write_bytes(b"\0\1\2")
    outcomes = list(load_many(fresh, [recognise(each) for each in [*paths, bad]], Options(), initial=True))
    assert [Mode.INITIAL] * 4 == [each.report.mode for each in outcomes if each.report]
    assert ["is not text"] == [str(each.error).partition(" ")[2][:11] for each in outcomes if each.error]
    assert [(400,)] == ask(fresh, "SELECT count(*) FROM helios_trading.klines_1h_2025")


def test_files_that_overlap_are_no_initial_load(fresh, symbol, tmp_path) -> None:
    """The same candle in two files would be two rows without a key: told, and nothing loaded."""
    one = make_klines.make_file(tmp_path, symbol, "1h", start=JANUARY, rows=100)
    two = make_klines.make_file(tmp_path, symbol, "1h", start=JANUARY, rows=10, name=f"{symbol}-1h.csv")
    outcomes = list(load_many(fresh, [recognise(one.path), recognise(two.path)], Options(), initial=True))
    assert {"the files for klines_1h_2025 hold some candle twice: load them without --initial"} == {
        str(each.error) for each in outcomes
    }
    assert [(0,)] == ask(fresh, "SELECT count(*) FROM helios_trading.klines")


def test_many_files_over_some_connections(writer, owner, symbol, tmp_path) -> None:
    """Files of many series and of one, in any order, over three connections: each candle once, the last file wins."""
    sources, last = [], {}
    noon = JANUARY + timedelta(hours=12)
    for letter in "ABC":
        for start in (JANUARY, noon):
            name = f"{letter}{symbol}-1m-{start:%Y-%m-%d}.csv" if start == JANUARY else f"{letter}{symbol}-1m.csv"
            made = make_klines.make_file(tmp_path, f"{letter}{symbol}", "1m", start=start, rows=1440, name=name)
            sources.append(recognise(made.path))
            last[f"{letter}{symbol}"] = Decimal(made.path.read_text().split(",")[5])
    outcomes: list[Outcome] = list(load_many(writer, sources, Options(), jobs=3))
    assert {each.path for each in sources} == {each.report.source.path for each in outcomes if each.report}
    counted = ask(
        owner,
        "SELECT symbol, count(*), max(volume) FILTER (WHERE open_time = :noon) FROM helios_trading.klines "
        "JOIN helios_trading.instruments AS i ON i.id = instrument_id "
        "WHERE symbol LIKE :like GROUP BY symbol ORDER BY symbol",
        like=f"_{symbol}",
        noon=noon,
    )
    assert [(name, 2160, volume) for name, volume in last.items()] == counted


def test_stopping_early_ends_what_runs(writer, owner, symbol, tmp_path) -> None:
    """A caller that takes only the first outcome stops the rest, and no half file stays."""
    bad = tmp_path / f"A{symbol}-1m.csv"
    bad.write_bytes(b"\0")
    made = [make_klines.make_file(tmp_path, f"{letter}{symbol}", "1m", start=JANUARY, rows=20_000) for letter in "BC"]
    sources = [recognise(bad), *(recognise(each.path) for each in made)]
    runs, closed = threading.Event(), threading.Event()

    def slowly(*_: object) -> None:
        runs.set()
        closed.wait(30)
        time.sleep(0.1)

    outcomes = load_many(writer, sources, Options(), jobs=1, progress=slowly)
    assert next(outcomes).error
    assert runs.wait(30)
    closed.set()
    outcomes.close()
    counted = ask(
        owner,
        "SELECT count(*) FROM helios_trading.klines JOIN helios_trading.instruments AS i ON i.id = instrument_id "
        "WHERE symbol LIKE :like GROUP BY symbol",
        like=f"_{symbol}",
    )
    assert [] == counted


# --- Parquet -------------------------------------------------------------------------------------------------------
def as_parquet(path: Path, **kinds: pa.DataType) -> Path:
    """Write a CSV of the archive as Parquet, with columns of some types; others are decimals."""
    types = {name: kinds.get(name, pa.decimal128(38, 8)) for name in NAMES}
    types |= {name: kinds.get(name, pa.int64()) for name in ("open_time", "close_time", "count", "ignore")}
    table = csv.read_csv(
        path, csv.ReadOptions(column_names=NAMES), convert_options=csv.ConvertOptions(column_types=types)
    )
    written = path.with_suffix(".parquet")
    parquet.write_table(table, written)
    return written


@pytest.mark.parametrize("kinds", [{}, {"open": pa.float64(), "volume": pa.string(), "open_time": pa.timestamp("ms")}])
def test_parquet_of_the_archive(writer, symbol, tmp_path, kinds) -> None:
    """Parquet with the archive's columns brings the same candles as its CSV, whatever types the columns have."""
    made = make_klines.make_file(tmp_path, symbol, "1m", start=JANUARY, rows=20_000, market="spot")
    kinds = {name: pa.string() if name == "open_time" else kind for name, kind in kinds.items()}
    converted = as_parquet(made.path, **kinds)
    if kinds:
        table = parquet.read_table(converted)
        times = table["open_time"].cast(pa.int64()).cast(pa.timestamp("ms"))
        table = table.set_column(0, "open_time", times).drop_columns(["close_time", "ignore"])
        parquet.write_table(table, converted)
    load(writer, recognise(made.path))
    report = load(writer, recognise(converted))
    assert (Mode.COMPARED, 20_000, 0, 0) == (report.mode, report.unchanged, report.rejected, report.missing)
    assert not [each for each in report.reasons if "close_time" in each]


@pytest.mark.parametrize("interval", ["1h", "1mo"])
def test_parquet_of_the_table(writer, owner, symbol, tmp_path, interval) -> None:
    """What somebody wrote from the klines table comes back as it was."""
    made = make_klines.make_file(tmp_path, symbol, interval, start=datetime(2020, 1, 1, tzinfo=UTC), rows=60)
    load(writer, recognise(made.path))
    statement = (
        "SELECT k.* FROM helios_trading.klines AS k JOIN helios_trading.instruments AS i ON i.id = instrument_id "
        "WHERE symbol = :symbol ORDER BY open_time"
    )
    with owner.connect() as connection:
        rows = [dict(row) for row in connection.execute(text(statement), {"symbol": symbol}).mappings()]
    path = tmp_path / f"{symbol}-{interval}.parquet"
    parquet.write_table(pa.Table.from_pylist(rows), path)
    report = load(writer, recognise(path), rejects=tmp_path)
    assert (Mode.COMPARED, 60, 0, []) == (report.mode, report.unchanged, report.rejected, report.reasons[1:])


def test_parquet_that_is_none_of_ours(writer, symbol, tmp_path) -> None:
    """Columns missing, several series, rubbish: each is refused in one sentence."""
    path = tmp_path / f"{symbol}-1m.parquet"
    parquet.write_table(pa.table({"open_time": [1], "open": [1]}), path)
    with pytest.raises(InputError, match="is Parquet without high, low, close, volume"):
        load(writer, recognise(path))
    plain = {name: [1, 1] for name in ("open_time", "open", "high", "low", "close", "volume")}
    parquet.write_table(pa.table(plain | {"symbol": ["A", "B"]}), path)
    with pytest.raises(InputError, match="is Parquet with symbol 'A' and 'B': split it"):
        load(writer, recognise(path))
    table = pa.table({**plain, "symbol": ["ä", "ä"]})
    parquet.write_table(table.append_column("open", table["open"]), path)
    with pytest.raises(InputError, match="is Parquet with several columns open"):
        load(writer, recognise(path))
    parquet.write_table(table.rename_columns([*plain, "ö"]), path)
    path.write_bytes(path.read_bytes().replace("ö".encode(), b"\xff\xff"))
    with pytest.raises(InputError, match="is Parquet that cannot be read"):
        load(writer, recognise(path))
    path.write_bytes(b"PAR1 and nothing")
    with pytest.raises(InputError, match="is Parquet that cannot be read"):
        load(writer, recognise(path))
    with pytest.raises(InputError, match=r"takes numpy and pyarrow to read: install the extra helios\[fast\]"):
        load(writer, recognise(path), tier=Tier.BASE)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open descriptors are told by /proc alone")
def test_nothing_is_left_open(writer, symbol, tmp_path) -> None:
    """A load leaves no descriptor open, whichever tier reads."""
    made = make_klines.make_file(tmp_path, symbol, "1m", start=JANUARY, rows=500)
    load(writer, recognise(made.path), tier="fast")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for tier in Tier:
        load(writer, recognise(made.path), tier=tier, again=True)
    assert before == len(list(Path("/proc/self/fd").iterdir()))
