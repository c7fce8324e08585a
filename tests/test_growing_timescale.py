"""What klines in a hypertable of TimescaleDB have of their own: chunks, compression, triggers that mirrors hear of."""

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import make_klines
import pytest
from extensions import CONTENT, DAY, KLINES, SCHEMA, Extension, Timescale, convert, correct, given, leftovers
from installation import ask, engine_of, rows, run_sql, use
from mirroring import Scene
from sqlalchemy import URL, text
from sqlalchemy.exc import DBAPIError

from helios import backfill, retention
from helios.growing import Layout, work
from helios.growing.converting import Conversion
from helios.growing.work import Batch, Work


@pytest.fixture(scope="module")
def extension() -> Iterator[Extension]:
    """The server that HELIOS_TIMESCALE_URL names."""
    with given(Timescale) as extension:
        yield extension


def chunks(url: URL) -> list[tuple[Any, ...]]:
    """List the chunks: whether compressed, and the intervals in each."""
    names = rows(
        url,
        """SELECT format('%I.%I', chunk_schema, chunk_name), is_compressed FROM timescaledb_information.chunks
           WHERE hypertable_name = 'klines' ORDER BY 1""",
    )
    found = []
    for name, compressed in names:
        found.append((compressed, *rows(url, f"SELECT array_agg(DISTINCT interval) FROM {name}")[0]))
    return found


def test_a_chunk_holds_one_interval(partitions):
    """And is compressed, for they all have ended."""
    convert(partitions, Layout.TIMESCALEDB)
    found = chunks(partitions)
    assert {"1m", "1h", "1d"} == {interval for _, intervals in found for interval in intervals}
    assert all(compressed and len(intervals) == 1 for compressed, intervals in found)


def test_klines_cannot_be_truncated_meanwhile(partitions, monkeypatch):
    """Triggers tell no rows then, so it is refused, with the remedy."""
    monkeypatch.setattr(work, "MOST_ROWS", 5_000)
    convert(partitions, Layout.TIMESCALEDB, steps=1)
    with pytest.raises(DBAPIError, match="klines are being converted, and cannot be truncated"):
        run_sql(partitions, f"TRUNCATE {KLINES}")
    convert(partitions, Layout.PARTITIONS)
    assert [] == leftovers(partitions)
    run_sql(partitions, f"TRUNCATE {KLINES}")


def test_chunks_are_decompressed_amid_a_comparison(partitions, monkeypatch):
    """Rows that somebody's decompress_chunk() moves away from under it are not taken for deleted ones."""
    convert(partitions, Layout.TIMESCALEDB)
    content = rows(partitions, CONTENT)
    agrees, take_over = Conversion.agrees, Work.take_over
    decompress = f"SELECT decompress_chunk(c) FROM show_chunks('{KLINES}') AS c"
    decompressing = threading.Thread(target=run_sql, args=(partitions, decompress))

    def agrees_on_what_is_written(self: Conversion, batch: Batch, *, alone: bool) -> bool:
        if (batch.interval, batch.from_id) == ("1m", 3) and decompressing.ident is None:
            run_sql(partitions, CORRECTION)
        return agrees(self, batch, alone=alone)

    def take_over_beside_it(self: Work) -> int:
        steady = self.connection.scalar(text("SHOW transaction_isolation")) == "repeatable read"
        noted = self.connection.scalar(text(f"SELECT count(*) FROM {self.schema}.klines_changes"))
        if steady and noted and decompressing.ident is None:
            decompressing.start()
            decompressing.join(timeout=2)  # it has ended, or waits
        return take_over(self)

    monkeypatch.setattr(Conversion, "agrees", agrees_on_what_is_written)
    monkeypatch.setattr(Work, "take_over", take_over_beside_it)
    convert(partitions, Layout.PARTITIONS)
    decompressing.join()
    assert content == rows(partitions, CONTENT)


CORRECTION = f"""
    INSERT INTO {KLINES} (instrument_id, interval, open_time, open, high, low, close, volume)
    SELECT 3, '1m', open_time, 1, 2, 1, 1, 1
    FROM (VALUES ('2025-01-01T00:00Z'::timestamptz), ('2025-01-07T22:39Z')) AS ends (open_time)
    ON CONFLICT (instrument_id, interval, open_time) DO UPDATE SET volume = klines.volume
"""


def test_more_may_be_corrected_than_timescaledb_decompresses_at_once(moved, tmp_path):
    """Its limit of 100,000 rows in a transaction does not stop a file."""
    file = make_klines.make_file(tmp_path, "MANYUSDT", "1m", start=DAY, rows=110_000)
    engine = engine_of(moved)
    backfill.load(engine, backfill.recognise(file.path))
    convert(moved, Layout.TIMESCALEDB)
    assert all(compressed for compressed, _ in chunks(moved))
    file.path.write_text("\n".join(correct(line) for line in file.path.read_text().splitlines()) + "\n")
    assert 110_000 == backfill.load(engine, backfill.recognise(file.path)).changed


def test_a_query_looks_into_chunks_of_its_interval_alone(partitions):
    """Ordered, and no more than are needed for the newest; compressed ones are read by series."""
    convert(partitions, Layout.TIMESCALEDB)
    question = f"""
        EXPLAIN (COSTS OFF) SELECT * FROM {KLINES} WHERE instrument_id = 1 AND interval = '1m'
        AND open_time >= '2025-01-02Z' ORDER BY open_time DESC LIMIT 500
    """
    seen = "\n".join(each[0] for each in rows(partitions, question))
    of_minutes = ask(partitions, f"SELECT count(DISTINCT tableoid) FROM {KLINES} WHERE interval = '1m'")
    assert of_minutes >= seen.count("ColumnarScan") + seen.count("DecompressChunk") >= 1
    assert "instrument_id = 1" in seen


def test_a_plan_counts_compressed_candles(moved):
    """Of all chunks that a policy calls old."""
    with engine_of(moved).connect() as connection:
        plan = retention.plan(connection, retention.parse("1h 30d"), now=DAY + timedelta(days=31))
    assert 1_000 == sum(part.rows for part in plan.going)


@pytest.fixture
def scene(extension: Extension, valkey: URL, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    """A hypertable, mirrored; afterwards both sides must be alike."""
    with extension.made() as url:
        use(monkeypatch, url, DATABASE_ROLE_PREFIX=extension.roles)
        convert(url, extension.layout)
        scene = Scene(url)
        scene.begin(valkey)
        yield scene
        scene.end()


CANDLES = f"""
    INSERT INTO {KLINES} (instrument_id, interval, open_time, open, high, low, close, volume)
    SELECT 1, '1m', '2025-03-01Z'::timestamptz + n * interval '1 minute', 1, 2, 1, 1.50, n
    FROM generate_series(1, 300) AS n
"""


def test_mirrors_follow_a_hypertable(scene):
    """Inserts, COPY, updates, deletes, before and after compression; a mass of rows costs an entry for the series."""
    scene.run(CANDLES)
    assert [("series", "1|1m")] == scene.outbox()
    assert scene.step()
    convert(scene.url, Layout.TIMESCALEDB)
    writes: list[Callable[[], None]] = [
        lambda: scene.run(f"UPDATE {KLINES} SET volume = 7 WHERE open_time = '2025-03-01T04:59Z'"),
        lambda: scene.run(f"DELETE FROM {KLINES} WHERE open_time >= '2025-03-01T04:30Z'"),
        lambda: scene.copy(
            f"COPY {KLINES} (instrument_id, interval, open_time, open, high, low, close, volume) FROM STDIN",
            "1\t1m\t2025-03-01 04:40Z\t1\t1\t1\t1\t1\n",
        ),
        lambda: scene.run(f"DELETE FROM {KLINES}"),
    ]
    for write in writes:
        scene.run(f"TRUNCATE {SCHEMA}.mirror_outbox")
        write()
        assert [("series", "1|1m")] == scene.outbox()
        assert scene.step()
    assert scene.klines() is None
