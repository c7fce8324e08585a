"""Converting klines where there is no TimescaleDB: what is refused, what is planned, and how the work is cut."""

import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import make_klines
import pytest
from extensions import leftovers
from installation import engine_of, rows, run_sql

from helios import backfill, growing
from helios.errors import InputError, SchemaError
from helios.growing.ground import run
from helios.growing.planning import refuse_unfit
from helios.growing.work import MOST_ROWS, Work, batches, joined
from helios.layout import Layout, layout_of

SCHEMA = "helios_trading"
DAY = datetime(2025, 3, 1, tzinfo=UTC)


def series(interval: str, instrument_id: int, first: datetime, days: int) -> SimpleNamespace:
    last = first + timedelta(days=days)
    return SimpleNamespace(interval=interval, instrument_id=instrument_id, first=first, last=last)


def test_a_server_without_timescaledb_is_told_how_to_get_it(helios, upgraded):
    """The plan is refused with exit status 1, and so is doing it; nothing is begun."""
    for more in ((), ("--apply",)):
        status, said, talk = helios("klines", "convert", "--to", "timescaledb", *more)
        assert (1, "") == (status, said)
        assert "TimescaleDB is not installed" in talk
        assert "CREATE EXTENSION timescaledb" in talk
    assert [] == rows(upgraded, "SELECT relname FROM pg_class WHERE relname LIKE 'klines_next%'")


def test_a_server_without_citus_is_told_how_to_get_it(helios, upgraded):
    """The plan is refused with exit status 1, with what to install and what to run."""
    status, said, talk = helios("klines", "convert", "--to", "citus")
    assert (1, "") == (status, said)
    assert "Citus is not installed in this database" in talk
    assert "citus_add_node" in talk


def test_partitions_stay_partitions(helios, upgraded):
    """Converting to what is there does nothing, and says so."""
    tables = "SELECT oid, relname FROM pg_class WHERE relname LIKE 'klines%' ORDER BY 1"
    before = rows(upgraded, tables)
    assert 0 == helios("klines", "convert", "--to", "partitions", "--apply")[0]
    status, said, talk = helios("klines", "convert", "--to", "partitions")
    assert (0, before) == (status, rows(upgraded, tables))
    assert "partitions" in said
    assert "klines are partitions already: nothing to do" in talk
    [told] = json.loads(helios("klines", "convert", "--to", "partitions", "--json")[1])
    assert ("partitions", "partitions", 28) == (told["here"], told["to"], told["chunk"])


def test_what_cannot_be_asked_for(helios, upgraded):
    """No other layout, no chunk of no days; exit status 2."""
    assert 2 == helios("klines", "convert", "--to", "cassandra")[0]
    assert 2 == helios("klines", "convert", "--to", "timescaledb", "--chunk-days", "0")[0]
    assert 2 == helios("klines", "convert")[0]
    with engine_of(upgraded).connect() as connection:
        with pytest.raises(InputError, match="'cassandra' is not a layout of klines"):
            growing.plan(connection, SCHEMA, "cassandra")
        with pytest.raises(InputError, match="chunks of 900 days"):
            growing.plan(connection, SCHEMA, "partitions", timedelta(days=900))


def test_an_unfit_timescaledb_is_refused():
    """Absent from the server or the database, too old, or licensed without compression: each has its remedy."""
    for facts, remedy in (
        ({"version": None, "license_": None, "available": False}, "install its package"),
        ({"version": None, "license_": None, "available": True}, "CREATE EXTENSION timescaledb"),
        ({"version": "2.9.3", "license_": "timescale", "available": True}, "2.9.3 is too old"),
        ({"version": "2.28.3", "license_": "apache", "available": True}, "has no compression"),
    ):
        with pytest.raises(SchemaError, match=remedy):
            refuse_unfit(**facts)
    refuse_unfit("2.18.0", "timescale", available=True)
    refuse_unfit("2.30.0-dev", "timescale", available=True)


def test_a_schema_without_klines_is_told_so(database):
    """Neither a plan nor a guess is made of it."""
    with engine_of(database).connect() as connection, pytest.raises(SchemaError, match="run `helios upgrade`"):
        layout_of(connection, SCHEMA)


def test_a_table_that_nobody_made_is_no_layout(upgraded):
    """Klines that are a plain table are neither partitions nor a hypertable."""
    with engine_of(upgraded).connect() as connection:
        assert Layout.PARTITIONS is layout_of(connection, SCHEMA)
    run_sql(
        upgraded,
        f"ALTER TABLE {SCHEMA}.klines RENAME TO gone",
        f"CREATE TABLE {SCHEMA}.klines (LIKE {SCHEMA}.gone)",
    )
    with engine_of(upgraded).connect() as connection, pytest.raises(SchemaError, match="neither partitioned nor"):
        layout_of(connection, SCHEMA)


def test_an_initial_load_is_refused_while_klines_are_converted(upgraded, tmp_path):
    """It exchanges partitions, which no trigger notes; nothing is written."""
    run_sql(upgraded, f"CREATE TABLE {SCHEMA}.klines_next (LIKE {SCHEMA}.klines)")
    made = make_klines.make_file(tmp_path, "BTCUSDT", "1h", start=DAY, rows=24)
    with pytest.raises(InputError, match="klines are being converted"):
        backfill.load(engine_of(upgraded), backfill.recognise(made.path), initial=True)
    assert [(0,)] == rows(upgraded, f"SELECT count(*) FROM {SCHEMA}.klines")


def test_the_doctor_sees_an_unfinished_conversion(helios, upgraded, valkey, monkeypatch):
    """With what goes on with it."""
    monkeypatch.setenv("REDIS_URL", valkey.render_as_string(hide_password=False))
    run_sql(upgraded, f"CREATE TABLE {SCHEMA}.klines_next (LIKE {SCHEMA}.klines)")
    status, said, _ = helios("doctor")
    assert 1 == status
    assert "klines were being converted" in said


def test_what_was_begun_and_is_not_wanted_is_dropped(helios, upgraded):
    """With `--to` what the klines are, the copy and what notes changes for it go."""
    run_sql(
        upgraded,
        f"CREATE TABLE {SCHEMA}.klines_next (LIKE {SCHEMA}.klines)",
        f"CREATE TABLE {SCHEMA}.klines_changes (first timestamptz)",
        f"CREATE FUNCTION {SCHEMA}.note_kline_changes() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        f"""CREATE TRIGGER note_kline_changes_insert AFTER INSERT ON {SCHEMA}.klines
            FOR EACH STATEMENT EXECUTE FUNCTION {SCHEMA}.note_kline_changes()""",
    )
    assert 4 == len(leftovers(upgraded))
    _, _, talk = helios("klines", "convert", "--to", "partitions")
    assert "the copy that was begun is dropped" in talk
    assert 0 == helios("klines", "convert", "--to", "partitions", "--apply")[0]
    assert [] == leftovers(upgraded)


class Beside:
    """A place for the copy that needs no extension: a plain table."""

    def make(self, connection):
        """Make it."""
        run(connection, f"CREATE TABLE {SCHEMA}.klines_next (LIKE {SCHEMA}.klines INCLUDING ALL)")

    def make_room(self, connection, interval, first, last):
        """Make nothing: it takes every row."""


def test_what_a_conversion_writes_down_tells_no_mirror(upgraded):
    """One batch is written down and copied, and the outbox stays empty: the copy and its notes have no such trigger."""
    candle = f"""
        INSERT INTO {SCHEMA}.klines (instrument_id, interval, open_time, open, high, low, close, volume)
        VALUES (1, '1m', '2025-03-01Z', 1, 1, 1, 1, 1)
    """
    run_sql(upgraded, candle, f"TRUNCATE {SCHEMA}.mirror_outbox")
    with engine_of(upgraded).begin() as connection:
        run(connection, f"SET LOCAL search_path TO {SCHEMA}, pg_temp")
        working = Work(connection, SCHEMA, Beside(), Layout.PARTITIONS)
        working.begin()
        working.plan_batches()
        batch = working.following("copied")
        assert 1 == working.copy(batch)
        assert working.agrees(batch)
    assert [] == rows(upgraded, f"SELECT subject, key FROM {SCHEMA}.mirror_outbox")


def test_batches_hold_every_candle_once():
    """Whatever the series: each of their candles falls into one batch, and none has more rows than a batch may have."""
    found = [
        series("1m", 1, DAY, 100),
        series("1m", 2, DAY + timedelta(days=40), 1),
        series("1m", 7, DAY - timedelta(days=70), 3),
        *(series("1d", number, DAY, 400) for number in range(1, 9_001)),
        series("1mo", 3, DAY, 2_000),
    ]
    cut = list(batches(found))
    steps = {"1m": timedelta(hours=7), "1d": timedelta(days=9), "1mo": timedelta(days=31)}
    for each in [*found[:3], found[500], found[-1]]:
        at = each.first
        while at <= each.last:
            holding = [
                batch
                for batch in cut
                if batch["interval"] == each.interval
                and batch["first"] <= at < batch["until"]
                and batch["from_id"] <= each.instrument_id <= batch["to_id"]
            ]
            assert 1 == len(holding)
            at += steps[each.interval]
    days = [batch for batch in cut if batch["interval"] == "1d"]
    assert MOST_ROWS >= max(28 * (batch["to_id"] - batch["from_id"] + 1) for batch in days)


def test_a_second_is_cut_finer_than_a_minute():
    """A batch of one series is bounded too."""
    cut = list(batches([series("1s", 1, DAY, 10)]))
    assert {timedelta(seconds=MOST_ROWS)} == {batch["until"] - batch["first"] for batch in cut}


def test_ranges_that_overlap_are_one():
    """Each change is a range; a burst of them is taken over once."""
    at = [DAY + timedelta(minutes=n) for n in range(10)]
    assert [(at[0], at[5]), (at[7], at[7])] == joined(
        iter([(at[0], at[2]), (at[1], at[5]), (at[3], at[4]), (at[7], at[7])])
    )
    assert [] == joined(iter([]))
