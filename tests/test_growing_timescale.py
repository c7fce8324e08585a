"""Klines in a hypertable of TimescaleDB: run where HELIOS_TIMESCALE_URL names a server that has it, as a superuser."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import make_klines
import pytest
from installation import ROOT, Run, admin, alembic, ask, engine_of, login, made, rows, run_sql, upgrade, use, variables
from mirroring import Scene
from sqlalchemy import URL, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from helios import backfill, growing, quality, queries, retention
from helios.backfill import Mode
from helios.errors import InputError
from helios.feed import Feed
from helios.growing import Layout, work
from helios.growing.converting import Conversion
from helios.models import Interval
from helios.settings import Settings

GIVEN = os.environ.get("HELIOS_TIMESCALE_URL")
pytestmark = pytest.mark.skipif(GIVEN is None, reason="HELIOS_TIMESCALE_URL names no server with TimescaleDB")
SCHEMA = "helios_trading"
KLINES = f"{SCHEMA}.klines"
ROLES = "timescaled"  # the prefix of the roles on that server, which are dropped at the end
DAY = datetime(2025, 1, 1, tzinfo=UTC)
CONTENT = f"SELECT count(*), sum(hash_record_extended(k, 0)), min(open_time), max(open_time) FROM {KLINES} AS k"
TRIGGERS = f"""
    SELECT tgname::text, pg_get_triggerdef(oid) FROM pg_trigger WHERE tgrelid = '{KLINES}'::regclass
    AND NOT tgisinternal ORDER BY 1
"""
FILL = f"""
    INSERT INTO {KLINES} (instrument_id, interval, open_time, open, high, low, close, volume, trades)
    SELECT i, '1m', '2025-01-01Z'::timestamptz + n * interval '1 minute', 1.50 + n, 2 + n, 1, 1.5 + n, n / 7.0, n
    FROM generate_series(1, 3) AS i, generate_series(0, 9999) AS n
    UNION ALL
    SELECT 1, '1h', '2023-11-01Z'::timestamptz + n * interval '1 hour', 1, 2, 0.5, 1, 0, NULL
    FROM generate_series(0, 999) AS n
    UNION ALL
    SELECT 77, '1d', '2024-02-01Z'::timestamptz + n * interval '1 day', 1, 2, 0.5, 1, 0, NULL
    FROM generate_series(0, 99) AS n
"""  # instrument 77 is not there: its candles move all the same
SYMBOLS = ("AUSDT", "BUSDT", "CUSDT")


@pytest.fixture(scope="module")
def timescale() -> Iterator[URL]:
    """The server's URL, for databases of the tests' own."""
    url = make_url(str(GIVEN)).set(drivername="postgresql+psycopg2")
    yield url
    for role in rows(url, "SELECT rolname::text FROM pg_roles WHERE rolname LIKE :like", like=f"{ROLES}\\_%"):
        admin(url, f'DROP ROLE "{role[0]}"')


@contextmanager
def installed(timescale: URL) -> Iterator[URL]:
    """Make a database with the extension, all tables, three instruments and candles of several intervals."""
    with made(timescale, "template0") as url:
        run_sql(url, "CREATE EXTENSION IF NOT EXISTS timescaledb")
        upgrade(url, DATABASE_ROLE_PREFIX=ROLES)
        listed = ", ".join(f"('binance', 'spot', '{symbol}')" for symbol in SYMBOLS)
        run_sql(
            url,
            f"INSERT INTO {SCHEMA}.instruments (exchange, market, symbol) VALUES {listed}",
            f"SELECT {SCHEMA}.make_kline_partition('1h', 2023)",
            FILL,
        )
        yield url


@pytest.fixture
def partitions(timescale: URL, monkeypatch: pytest.MonkeyPatch) -> Iterator[URL]:
    """Such a database, in partitions, for one test."""
    with installed(timescale) as url:
        use(monkeypatch, url, DATABASE_ROLE_PREFIX=ROLES)
        yield url


@pytest.fixture(scope="module")
def converted(timescale: URL) -> Iterator[URL]:
    """One whose klines are a hypertable, for tests that keep to an instrument of their own."""
    with installed(timescale) as url, pytest.MonkeyPatch.context() as patch:
        use(patch, url, DATABASE_ROLE_PREFIX=ROLES)
        convert(url, "timescaledb")
        yield url


@pytest.fixture
def hypertable(converted: URL, monkeypatch: pytest.MonkeyPatch) -> URL:
    """The same, with the settings for it."""
    use(monkeypatch, converted, DATABASE_ROLE_PREFIX=ROLES)
    return converted


def planned(url: URL, to: str) -> growing.Plan:
    with engine_of(url).connect() as connection:
        return growing.plan(connection, SCHEMA, to)


def convert(url: URL, to: str, *, steps: int | None = None) -> int:
    """Convert, or stop after some steps as a kill would; tells how many there were."""
    for number, _ in enumerate(growing.convert(Settings.from_environment(), planned(url, to)), 1):
        if number == steps:
            return number
    return 0


def layout(url: URL) -> Layout:
    return planned(url, "partitions").here


def leftovers(url: URL) -> list[Any]:
    question = f"""
        SELECT relname::text FROM pg_class WHERE relnamespace = '{SCHEMA}'::regnamespace
        AND relname ~ 'klines_(next|former|batches|changes)'
        UNION SELECT tgname FROM pg_trigger WHERE tgname LIKE 'note%'
        UNION SELECT proname FROM pg_proc WHERE proname LIKE 'note_kline%'
    """
    return rows(url, question)


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


def test_klines_move_into_a_hypertable_and_back(partitions, helios, valkey, monkeypatch):
    """Every value stays as it is, also of a series without its instrument; rights, triggers, comments, models agree."""
    monkeypatch.setenv("REDIS_URL", valkey.render_as_string(hide_password=False))
    assert 0 == helios("environment", "set", "development")[0]
    content, triggers = rows(partitions, CONTENT), rows(partitions, TRIGGERS)
    status, said, talk = helios("klines", "convert", "--to", "timescaledb")
    assert (0, Layout.PARTITIONS) == (status, layout(partitions))
    assert "--apply does it" in talk
    assert "partitions" in said
    assert 0 == helios("klines", "convert", "--to", "timescaledb", "--apply")[0]
    assert (Layout.TIMESCALEDB, content, []) == (
        layout(partitions),
        rows(partitions, CONTENT),
        leftovers(partitions),
    )
    assert all(compressed and len(intervals) == 1 for compressed, intervals in chunks(partitions))
    env = variables(partitions, DATABASE_ROLE_PREFIX=ROLES)
    assert "No new upgrade operations detected" in "".join(alembic("check", env=env))
    assert {"instruments"} == wrong(helios)
    assert "klines are a hypertable" in helios("doctor")[1]
    assert 0 == helios("klines", "convert", "--to", "partitions", "--apply")[0]
    assert (Layout.PARTITIONS, content, triggers, []) == (
        layout(partitions),
        rows(partitions, CONTENT),
        rows(partitions, TRIGGERS),
        leftovers(partitions),
    )
    assert "No new upgrade operations detected" in "".join(alembic("check", env=env))
    assert {"instruments"} == wrong(helios)
    assert not ask(partitions, f"SELECT {SCHEMA}.make_kline_partition('1h', 2023)")
    assert ask(partitions, f"SELECT {SCHEMA}.make_kline_partition('1h', 2011)")


def wrong(helios: Run) -> set[str]:
    """Name what the doctor finds wrong; the instrument of one series is not there."""
    return {each["check"] for each in json.loads(helios("doctor", "--json")[1]) if not each["ok"]}


@pytest.mark.parametrize("there", [Layout.TIMESCALEDB, Layout.PARTITIONS])
def test_writers_go_on_meanwhile(partitions, monkeypatch, there):
    """What is inserted, changed and deleted while batches are copied and compared is there afterwards, exactly."""
    monkeypatch.setattr(work, "MOST_ROWS", 10_000)
    back = Layout.PARTITIONS if there is Layout.TIMESCALEDB else Layout.TIMESCALEDB
    if back is Layout.TIMESCALEDB:
        convert(partitions, back)
    run_sql(partitions, f"CREATE TABLE public.expected AS SELECT * FROM {KLINES}")
    with writing(partitions) as counted:
        convert(partitions, there)
    assert there is layout(partitions)
    assert counted[0] >= 5
    differing = f"""
        SELECT count(*) FROM (
            (SELECT {COLUMNS} FROM {KLINES} EXCEPT ALL SELECT {COLUMNS} FROM public.expected)
            UNION ALL (SELECT {COLUMNS} FROM public.expected EXCEPT ALL SELECT {COLUMNS} FROM {KLINES})
        ) AS d
    """
    assert 0 == ask(partitions, differing)


COLUMNS = "instrument_id, interval, open_time, open, high, low, close, volume, trades"


@contextmanager
def writing(url: URL) -> Iterator[list[int]]:
    """Write to klines and to the table of what is expected, in one transaction each, until the block ends."""
    over, counted, failed = threading.Event(), [0], []

    def write() -> None:
        with engine_of(url).connect() as connection:
            while not over.wait(0.02):  # some dozen transactions a second
                n = counted[0]
                for table in (KLINES, "public.expected"):
                    for statement in statements(table, n):
                        connection.execute(text(statement))
                if n % 7 == 3:
                    connection.rollback()
                else:
                    connection.commit()
                counted[0] += 1

    def guarded() -> None:
        try:
            write()
        except DBAPIError as error:
            failed.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    try:
        yield counted
    finally:
        over.set()
        thread.join()
    assert [] == failed


def statements(table: str, n: int) -> list[str]:
    """Change old candles, delete some, add new ones, of a year without a partition too."""
    key = "interval = '1m' AND open_time = '2025-01-01Z'::timestamptz + interval '1 minute'"
    return [
        f"UPDATE {table} SET close = 1.25, trades = {n} WHERE instrument_id = {n % 3 + 1} AND {key} * {n * 37 % 9000}",
        f"DELETE FROM {table} WHERE instrument_id = {n % 3 + 1} AND {key} * {n * 53 % 9000}",
        f"""INSERT INTO {table} ({COLUMNS}) VALUES
            ({n % 3 + 1}, '1m', '2025-06-01Z'::timestamptz + {n} * interval '1 minute', 1, 2, 0.5, 1, {n}, 1)""",
        f"""INSERT INTO {table} ({COLUMNS}) VALUES
            (9, '5m', '2026-11-01Z'::timestamptz + {n} * interval '5 minutes', 1, 2, 0.5, 1, {n}, 1)""",
    ]


def test_stopped_anywhere_it_goes_on(partitions, monkeypatch):
    """After each step of both ways; in the end nothing is lost, doubled or left over."""
    monkeypatch.setattr(work, "MOST_ROWS", 15_000)
    content = rows(partitions, CONTENT)
    for there in (Layout.TIMESCALEDB, Layout.PARTITIONS):
        stops = 0
        while convert(partitions, there, steps=2):
            stops += 1
            assert content == rows(partitions, CONTENT)
        assert stops >= 3
        assert (there, content, []) == (layout(partitions), rows(partitions, CONTENT), leftovers(partitions))


def test_killed_it_goes_on(partitions):
    """SIGKILL while batches are copied or compared, by the server's side of the time; then it is run to its end."""
    content = rows(partitions, CONTENT)
    program = textwrap.dedent("""
        import sys
        from helios import growing
        from helios.growing import work
        from helios.settings import Settings
        from sqlalchemy import create_engine
        work.MOST_ROWS = 1000
        settings = Settings.from_environment()
        with create_engine(settings.database_url).connect() as connection:
            plan = growing.plan(connection, settings.database_schema, sys.argv[1])
        for each in growing.convert(settings, plan):
            print(each.stage, flush=True)
    """)
    env = variables(partitions, DATABASE_ROLE_PREFIX=ROLES)
    for there in ("timescaledb", "partitions"):
        for lines in (1, 4, 9):
            process = subprocess.Popen(
                [sys.executable, "-c", program, there], env=env, cwd=ROOT, stdout=subprocess.PIPE, text=True
            )
            for _ in range(lines):
                assert process.stdout
                assert process.stdout.readline()
            process.send_signal(signal.SIGKILL)
            process.communicate()
            assert content == rows(partitions, CONTENT)
        convert(partitions, there)
        assert (there, content, []) == (layout(partitions), rows(partitions, CONTENT), leftovers(partitions))


def test_a_difference_is_found_and_mended(partitions, monkeypatch):
    """A copy that somebody tampered with does not take the place of klines as it is."""
    content = rows(partitions, CONTENT)
    compare = Conversion.compare

    def tampered(self: Conversion) -> Iterator[growing.Progress]:
        run_sql(
            partitions,
            f"UPDATE {SCHEMA}.klines_next SET close = 1 WHERE instrument_id = 2 AND open_time = '2025-01-03Z'",
            f"DELETE FROM {SCHEMA}.klines_next WHERE instrument_id = 3 AND open_time < '2025-01-01T00:30Z'",
        )
        return compare(self)

    monkeypatch.setattr(Conversion, "compare", tampered)
    convert(partitions, Layout.TIMESCALEDB)
    assert content == rows(partitions, CONTENT)


def test_klines_cannot_be_truncated_meanwhile(partitions, monkeypatch):
    """Triggers tell no rows then, so it is refused, with the remedy."""
    monkeypatch.setattr(work, "MOST_ROWS", 5_000)
    convert(partitions, Layout.TIMESCALEDB, steps=1)
    with pytest.raises(DBAPIError, match="klines are being converted, and cannot be truncated"):
        run_sql(partitions, f"TRUNCATE {KLINES}")
    convert(partitions, Layout.PARTITIONS)
    assert [] == leftovers(partitions)
    run_sql(partitions, f"TRUNCATE {KLINES}")


@pytest.mark.parametrize("tier", list(backfill.Tier))
def test_files_are_loaded_and_corrected(hypertable, tmp_path, tier):
    """Both tiers, as a writer: a new file, the same again, and a corrected one over chunks that are compressed."""
    symbol = f"{tier.upper()}USDT"
    engine = engine_of(login(hypertable, f"loader_{tier}", f"GRANT {ROLES}_writer TO {{login}}"))
    try:
        file = make_klines.make_file(tmp_path, symbol, "1m", start=DAY, rows=20_000)
        source = backfill.recognise(file.path)
        assert (Mode.DIRECT, 20_000) == mode_and_inserted(backfill.load(engine, source, tier=tier))
        convert(hypertable, Layout.TIMESCALEDB)  # compresses what was loaded
        assert all(compressed for compressed, _ in chunks(hypertable))
        assert Mode.UNCHANGED is backfill.load(engine, source, tier=tier).mode
        again = backfill.load(engine, source, tier=tier, again=True)
        assert (Mode.COMPARED, 0, 0) == (again.mode, again.inserted, again.changed)
        lines = file.path.read_text().splitlines()
        corrected = [correct(line) if n % 100 == 7 else line for n, line in enumerate(lines) if n != 50]
        file.path.write_text("\n".join(corrected) + "\n")
        report = backfill.load(engine, source, tier=tier)
        assert (Mode.COMPARED, 0, 200) == (report.mode, report.inserted, report.changed)
        file.path.write_text("\n".join(correct(line) for line in lines) + "\n")
        report = backfill.load(engine, source, tier=tier)
        assert (0, 19_800) == (report.inserted, report.changed)
        held = (
            "SELECT count(*), count(*) FILTER (WHERE volume = 4711) FROM {} WHERE instrument_id = (SELECT id FROM {})"
        )
        named = f"{SCHEMA}.instruments WHERE symbol = :symbol"
        assert [(20_000, 20_000)] == rows(hypertable, held.format(KLINES, named), symbol=symbol)
        with pytest.raises(InputError, match="--initial fills partitions, and klines are timescaledb"):
            backfill.load(engine_of(hypertable), source, tier=tier, initial=True, again=True)
    finally:
        run_sql(hypertable, f"DROP ROLE loader_{tier}_{hypertable.database}")


def mode_and_inserted(report: backfill.Report) -> tuple[Mode, int]:
    return report.mode, report.inserted


def correct(line: str) -> str:
    """Change the volume of a candle."""
    fields = line.split(",")
    return ",".join([*fields[:5], "4711", *fields[6:]])


def test_more_may_be_corrected_than_timescaledb_decompresses_at_once(hypertable, tmp_path):
    """Its limit of 100,000 rows in a transaction does not stop a file."""
    file = make_klines.make_file(tmp_path, "MANYUSDT", "1m", start=DAY, rows=110_000)
    engine = engine_of(hypertable)
    backfill.load(engine, backfill.recognise(file.path))
    convert(hypertable, Layout.TIMESCALEDB)
    file.path.write_text("\n".join(correct(line) for line in file.path.read_text().splitlines()) + "\n")
    assert 110_000 == backfill.load(engine, backfill.recognise(file.path)).changed


def test_a_feed_writes_candles(hypertable):
    """New ones, and over compressed ones; making partitions costs nothing and makes nothing."""
    engine = create_engine(hypertable, poolclass=NullPool)
    feed = Feed(engine)
    first = round(DAY.timestamp()) * 1000
    candles = [[first + n * 60_000, "1", "2", "0.5", "1", str(n)] for n in range(5)]
    assert 5 == feed.take(candles, symbol="FEEDUSDT", interval="1m").klines
    convert(hypertable, Layout.TIMESCALEDB)
    candles[2][5] = "99"
    feed.take(candles, symbol="FEEDUSDT", interval="1m")
    question = f"""
        SELECT volume FROM {KLINES} JOIN {SCHEMA}.instruments ON id = instrument_id
        WHERE symbol = 'FEEDUSDT' ORDER BY open_time
    """
    assert [0, 1, 99, 3, 4] == [int(each[0]) for each in rows(hypertable, question)]


def test_queries_answer_as_before(partitions):
    """The newest, a range, gaps, coverage, the newest of each: from partitions and from compressed chunks alike."""
    before = answers(partitions)
    convert(partitions, Layout.TIMESCALEDB)
    assert before == answers(partitions)


def answers(url: URL) -> list[Any]:
    with Session(engine_of(url)) as session:
        return [
            queries.klines(1, Interval.M1, last=500).rows(session),
            queries.klines(2, Interval.M1, since=DAY + timedelta(days=1), until=DAY + timedelta(days=3)).rows(session),
            queries.klines(1, Interval.H1).rows(session),
            queries.gaps(1, Interval.M1).rows(session),
            queries.latest_of_each(Interval.M1).rows(session),
            queries.coverage(session),
            queries.ownerless_series().rows(session),
            quality.measure(session, 1, Interval.M1, since=DAY, until=DAY + timedelta(days=8)),
            quality.series(session),
        ]


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
    assert 1 == ask(
        partitions, "SELECT count(*) FROM (SELECT 1) AS one WHERE :seen LIKE '%instrument_id = 1%'", seen=seen
    )


def test_what_a_policy_names_goes_by_chunks(partitions):
    """The intervals without a rule stay, the mirrors are told, and a file loaded into a chunk is forgotten."""
    run_sql(
        partitions,
        f"""INSERT INTO {SCHEMA}.kline_files
                (instrument_id, interval, name, sha256, rows, first_open_time, last_open_time)
            VALUES (1, '1m', 'old', repeat('0', 64), 1, '2025-01-02Z', '2025-01-03Z'),
                   (1, '1h', 'other', repeat('0', 64), 1, '2023-11-02Z', '2023-11-03Z')""",
        f"TRUNCATE {SCHEMA}.mirror_outbox",
    )
    convert(partitions, Layout.TIMESCALEDB)
    run_sql(partitions, f"TRUNCATE {SCHEMA}.mirror_outbox")
    before = ask(partitions, f"SELECT count(*) FROM {KLINES} WHERE interval <> '1m'")
    with engine_of(partitions).connect() as connection:
        plan = retention.plan(connection, retention.parse("1m 30d, 1h forever"), now=DAY + timedelta(days=60))
        none = retention.plan(connection, retention.parse("1m 30d"), now=DAY + timedelta(days=31))
    assert none.empty
    assert 30_000 == sum(part.rows for part in plan.going)
    assert {"1m", "1h"} == {part.interval for part in plan.parts}
    assert 30_000 == sum(each.rows for each in retention.apply(Settings.from_environment(), plan))
    assert (0, before) == (
        ask(partitions, f"SELECT count(*) FROM {KLINES} WHERE interval = '1m'"),
        ask(partitions, f"SELECT count(*) FROM {KLINES}"),
    )
    assert [("other",)] == rows(partitions, f"SELECT name FROM {SCHEMA}.kline_files")
    assert [("1|1m",), ("2|1m",), ("3|1m",)] == rows(partitions, f"SELECT key FROM {SCHEMA}.mirror_outbox ORDER BY 1")
    assert [] == list(retention.apply(Settings.from_environment(), plan))
    convert(partitions, Layout.PARTITIONS)
    assert before == ask(partitions, f"SELECT count(*) FROM {KLINES}")


@pytest.fixture
def scene(timescale: URL, valkey: URL, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    """A hypertable, mirrored; afterwards both sides must be alike."""
    with made(timescale, "template0") as url:
        run_sql(url, "CREATE EXTENSION IF NOT EXISTS timescaledb")
        use(monkeypatch, url, DATABASE_ROLE_PREFIX=ROLES)
        upgrade(url, DATABASE_ROLE_PREFIX=ROLES)
        convert(url, Layout.TIMESCALEDB)
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


def test_a_writer_may_write_and_no_more(hypertable):
    """Insert, change and delete klines; not drop, compress or own them."""
    who = login(hypertable, "bot", f"GRANT {ROLES}_writer TO {{login}}")
    try:
        run_sql(
            who,
            f"INSERT INTO {KLINES} ({COLUMNS}) VALUES (555, '1m', '2025-01-01Z', 1, 1, 1, 1, 1, 1)",
            f"UPDATE {KLINES} SET volume = 2 WHERE instrument_id = 555",
            f"DELETE FROM {KLINES} WHERE instrument_id = 555",
            f"SELECT {SCHEMA}.make_kline_partition('1m', 2031)",
        )
        for statement in (
            f"DROP TABLE {KLINES}",
            f"TRUNCATE {KLINES}",
            f"SELECT {SCHEMA}.make_kline_partition_kept('1m', 2031)",
            f"SELECT compress_chunk(c) FROM show_chunks('{KLINES}') AS c",
        ):
            with pytest.raises(DBAPIError, match=r"permission denied|must be owner"):
                run_sql(who, statement)
    finally:
        run_sql(hypertable, f"DROP ROLE bot_{hypertable.database}")
