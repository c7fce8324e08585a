"""What klines as shards of Citus have of their own: one shard for a series, writers that tell, commits of workers."""

import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import make_klines
import pytest
from extensions import DAY, KLINES, SCHEMA, Citus, Extension, convert, correct, given
from installation import ROOT, admin, ask, engine_of, rows, run_sql, use, variables
from mirroring import Scene
from sqlalchemy import URL

from helios import adopting, backfill, growing, queries, retention, testing
from helios.errors import SchemaError
from helios.feed import Feed
from helios.growing import Layout
from helios.models import Interval
from helios.schema import environment


@pytest.fixture(scope="module")
def extension() -> Iterator[Extension]:
    """The servers of which HELIOS_CITUS_URL names the coordinator."""
    with given(Citus) as extension:
        yield extension


def test_a_killed_load_leaves_nothing(moved, extension, tmp_path):
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
        return tuple(ask(moved, f"SELECT count(*) FROM {table} {its_own}") for table in tables)

    env = variables(moved, DATABASE_ROLE_PREFIX=extension.roles)
    command = [sys.executable, "-c", textwrap.dedent(program), str(file.path)]
    for seconds in (0.1, 0.3, 0.5, 0.7, 0.9):
        process = subprocess.Popen(command, env=env, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert process.stdout
        assert process.stdout.readline()
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        while ask(moved, BUSY):
            time.sleep(0.05)
        assert held() in ((0, 0), (60_000, 1))
    backfill.load(engine_of(moved), backfill.recognise(file.path))
    assert (60_000, 1) == held()


BUSY = """
    SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state <> 'idle'
    AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""


def test_klines_are_as_many_shards_as_the_database_says(moved):
    """The table as a whole, whatever partitions it has."""
    assert 4 == ask(moved, f"SELECT count(*) FROM citus_shards WHERE table_name::text = '{KLINES}'")


def test_a_series_is_asked_of_its_shard_alone(moved):
    """One task: the newest, a range, gaps; in the partitions of its interval alone."""
    with engine_of(moved).connect() as connection:
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


def test_a_plan_names_the_partitions_of_shards(moved):
    """The years that have ended go, and no other."""
    with engine_of(moved).connect() as connection:
        plan = retention.plan(connection, retention.parse("1m 30d"), now=DAY + timedelta(days=400))
    assert "klines_1m_2025_shards" in [part.name for part in plan.going]
    assert "klines_1m_2026_shards" in [part.name for part in plan.parts]
    assert "klines_1m_2026_shards" not in [part.name for part in plan.going]


@pytest.fixture
def scene(extension: Extension, valkey: URL, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    """Shards, mirrored; afterwards both sides must be alike."""
    with extension.made() as url:
        use(monkeypatch, url, DATABASE_ROLE_PREFIX=extension.roles)
        convert(url, extension.layout)
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


def test_the_relay_sees_candles_of_which_it_is_told(scene, extension):
    """The new one: where a worker commits later than the coordinator, the relay waits for it."""
    feed = Feed(scene.engine)
    feed.take(candles(1, range(1)), symbol="BTC:USDT", interval="1m")
    assert scene.step()
    with hesitating(extension.workers) as step_of:
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
def hesitating(workers: list[URL]) -> Iterator[Callable[..., None]]:
    """Let workers commit and not say so, as if for a standby that is not there; and wait for one that does."""

    def configured(statement: str) -> None:
        for node in workers:
            admin(node, statement)
            run_sql(node, "SELECT pg_reload_conf()")

    def step_of(step: str, *, cancel: bool) -> None:
        until = time.monotonic() + 10
        while not (found := [(node, *row) for node in workers for row in rows(node, WAITING, step=step)]):
            assert time.monotonic() < until
            time.sleep(0.01)
        for node, pid in found if cancel else []:
            run_sql(node, f"SELECT pg_cancel_backend({pid})")

    configured("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    try:
        yield step_of
    finally:
        configured("ALTER SYSTEM RESET synchronous_standby_names")


def test_what_cannot_be_had_is_refused(moved, monkeypatch):
    """Adopting, a hypertable, and a test run: each with its remedy."""
    with engine_of(moved).connect() as connection:
        with pytest.raises(SchemaError, match="into which nothing can be adopted: adopt before"):
            adopting.plan(connection)
        with pytest.raises(SchemaError, match="by way of partitions"):
            growing.plan(connection, SCHEMA, Layout.TIMESCALEDB)
    monkeypatch.setenv("HELIOS_ENVIRONMENT", "test")
    with engine_of(moved).begin() as connection:
        environment.mark(connection, SCHEMA, "test")
    with pytest.raises(SchemaError, match="run tests on a database without the extension citus"):
        with testing.tracked():
            pass
