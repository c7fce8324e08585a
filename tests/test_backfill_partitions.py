"""Where a load copies to: straight into the partitions where nothing is passed by, else into klines."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import make_klines
import pytest
from installation import COPIED, engine_of, login, run_sql
from sqlalchemy import URL, Engine, text
from sqlalchemy.exc import OperationalError

from helios.backfill import Mode, load, recognise, tables
from helios.backfill.tiers import Tier

SCHEMA = "helios_trading"
JANUARY = datetime(2025, 1, 1, tzinfo=UTC)
NEW_YEAR = JANUARY - timedelta(hours=30)  # so that a file of 100 hours is one of two years
KLINES = f"{SCHEMA}.klines"

FED = text(f"""
    INSERT INTO {KLINES} (instrument_id, interval, open_time, open, high, low, close, volume)
    SELECT id, '1h', :at, 1, 2, 0.5, 1, 10 FROM {SCHEMA}.instruments WHERE symbol = :symbol
""")


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tables that rows are copied into, in their order."""
    seen: list[str] = []
    copy = tables.copy

    def seeing(connection, into, values, reading):
        seen.append(into)
        return copy(connection, into, values, reading)

    monkeypatch.setattr(tables, "copy", seeing)
    return seen


@pytest.fixture
def hours(tmp_path: Path, symbol: str) -> Callable[..., Path]:
    """Write a file of 100 hourly candles, with the first line moved to the end where it is told to be late."""

    def write(start: datetime = JANUARY, *, late: bool = False) -> Path:
        path = make_klines.make_file(tmp_path, symbol, "1h", start=start, rows=100).path
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join([*lines[1:], lines[0]] if late else lines))
        return path

    return write


@pytest.fixture
def own_writer(upgraded: URL) -> Engine:
    """A writer in a database of its own, whose partitions may be changed."""
    return engine_of(login(upgraded, "loader", f"GRANT {COPIED}_writer TO {{login}}"))


def held(engine: Engine, symbol: str) -> list[tuple[object, ...]]:
    """Read where a symbol's candles are."""
    question = f"""
        SELECT k.tableoid::regclass::text, count(*) FROM {KLINES} AS k
        JOIN {SCHEMA}.instruments AS i ON i.id = instrument_id
        WHERE symbol = :symbol GROUP BY 1 ORDER BY 1
    """
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(question), {"symbol": symbol})]


@pytest.mark.parametrize("tier", Tier)
def test_a_file_of_one_year(writer, hours, places, tier) -> None:
    """It is copied into the partition, by a writer and by either tier."""
    report = load(writer, recognise(hours()), tier=tier)
    assert (Mode.DIRECT, 100) == (report.mode, report.inserted)
    assert [f"{SCHEMA}.klines_1h_2025"] == places


@pytest.mark.parametrize(
    ("tier", "expected"), [(Tier.FAST, [f"{KLINES}_1h_2024", f"{KLINES}_1h_2025"]), (Tier.BASE, [KLINES])]
)
def test_a_file_of_two_years(writer, hours, symbol, places, tier, expected) -> None:
    """The fast tier parts it at the new year; the base tier leaves that to the server."""
    report = load(writer, recognise(hours(NEW_YEAR)), tier=tier)
    assert (Mode.DIRECT, 100) == (report.mode, report.inserted)
    assert expected == places
    assert [(f"{KLINES}_1h_2024", 30), (f"{KLINES}_1h_2025", 70)] == held(writer, symbol)


def test_a_candle_that_comes_late(writer, hours, symbol, places) -> None:
    """One of a year that has ended already: what was copied is taken back, and all goes into klines."""
    report = load(writer, recognise(hours(NEW_YEAR, late=True)), tier=Tier.FAST)
    assert (Mode.DIRECT, 100, 0) == (report.mode, report.inserted, report.rejected)
    assert KLINES == places[-1]
    assert [(f"{KLINES}_1h_2024", 30), (f"{KLINES}_1h_2025", 70)] == held(writer, symbol)


@pytest.mark.parametrize("tier", Tier)
def test_a_partition_that_is_made_for_it(own_writer, hours, places, tier) -> None:
    """It may be inserted into as any other."""
    assert 100 == load(own_writer, recognise(hours(datetime(2019, 3, 1, tzinfo=UTC))), tier=tier).inserted
    assert [f"{KLINES}_1h_2019"] == places


@pytest.mark.parametrize(
    "statement",
    [
        f"REVOKE INSERT ON {KLINES}_1h_2025 FROM {COPIED}_writer",
        f"DROP TRIGGER mirror_insert ON {KLINES}_1h_2025",
        f"ALTER TABLE {KLINES}_1h_2025 DISABLE TRIGGER mirror_insert",
        f"CREATE TRIGGER another AFTER INSERT ON {KLINES} FOR EACH STATEMENT EXECUTE FUNCTION {SCHEMA}.mirror_all()",
    ],
    ids=["no right", "no trigger", "a trigger disabled", "a trigger of klines alone"],
)
@pytest.mark.parametrize("tier", Tier)
def test_a_partition_that_klines_has_to_be_asked_for(own_writer, upgraded, hours, places, statement, tier) -> None:
    """A partition where the writer lacks the right, or by which a trigger of klines would be passed, is left alone."""
    run_sql(upgraded, statement)
    assert 100 == load(own_writer, recognise(hours()), tier=tier).inserted
    assert [KLINES] == places


def test_one_such_partition_of_two_years(own_writer, upgraded, hours, places) -> None:
    """Then neither is copied into, so that the file is one statement."""
    run_sql(upgraded, f"DROP TRIGGER mirror_insert ON {KLINES}_1h_2024")
    assert 100 == load(own_writer, recognise(hours(NEW_YEAR)), tier=Tier.FAST).inserted
    assert [KLINES] == places


def test_a_table_of_a_partition_s_name(own_writer, upgraded, hours, places) -> None:
    """One that was detached has the name, the triggers and the right, but rows in it are no candles of klines."""
    run_sql(upgraded, f"ALTER TABLE {KLINES}_1h DETACH PARTITION {KLINES}_1h_2025")
    with pytest.raises(tables.CopyError, match="no partition of relation"):
        load(own_writer, recognise(hours()))
    assert [KLINES] == places


def test_a_partition_that_is_being_detached(own_writer, upgraded, hours, places) -> None:
    """It is none any more for klines, and what is copied into it would go with it."""
    load(own_writer, recognise(hours(JANUARY + timedelta(days=30))))
    with own_writer.connect() as reader:
        reader.execute(text(f"SELECT count(*) FROM {KLINES}"))
        engine = engine_of(upgraded).execution_options(isolation_level="AUTOCOMMIT")
        with engine.connect() as admin, pytest.raises(OperationalError, match="lock timeout"):
            admin.execute(text("SET lock_timeout = '100ms'"))
            admin.execute(text(f"ALTER TABLE {KLINES}_1h DETACH PARTITION {KLINES}_1h_2025 CONCURRENTLY"))
    places.clear()
    with pytest.raises(tables.CopyError, match="no partition of relation"):
        load(own_writer, recognise(hours()))
    assert [KLINES] == places


@pytest.mark.parametrize("tier", Tier)
@pytest.mark.parametrize("start", [JANUARY, NEW_YEAR])
def test_the_mirrors_are_told_of_the_series(own_writer, upgraded, hours, symbol, tier, start) -> None:
    """Each statement tells the series, and nothing is mirrored anew."""
    run_sql(upgraded, f"TRUNCATE {SCHEMA}.mirror_outbox")
    load(own_writer, recognise(hours(start)), tier=tier)
    question = f"SELECT subject, key FROM {SCHEMA}.mirror_outbox WHERE subject <> 'instrument'"
    ids = f"SELECT concat(id, '|1h') FROM {SCHEMA}.instruments WHERE symbol = '{symbol}'"
    with own_writer.connect() as connection:
        told = [tuple(row) for row in connection.execute(text(question))]
        series = ("series", connection.scalar(text(ids)))
    assert [series] * (2 if (tier, start) == (Tier.FAST, NEW_YEAR) else 1) == told


def test_a_candle_that_somebody_else_writes_meanwhile(writer, hours, symbol, monkeypatch) -> None:
    """The partition's key refuses it a second time, and the file is compared instead: the file's candle counts."""
    load(writer, recognise(hours(NEW_YEAR - timedelta(days=50))))
    copy = tables.copy

    def beaten(connection, into, values, reading):
        monkeypatch.setattr(tables, "copy", copy)
        with writer.begin() as feed:
            feed.execute(FED, {"symbol": symbol, "at": JANUARY})
        return copy(connection, into, values, reading)

    monkeypatch.setattr(tables, "copy", beaten)
    report = load(writer, recognise(hours()))
    assert (Mode.COMPARED, 99, 1) == (report.mode, report.inserted, report.changed)
