"""Klines in each place that they can move to: every scene is told once, for TimescaleDB and for Citus."""

import json
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import make_klines
import pytest
from extensions import (
    COLUMNS,
    CONTENT,
    DAY,
    KLINES,
    SCHEMA,
    Citus,
    Extension,
    Timescale,
    convert,
    correct,
    given,
    layout,
    leftovers,
)
from installation import ROOT, Run, alembic, ask, engine_of, login, rows, run_sql, variables
from sqlalchemy import URL, create_engine, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from helios import backfill, db, growing, quality, queries, retention, schema
from helios.backfill import Mode
from helios.errors import InputError
from helios.feed import AsyncFeed, Feed
from helios.growing import Layout, work
from helios.growing.converting import Conversion
from helios.layout import tell_written
from helios.models import Instrument, Interval
from helios.settings import Settings

TRIGGERS = f"""
    SELECT tgname::text, pg_get_triggerdef(oid) FROM pg_trigger WHERE tgrelid = '{KLINES}'::regclass
    AND NOT tgisinternal ORDER BY 1
"""
ROUTINES = f"""
    SELECT oid::regprocedure::text, prosrc, proacl::text, obj_description(oid, 'pg_proc') FROM pg_proc
    WHERE pronamespace = '{SCHEMA}'::regnamespace ORDER BY 1
"""


@pytest.fixture(scope="module", params=[Timescale, Citus])
def extension(request: pytest.FixtureRequest) -> Iterator[Extension]:
    """One after the other."""
    with given(request.param) as extension:
        yield extension


def test_klines_move_and_come_back(partitions, extension, helios, valkey, monkeypatch):
    """Every value stays as it is, also of a series without its instrument; rights, triggers, comments, models agree."""
    monkeypatch.setenv("REDIS_URL", valkey.render_as_string(hide_password=False))
    assert 0 == helios("environment", "set", "development")[0]
    content, triggers, functions = rows(partitions, CONTENT), rows(partitions, TRIGGERS), rows(partitions, ROUTINES)
    status, said, talk = helios("klines", "convert", "--to", str(extension.layout))
    assert (0, Layout.PARTITIONS) == (status, layout(partitions))
    assert extension.plan_says in talk
    assert "--apply does it" in talk
    assert "partitions" in said
    assert 0 == helios("klines", "convert", "--to", str(extension.layout), "--apply")[0]
    assert (extension.layout, content, []) == (layout(partitions), rows(partitions, CONTENT), leftovers(partitions))
    env = variables(partitions, DATABASE_ROLE_PREFIX=extension.roles)
    assert "No new upgrade operations detected" in "".join(alembic("check", env=env))
    assert {"instruments"} == wrong(helios)
    assert extension.doctor_says in helios("doctor")[1]
    assert 0 == helios("klines", "convert", "--to", "partitions", "--apply")[0]
    assert (Layout.PARTITIONS, content, triggers, functions, []) == (
        layout(partitions),
        rows(partitions, CONTENT),
        rows(partitions, TRIGGERS),
        rows(partitions, ROUTINES),
        leftovers(partitions),
    )
    assert "No new upgrade operations detected" in "".join(alembic("check", env=env))
    assert {"instruments"} == wrong(helios)
    assert not ask(partitions, f"SELECT {SCHEMA}.make_kline_partition('1h', 2023)")
    assert ask(partitions, f"SELECT {SCHEMA}.make_kline_partition('1h', 2011)")


def wrong(helios: Run) -> set[str]:
    """Name what the doctor finds wrong; the instrument of one series is not there."""
    return {each["check"] for each in json.loads(helios("doctor", "--json")[1]) if not each["ok"]}


@pytest.mark.parametrize("moves_back", [False, True])
def test_writers_go_on_meanwhile(partitions, extension, monkeypatch, moves_back):
    """What is inserted, changed and deleted while batches are copied and compared is there afterwards, exactly."""
    monkeypatch.setattr(work, "MOST_ROWS", 10_000)
    if moves_back:
        convert(partitions, extension.layout)
    there = Layout.PARTITIONS if moves_back else extension.layout
    run_sql(partitions, f"CREATE TABLE public.expected AS SELECT * FROM {KLINES}")
    run_sql(partitions, f"SELECT {SCHEMA}.make_kline_partition('5m', 2026)")  # Citus makes none beside a write
    with writing(partitions, extension.pause) as counted:
        convert(partitions, there)
    assert there is layout(partitions)
    assert counted[0] >= 5
    run_sql(partitions, f"CREATE TABLE public.found AS SELECT * FROM {KLINES}")  # Citus compares no shards with it
    differing = f"""
        SELECT count(*) FROM (
            (SELECT {COLUMNS} FROM public.found EXCEPT ALL SELECT {COLUMNS} FROM public.expected)
            UNION ALL (SELECT {COLUMNS} FROM public.expected EXCEPT ALL SELECT {COLUMNS} FROM public.found)
        ) AS d
    """
    assert 0 == ask(partitions, differing)


@contextmanager
def writing(url: URL, pause: float) -> Iterator[list[int]]:
    """Write to klines and to the table of what is expected, in one transaction each, until the block ends."""
    over, counted, failed = threading.Event(), [0], []

    def write() -> None:
        with engine_of(url).connect() as connection:
            while not over.wait(pause):
                n = counted[0]
                for table in (KLINES, "public.expected"):
                    for statement in statements(table, n):
                        connection.execute(text(statement))
                tell_written(connection, SCHEMA, written(n))
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


def written(n: int) -> list[tuple[int, str, datetime, datetime]]:
    """Tell which candles the statements write, as whoever writes to shards does."""
    june, november = datetime(2025, 6, 1, tzinfo=UTC), datetime(2026, 11, 1, tzinfo=UTC)
    minutes = [DAY + timedelta(minutes=each) for each in (n * 37 % 9000, n * 53 % 9000)]
    of_each = [(n % 3 + 1, "1m", at) for at in (*minutes, june + timedelta(minutes=n))]
    return [(*each, each[-1]) for each in (*of_each, (9, "5m", november + timedelta(minutes=5 * n)))]


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


def test_stopped_anywhere_it_goes_on(partitions, extension, monkeypatch):
    """After each step of both ways; in the end nothing is lost, doubled or left over."""
    monkeypatch.setattr(work, "MOST_ROWS", 15_000)
    content = rows(partitions, CONTENT)
    for there in (extension.layout, Layout.PARTITIONS):
        stops = 0
        while convert(partitions, there, steps=2):
            stops += 1
            assert content == rows(partitions, CONTENT)
        assert stops >= 3
        assert (there, content, []) == (layout(partitions), rows(partitions, CONTENT), leftovers(partitions))


def test_killed_it_goes_on(partitions, extension):
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
    env = variables(partitions, DATABASE_ROLE_PREFIX=extension.roles)
    for there in (extension.layout, Layout.PARTITIONS):
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


def test_a_difference_is_found_and_mended(partitions, extension, monkeypatch):
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
    convert(partitions, extension.layout)
    assert content == rows(partitions, CONTENT)


@pytest.mark.parametrize("tier", list(backfill.Tier))
def test_files_are_loaded_and_corrected(moved, extension, tmp_path, tier):
    """Both tiers, as a writer: a new file over a year's end, the same again, and a corrected one, once compressed."""
    symbol = f"{tier.upper()}USDT"
    engine = engine_of(login(moved, f"loader_{tier}", f"GRANT {extension.roles}_writer TO {{login}}"))
    try:
        file = make_klines.make_file(tmp_path, symbol, "1m", start=DAY - timedelta(days=3), rows=20_000)
        source = backfill.recognise(file.path)
        assert (Mode.DIRECT, 20_000) == mode_and_inserted(backfill.load(engine, source, tier=tier))
        convert(moved, extension.layout)  # compresses what was loaded
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
        held = f"""
            SELECT count(*), count(*) FILTER (WHERE volume = 4711) FROM {KLINES}
            WHERE instrument_id = (SELECT id FROM {SCHEMA}.instruments WHERE symbol = :symbol)
        """
        assert [(20_000, 20_000)] == rows(moved, held, symbol=symbol)
        with pytest.raises(InputError, match=f"--initial fills partitions, and klines are {extension.layout}"):
            backfill.load(engine_of(moved), source, tier=tier, initial=True, again=True)
    finally:
        run_sql(moved, f"DROP ROLE loader_{tier}_{moved.database}")


def mode_and_inserted(report: backfill.Report) -> tuple[Mode, int]:
    return report.mode, report.inserted


def test_a_feed_writes_candles(moved, extension):
    """New ones, of a year without a partition too, and over others, once compressed."""
    feed = Feed(create_engine(moved, poolclass=NullPool))
    first = round((DAY - timedelta(minutes=2)).timestamp()) * 1000
    candles = [[first + n * 60_000, "1", "2", "0.5", "1", str(n)] for n in range(5)]
    assert 5 == feed.take(candles, symbol="FEEDUSDT", interval="3m").klines
    convert(moved, extension.layout)
    candles[2][5] = "99"
    feed.take(candles, symbol="FEEDUSDT", interval="3m")
    question = f"""
        SELECT volume FROM {KLINES} WHERE instrument_id = (
            SELECT id FROM {SCHEMA}.instruments WHERE symbol = 'FEEDUSDT') ORDER BY open_time
    """
    assert [0, 1, 99, 3, 4] == [int(each[0]) for each in rows(moved, question)]


async def test_an_asynchronous_service_writes_and_asks(moved):
    """Its start-up check finds nothing lacking; its session reads what its feed writes, also by prepared statements."""
    engine = db.create_async_engine()
    factory = db.create_async_session_factory(engine)
    async with engine.connect() as connection:
        assert [] == await connection.run_sync(schema.pending, SCHEMA)
    feed, first = AsyncFeed(factory), round(DAY.timestamp()) * 1000
    for n in range(10):
        candles = [[first + each * 60_000, "1", "2", "0.5", "1", str(n)] for each in (n, n + 1)]
        await feed.take(candles, symbol="ASYNCUSDT", interval="1m")
    async with factory() as session:
        number = await session.scalar(select(Instrument.id).where(Instrument.symbol == "ASYNCUSDT"))
        found = await session.run_sync(queries.klines(number, Interval.M1, last=11).rows)
    await engine.dispose()
    assert [*range(10), 9] == [int(each.volume) for each in found]


def test_queries_answer_as_before(partitions, extension):
    """The newest, a range, gaps, coverage, the newest of each: from partitions as from where they moved."""
    before = answers(partitions)
    convert(partitions, extension.layout)
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


def test_what_a_policy_names_goes(partitions, extension):
    """The intervals without a rule stay, the mirrors are told, and a file loaded into what goes is forgotten."""
    run_sql(
        partitions,
        f"""INSERT INTO {SCHEMA}.kline_files
                (instrument_id, interval, name, sha256, rows, first_open_time, last_open_time)
            VALUES (1, '1m', 'old', repeat('0', 64), 1, '2025-01-02Z', '2025-01-03Z'),
                   (1, '1h', 'other', repeat('0', 64), 1, '2023-11-02Z', '2023-11-03Z')""",
    )
    convert(partitions, extension.layout)
    run_sql(partitions, f"TRUNCATE {SCHEMA}.mirror_outbox")
    before = ask(partitions, f"SELECT count(*) FROM {KLINES} WHERE interval <> '1m'")
    with engine_of(partitions).connect() as connection:
        plan = retention.plan(connection, retention.parse("1m 30d, 1h forever"), now=DAY + extension.age)
        none = retention.plan(connection, retention.parse("1m 30d"), now=DAY + timedelta(days=20))
    assert none.empty
    assert {"1m"} == {part.interval for part in plan.going}
    assert {"1m", "1h"} == {part.interval for part in plan.parts}
    assert len(plan.going) == len(list(retention.apply(Settings.from_environment(), plan)))
    assert (0, before) == (
        ask(partitions, f"SELECT count(*) FROM {KLINES} WHERE interval = '1m'"),
        ask(partitions, f"SELECT count(*) FROM {KLINES}"),
    )
    assert [("other",)] == rows(partitions, f"SELECT name FROM {SCHEMA}.kline_files")
    assert [("1|1m",), ("2|1m",), ("3|1m",)] == rows(partitions, f"SELECT key FROM {SCHEMA}.mirror_outbox ORDER BY 1")
    assert [] == list(retention.apply(Settings.from_environment(), plan))
    convert(partitions, Layout.PARTITIONS)
    assert before == ask(partitions, f"SELECT count(*) FROM {KLINES}")


def test_a_writer_may_write_and_no_more(moved, extension):
    """Insert, change and delete klines, and tell of it; not drop, truncate, or do what is their owner's."""
    who = login(moved, "bot", f"GRANT {extension.roles}_writer TO {{login}}")
    at = datetime(2031, 1, 1, tzinfo=UTC)
    try:
        run_sql(who, f"SELECT {SCHEMA}.make_kline_partition('1m', 2031)")
        run_sql(
            who,
            f"INSERT INTO {KLINES} ({COLUMNS}) VALUES (555, '1m', '{at}', 1, 1, 1, 1, 1, 1)",
            f"UPDATE {KLINES} SET volume = 2 WHERE instrument_id = 555",
            f"DELETE FROM {KLINES} WHERE instrument_id = 555",
        )
        with engine_of(who).begin() as connection:
            tell_written(connection, SCHEMA, [(555, "1m", at, at)])
        for statement in (
            f"DROP TABLE {KLINES}",
            f"TRUNCATE {KLINES}",
            f"SELECT {SCHEMA}.make_kline_partition_kept('1m', 2031)",
            extension.for_owners,
        ):
            with pytest.raises(DBAPIError, match=r"permission denied|must be owner"):
                run_sql(who, statement)
    finally:
        run_sql(moved, f"DROP ROLE bot_{moved.database}")
