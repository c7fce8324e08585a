"""Klines as shards of Citus: run where HELIOS_CITUS_URL names a coordinator's database that knows its workers.

As a superuser who is one on the workers too. Each test's database is made on every node.
"""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import make_klines
import pytest
from installation import ROOT, Run, admin, alembic, ask, engine_of, login, rows, run_sql, upgrade, use, variables
from mirroring import Scene
from sqlalchemy import URL, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from helios import adopting, backfill, growing, quality, queries, retention, testing
from helios.backfill import Mode
from helios.errors import InputError, SchemaError
from helios.feed import Feed
from helios.growing import Layout, work
from helios.growing.converting import Conversion
from helios.layout import tell_written
from helios.models import Interval
from helios.schema import environment
from helios.settings import Settings

GIVEN = os.environ.get("HELIOS_CITUS_URL")
pytestmark = pytest.mark.skipif(GIVEN is None, reason="HELIOS_CITUS_URL names no coordinator of Citus")
SCHEMA = "helios_trading"
KLINES = f"{SCHEMA}.klines"
ROLES = "citused"  # the prefix of the roles on those servers, which are dropped at the end
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
ROUTINES = f"""
    SELECT oid::regprocedure::text, prosrc, proacl::text, obj_description(oid, 'pg_proc') FROM pg_proc
    WHERE pronamespace = '{SCHEMA}'::regnamespace ORDER BY 1
"""
SYMBOLS = ("AUSDT", "BUSDT", "CUSDT")


@pytest.fixture(scope="module")
def citus() -> Iterator[URL]:
    """The coordinator's URL, for databases of the tests' own."""
    url = make_url(str(GIVEN)).set(drivername="postgresql+psycopg2")
    yield url
    for node in (*workers(url), url):
        for role in rows(node, "SELECT rolname::text FROM pg_roles WHERE rolname LIKE :like", like=f"{ROLES}\\_%"):
            admin(node, f'DROP ROLE "{role[0]}"')


def workers(citus: URL) -> list[URL]:
    """Name the workers, as the coordinator knows them."""
    nodes = rows(citus, "SELECT nodename, nodeport FROM pg_dist_node WHERE shouldhaveshards")
    return [citus.set(host=host, port=port) for host, port in nodes]


@contextmanager
def distributing(citus: URL) -> Iterator[URL]:
    """Make a database with all tables, which then learns of Citus and its workers."""
    name, nodes = f"t_{uuid.uuid4().hex[:12]}", [*workers(citus), citus]
    with ExitStack() as stack:
        for node in nodes:
            admin(node, f"CREATE DATABASE {name} TEMPLATE template0")
            stack.callback(admin, node, f"DROP DATABASE {name} WITH (FORCE)")
        url = citus.set(database=name)
        upgrade(url, DATABASE_ROLE_PREFIX=ROLES)
        for node in nodes:
            run_sql(node.set(database=name), "CREATE EXTENSION citus")
        host, port = rows(citus, "SELECT nodename, nodeport FROM pg_dist_node WHERE groupid = 0")[0]
        run_sql(url, f"SELECT citus_set_coordinator_host('{host}', {port})")
        run_sql(url, *(f"SELECT citus_add_node('{node.host}', {node.port})" for node in workers(citus)))
        run_sql(url, f"ALTER DATABASE {name} SET citus.shard_count = 4", f"ALTER ROLE {ROLES}_owner LOGIN")
        yield url


@contextmanager
def installed(citus: URL) -> Iterator[URL]:
    """Make such a database with three instruments and candles of several intervals."""
    with distributing(citus) as url:
        listed = ", ".join(f"('binance', 'spot', '{symbol}')" for symbol in SYMBOLS)
        run_sql(
            url,
            f"INSERT INTO {SCHEMA}.instruments (exchange, market, symbol) VALUES {listed}",
            f"SELECT {SCHEMA}.make_kline_partition('1h', 2023)",
            FILL,
        )
        yield url


@pytest.fixture
def partitions(citus: URL, monkeypatch: pytest.MonkeyPatch) -> Iterator[URL]:
    """Such a database, in partitions, for one test."""
    with installed(citus) as url:
        use(monkeypatch, url, DATABASE_ROLE_PREFIX=ROLES)
        yield url


@pytest.fixture(scope="module")
def converted(citus: URL) -> Iterator[URL]:
    """One whose klines are shards, for tests that keep to an instrument of their own."""
    with installed(citus) as url, pytest.MonkeyPatch.context() as patch:
        use(patch, url, DATABASE_ROLE_PREFIX=ROLES)
        convert(url, "citus")
        yield url


@pytest.fixture
def shards(converted: URL, monkeypatch: pytest.MonkeyPatch) -> URL:
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


def test_klines_move_onto_shards_and_back(partitions, helios, valkey, monkeypatch):
    """Every value stays as it is, also of a series without its instrument; rights, triggers, comments, models agree."""
    monkeypatch.setenv("REDIS_URL", valkey.render_as_string(hide_password=False))
    assert 0 == helios("environment", "set", "development")[0]
    content, triggers, functions = rows(partitions, CONTENT), rows(partitions, TRIGGERS), rows(partitions, ROUTINES)
    status, said, talk = helios("klines", "convert", "--to", "citus")
    assert (0, Layout.PARTITIONS) == (status, layout(partitions))
    assert "distributed by instrument" in talk
    assert "partitions" in said
    assert 0 == helios("klines", "convert", "--to", "citus", "--apply")[0]
    assert (Layout.CITUS, content, []) == (layout(partitions), rows(partitions, CONTENT), leftovers(partitions))
    placed = f"SELECT count(*) FROM citus_shards WHERE table_name::text = '{KLINES}'"
    assert 4 == ask(partitions, placed)
    env = variables(partitions, DATABASE_ROLE_PREFIX=ROLES)
    assert "No new upgrade operations detected" in "".join(alembic("check", env=env))
    assert {"instruments"} == wrong(helios)
    assert "shards of Citus" in helios("doctor")[1]
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
    assert ask(partitions, f"SELECT {SCHEMA}.make_kline_partition('1h', 2011)")


def wrong(helios: Run) -> set[str]:
    """Name what the doctor finds wrong; the instrument of one series is not there."""
    return {each["check"] for each in json.loads(helios("doctor", "--json")[1]) if not each["ok"]}


@pytest.mark.parametrize("there", [Layout.CITUS, Layout.PARTITIONS])
def test_writers_go_on_meanwhile(partitions, monkeypatch, there):
    """What is inserted, changed and deleted while batches are copied and compared is there afterwards, exactly."""
    monkeypatch.setattr(work, "MOST_ROWS", 10_000)
    if there is Layout.PARTITIONS:
        convert(partitions, Layout.CITUS)
    run_sql(partitions, f"CREATE TABLE public.expected AS SELECT * FROM {KLINES}")
    run_sql(partitions, f"SELECT {SCHEMA}.make_kline_partition('5m', 2026)")
    with writing(partitions) as counted:
        convert(partitions, there)
    assert there is layout(partitions)
    assert counted[0] >= 5
    run_sql(partitions, f"CREATE TABLE public.found AS SELECT * FROM {KLINES}")
    differing = f"""
        SELECT count(*) FROM (
            (SELECT {COLUMNS} FROM public.found EXCEPT ALL SELECT {COLUMNS} FROM public.expected)
            UNION ALL (SELECT {COLUMNS} FROM public.expected EXCEPT ALL SELECT {COLUMNS} FROM public.found)
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
            while not over.wait(0.1):  # some transactions a second
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


def test_stopped_anywhere_it_goes_on(partitions, monkeypatch):
    """After each step of both ways; in the end nothing is lost, doubled or left over."""
    monkeypatch.setattr(work, "MOST_ROWS", 15_000)
    content = rows(partitions, CONTENT)
    for there in (Layout.CITUS, Layout.PARTITIONS):
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
    for there in ("citus", "partitions"):
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
    convert(partitions, Layout.CITUS)
    assert content == rows(partitions, CONTENT)


@pytest.mark.parametrize("tier", list(backfill.Tier))
def test_files_are_loaded_and_corrected(shards, tmp_path, tier):
    """Both tiers, as a writer: a new file over a year's end, the same again, and a corrected one."""
    symbol = f"{tier.upper()}USDT"
    engine = engine_of(login(shards, f"loader_{tier}", f"GRANT {ROLES}_writer TO {{login}}"))
    try:
        file = make_klines.make_file(tmp_path, symbol, "1m", start=DAY - timedelta(days=3), rows=20_000)
        source = backfill.recognise(file.path)
        assert (Mode.DIRECT, 20_000) == mode_and_inserted(backfill.load(engine, source, tier=tier))
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
        assert [(20_000, 20_000)] == rows(shards, held, symbol=symbol)
        with pytest.raises(InputError, match="--initial fills partitions, and klines are citus"):
            backfill.load(engine_of(shards), source, tier=tier, initial=True, again=True)
    finally:
        run_sql(shards, f"DROP ROLE loader_{tier}_{shards.database}")


def mode_and_inserted(report: backfill.Report) -> tuple[Mode, int]:
    return report.mode, report.inserted


def correct(line: str) -> str:
    """Change the volume of a candle."""
    fields = line.split(",")
    return ",".join([*fields[:5], "4711", *fields[6:]])


def test_a_killed_load_leaves_nothing(shards, tmp_path):
    """SIGKILL anywhere: all of the file or nothing, in every shard and in what is remembered; the next run loads it."""
    file = make_klines.make_file(tmp_path, "KILLEDUSDT", "1m", start=DAY, rows=60_000)
    program = """
        import sys
        from sqlalchemy import create_engine
        from helios import backfill
        from helios.settings import Settings
        print("begins", flush=True)
        backfill.load(create_engine(Settings.from_environment().database_url), backfill.recognise(sys.argv[1]))
    """
    its_own = f"WHERE instrument_id = (SELECT id FROM {SCHEMA}.instruments WHERE symbol = 'KILLEDUSDT')"

    def held() -> tuple[int, int]:
        tables = (KLINES, f"{SCHEMA}.kline_files")
        return tuple(ask(shards, f"SELECT count(*) FROM {table} {its_own}") for table in tables)

    env = variables(shards, DATABASE_ROLE_PREFIX=ROLES)
    command = [sys.executable, "-c", textwrap.dedent(program), str(file.path)]
    for seconds in (0.1, 0.3, 0.5, 0.7, 0.9):
        process = subprocess.Popen(command, env=env, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert process.stdout
        assert process.stdout.readline()
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        while ask(shards, BUSY):
            time.sleep(0.05)
        assert held() in ((0, 0), (60_000, 1))
    backfill.load(engine_of(shards), backfill.recognise(file.path))
    assert (60_000, 1) == held()


BUSY = """
    SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state <> 'idle'
    AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""


def test_a_feed_writes_candles(shards):
    """New ones, of a year without a partition too, and over others."""
    feed = Feed(create_engine(shards, poolclass=NullPool))
    first = round((DAY - timedelta(minutes=2)).timestamp()) * 1000
    candles = [[first + n * 60_000, "1", "2", "0.5", "1", str(n)] for n in range(5)]
    assert 5 == feed.take(candles, symbol="FEEDUSDT", interval="3m").klines
    candles[2][5] = "99"
    feed.take(candles, symbol="FEEDUSDT", interval="3m")
    question = f"""
        SELECT volume FROM {KLINES} WHERE instrument_id = (
            SELECT id FROM {SCHEMA}.instruments WHERE symbol = 'FEEDUSDT') ORDER BY open_time
    """
    assert [0, 1, 99, 3, 4] == [int(each[0]) for each in rows(shards, question)]


def test_queries_answer_as_before(partitions):
    """The newest, a range, gaps, coverage, the newest of each: from partitions and from compressed chunks alike."""
    before = answers(partitions)
    convert(partitions, Layout.CITUS)
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


def test_a_series_is_asked_of_its_shard_alone(shards):
    """One task: the newest, a range, gaps; in the partitions of its interval alone."""
    with engine_of(shards).connect() as connection:
        for query in (
            queries.klines(1, Interval.M1, last=500),
            queries.klines(1, Interval.M1, since=DAY, until=DAY + timedelta(days=28)),
            queries.gaps(1, Interval.M1),
        ):
            written = query.statement.compile(connection)
            values = written.construct_params(dict(query.parameters))
            cursor = connection.connection.cursor()
            cursor.execute(f"EXPLAIN (COSTS OFF) {written}", values)
            seen = "\n".join(each[0] for each in cursor.fetchall())
            assert "Task Count: 1\n" in seen
            assert "klines_1m_2025_shards" in seen
            assert "klines_1h" not in seen


def test_what_a_policy_names_goes_with_its_shards(partitions):
    """The intervals without a rule stay, the mirrors are told, and a file loaded into a partition is forgotten."""
    run_sql(
        partitions,
        f"""INSERT INTO {SCHEMA}.kline_files
                (instrument_id, interval, name, sha256, rows, first_open_time, last_open_time)
            VALUES (1, '1m', 'old', repeat('0', 64), 1, '2025-01-02Z', '2025-01-03Z'),
                   (1, '1h', 'other', repeat('0', 64), 1, '2023-11-02Z', '2023-11-03Z')""",
    )
    convert(partitions, Layout.CITUS)
    run_sql(partitions, f"TRUNCATE {SCHEMA}.mirror_outbox")
    before = ask(partitions, f"SELECT count(*) FROM {KLINES} WHERE interval <> '1m'")
    with engine_of(partitions).connect() as connection:
        plan = retention.plan(connection, retention.parse("1m 30d, 1h forever"), now=DAY + timedelta(days=400))
        none = retention.plan(connection, retention.parse("1m 30d"), now=DAY + timedelta(days=20))
    assert none.empty
    assert "klines_1m_2025_shards" in [part.name for part in plan.going]
    assert "klines_1m_2026_shards" not in [part.name for part in plan.going]
    assert {"1m", "1h"} == {part.interval for part in plan.parts}
    assert len(plan.going) == len(list(retention.apply(Settings.from_environment(), plan)))
    assert (0, before) == (
        ask(partitions, f"SELECT count(*) FROM {KLINES} WHERE interval = '1m'"),
        ask(partitions, f"SELECT count(*) FROM {KLINES}"),
    )
    assert [("other",)] == rows(partitions, f"SELECT name FROM {SCHEMA}.kline_files")
    assert [("1|1m",), ("2|1m",), ("3|1m",)] == rows(partitions, f"SELECT key FROM {SCHEMA}.mirror_outbox ORDER BY 1")
    assert [] == list(retention.apply(Settings.from_environment(), plan))


@pytest.fixture
def scene(citus: URL, valkey: URL, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    """Shards, mirrored; afterwards both sides must be alike."""
    with distributing(citus) as url:
        use(monkeypatch, url, DATABASE_ROLE_PREFIX=ROLES)
        convert(url, Layout.CITUS)
        scene = Scene(url)
        scene.begin(valkey)
        yield scene
        scene.end()


def candles(number: int, minutes: range) -> list[list[Any]]:
    """Write candles of some minutes as ccxt does."""
    first = round(DAY.timestamp()) * 1000
    return [[first + n * 60_000, "1", "2", "0.5", "1", str(number)] for n in minutes]


def test_mirrors_follow_what_helios_writes(scene, tmp_path):
    """A feed, a file and its correction cost an entry for the series; what is written past both, the audit finds."""
    feed = Feed(scene.engine)
    feed.take(candles(1, range(3)), symbol="BTC:USDT", interval="1m")
    assert [("series", "1|1m")] == scene.outbox()
    assert scene.step()
    file = make_klines.make_file(tmp_path, "BTCUSDT", "1m", start=DAY, rows=300)
    for line in ("as it is", "corrected"):
        scene.run(f"TRUNCATE {SCHEMA}.mirror_outbox")
        if line == "corrected":
            file.path.write_text("\n".join(map(correct, file.path.read_text().splitlines())) + "\n")
        backfill.load(scene.engine, backfill.recognise(file.path))
        assert "2|1m" in [key for subject, key in scene.outbox() if subject == "series"]
        assert scene.step()
        assert 200 == len((scene.klines(symbol="BTCUSDT") or "").splitlines())
    assert 0 == scene.audit()
    scene.run(f"UPDATE {KLINES} SET volume = 7 WHERE instrument_id = 2 AND open_time = '2025-01-01T04:59Z'")
    assert not scene.step()
    assert 1 == scene.audit()
    scene.relay.close()
    scene.client.delete(scene.place.token)
    assert scene.step()  # everything anew


def test_the_relay_sees_candles_of_which_it_is_told(scene, citus):
    """The new one: where a worker commits later than the coordinator, the relay waits for it."""
    feed = Feed(scene.engine)
    feed.take(candles(1, range(1)), symbol="BTC:USDT", interval="1m")
    assert scene.step()
    with hesitating(citus) as step_of:
        threads = [threading.Thread(target=feed.take, args=(candles(2, range(1)),), kwargs=OF_BITCOIN)]
        threads[0].start()
        step_of("PREPARE", cancel=True)  # where a worker hesitates too, and is told not to
        step_of("COMMIT PREPARED", cancel=False)
        assert 2 == len(scene.outbox())
        threads.append(threading.Thread(target=scene.step))
        threads[1].start()
        time.sleep(0.3)
    for thread in threads:
        thread.join()
    assert "2" == (scene.klines() or "").split(",")[5]


OF_BITCOIN = {"symbol": "BTC:USDT", "interval": "1m"}
WAITING = """
    SELECT pid FROM pg_stat_activity
    WHERE wait_event = 'SyncRep' AND starts_with(query, :step) AND pid <> pg_backend_pid()
"""


@contextmanager
def hesitating(citus: URL) -> Iterator[Callable[..., None]]:
    """Let workers commit and not say so, as if for a standby that is not there; and wait for one that does."""

    def configured(statement: str) -> None:
        for node in workers(citus):
            admin(node, statement)
            run_sql(node, "SELECT pg_reload_conf()")

    def step_of(step: str, *, cancel: bool) -> None:
        until = time.monotonic() + 10
        while not (found := [(node, *row) for node in workers(citus) for row in rows(node, WAITING, step=step)]):
            assert time.monotonic() < until
            time.sleep(0.01)
        for node, pid in found if cancel else []:
            run_sql(node, f"SELECT pg_cancel_backend({pid})")

    configured("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    try:
        yield step_of
    finally:
        configured("ALTER SYSTEM RESET synchronous_standby_names")


def test_a_writer_may_write_and_tell_and_no_more(shards):
    """Insert, change and delete klines, and tell of it; not drop, or own them."""
    who = login(shards, "bot", f"GRANT {ROLES}_writer TO {{login}}")
    try:
        run_sql(who, f"SELECT {SCHEMA}.make_kline_partition('1m', 2031)")
        run_sql(
            who,
            f"INSERT INTO {KLINES} ({COLUMNS}) VALUES (555, '1m', '2031-01-01Z', 1, 1, 1, 1, 1, 1)",
            f"UPDATE {KLINES} SET volume = 2 WHERE instrument_id = 555",
            f"DELETE FROM {KLINES} WHERE instrument_id = 555",
            f"SELECT {SCHEMA}.tell_klines('{{555}}', '{{1m}}', '{{2031-01-01Z}}', '{{2031-01-01Z}}')",
        )
        for statement in (
            f"DROP TABLE {KLINES}",
            f"TRUNCATE {KLINES}",
            f"DELETE FROM {SCHEMA}.klines_1m_2031_shards",
            f"SELECT {SCHEMA}.make_kline_partition_kept('1m', 2031)",
        ):
            with pytest.raises(DBAPIError, match=r"permission denied|must be owner"):
                run_sql(who, statement)
    finally:
        run_sql(shards, f"DROP ROLE bot_{shards.database}")


def test_what_cannot_be_had_is_refused(shards, monkeypatch):
    """Adopting, a hypertable, and a test run: each with its remedy."""
    with engine_of(shards).connect() as connection:
        with pytest.raises(SchemaError, match="into which nothing can be adopted: adopt before"):
            adopting.plan(connection)
        with pytest.raises(SchemaError, match="by way of partitions"):
            growing.plan(connection, SCHEMA, Layout.TIMESCALEDB)
    monkeypatch.setenv("HELIOS_ENVIRONMENT", "test")
    with engine_of(shards).begin() as connection:
        environment.mark(connection, SCHEMA, "test")
    with pytest.raises(SchemaError, match="run tests on a database without the extension citus"):
        with testing.tracked():
            pass
