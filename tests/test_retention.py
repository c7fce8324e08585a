"""Retention: what a policy says, what its plan shows, and that just this goes, beside trading and after kills."""

import io
import json
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime

import make_klines
import pytest
from installation import COPIED, ask, engine_of, finish, login, made, rows, run_sql, start, use, variables
from server_user import until
from sqlalchemy import URL, text
from sqlalchemy.exc import OperationalError
from tables import PARENTS, insert

from helios import backfill, retention
from helios.errors import InputError, RightsError, SchemaError
from helios.retention import Plan, State
from helios.retention.applying import Work
from helios.settings import Settings

NOW = datetime(2025, 6, 15, 12, tzinfo=UTC)
MINUTES = f"1m {datetime.now(UTC).year - 2023}y"  # for the commands, whose clock is the server's: 2023 is partly old
SCHEMA = "helios_trading"
KLINES = f"SELECT extract(year FROM open_time)::int, count(*) FROM {SCHEMA}.klines GROUP BY 1 ORDER BY 1"
LEFT = f"""
    SELECT relname::text FROM pg_class WHERE relnamespace = '{SCHEMA}'::regnamespace AND relkind = 'r'
    AND relname LIKE 'klines\\_1m\\_%' ORDER BY 1
"""


OPTIONS = {"DATABASE_LOCK_TIMEOUT": "0.2", "DATABASE_MIGRATION_WAIT": "30", "DATABASE_ROLE_PREFIX": COPIED}


@pytest.fixture(scope="module")
def filled(cluster: URL, template: str) -> Iterator[str]:
    """A migrated database with an instrument, and minutes in 2022, 2023 and 2025; gives its name, for copies."""
    fill = """
        INSERT INTO helios_trading.klines (instrument_id, interval, open_time, open, high, low, close, volume)
        SELECT 1, '1m', timestamptz '{}-03-01T00:00Z' + n * interval '1 minute', 1, 1, 1, 1, 0
        FROM generate_series(1, {}) AS n
    """
    with made(cluster, template) as url:
        run_sql(
            url,
            f"INSERT INTO {SCHEMA}.instruments (exchange, market, symbol) VALUES ('binance', 'spot', 'BTCUSDT')",
            f"SELECT {SCHEMA}.make_kline_partition('1m', year) FROM generate_series(2022, 2023) AS year",
            *(fill.format(year, count) for year, count in ((2022, 1000), (2023, 500), (2025, 300))),
            f"ANALYZE {SCHEMA}.klines",
        )
        yield str(url.database)


@pytest.fixture
def installed(cluster: URL, filled: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[URL]:
    """A copy of it, for one test."""
    with made(cluster, filled) as url:
        use(monkeypatch, url, **OPTIONS)
        yield url


def plan(url: URL, policy: str = "1m 2y", now: datetime = NOW) -> Plan:
    with engine_of(url).connect() as connection:
        return retention.plan(connection, retention.parse(policy), now=now)


def apply(shown: Plan, **options: int) -> list[tuple[str, int]]:
    return [(each.what, each.rows) for each in retention.apply(Settings.from_environment(), shown, **options)]


@contextmanager
def trader(url: URL) -> Iterator[list[float]]:
    """Write a candle of 2025 every few milliseconds until the block ends; collects how long each write took."""
    took: list[float] = []
    over = threading.Event()
    statement = text(f"""
        INSERT INTO {SCHEMA}.klines (instrument_id, interval, open_time, open, high, low, close, volume)
        VALUES (1, '1m', timestamptz '2025-04-01T00:00Z' + :n * interval '1 minute', 1, 1, 1, 1, 0)
    """)

    def trade() -> None:
        with engine_of(url).connect() as connection:
            while not over.is_set():
                began = time.monotonic()
                connection.execute(statement, {"n": len(took)})
                connection.commit()
                took.append(time.monotonic() - began)
                over.wait(0.005)

    thread = threading.Thread(target=trade)
    thread.start()
    try:
        yield took
    finally:
        over.set()
        thread.join()


@contextmanager
def reader(url: URL) -> Iterator[tuple[int, Callable[[], None]]]:
    """Hold the partition of 2022 by a query in an open transaction; gives its pid, and what ends it."""
    with engine_of(url).connect() as connection:
        connection.execute(text(f"SELECT count(*) FROM {SCHEMA}.klines WHERE interval = '1m'"))
        pid = connection.scalar(text("SELECT pg_backend_pid()"))
        yield pid, connection.rollback


def until_detaching(url: URL) -> None:
    """Return when a partition is marked as detaching."""
    until(lambda: bool(ask(url, "SELECT count(*) FROM pg_inherits WHERE inhdetachpending")))


# --- the policy ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("age", "expected"),
    [
        ("1d", "2024-02-28"),
        ("2w", "2024-02-15"),
        ("1mo", "2024-01-29"),
        ("12mo", "2023-02-28"),
        ("1y", "2023-02-28"),
        ("4y", "2020-02-29"),
    ],
)
def test_ages_are_of_the_calendar(age, expected):
    """Months and years are calendar ones; a day that the month lacks becomes its last."""
    [rule] = retention.parse(f"1m {age}").rules
    assert rule.age is not None
    assert datetime.fromisoformat(f"{expected}T00:00Z") == rule.age.before(datetime(2024, 2, 29, tzinfo=UTC))


def test_a_policy_is_read():
    """Rules of klines, with or without the word, and of other things; forever is no age."""
    policy = retention.parse("1m 2y, klines 1d forever,quality 90d , signals 8w, history 6mo")
    found = [(each.name, str(each.age)) for each in policy.rules]
    assert [
        ("klines 1m", "2y"),
        ("klines 1d", "None"),
        ("quality", "90d"),
        ("signals", "8w"),
        ("history", "6mo"),
    ] == found


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("", "'' is not a rule of what and how long"),
        ("1m", "'1m' is not a rule"),
        ("1m 2y 3y", "'1m 2y 3y' is not a rule"),
        ("1m 2y,", "'' is not a rule"),
        ("7m 2y", "'7m' cannot be retained"),
        ("klines 7m 2y", "names no interval of klines: choose from 1s, 1m"),
        ("klines 2y", "names no interval of klines"),
        ("1m 2m", "m would be minutes, mo are months"),
        ("1m -2y", "'-2y' is not an age: write 90d, 8w, 6mo, 2y or forever"),
        ("1m 2 y", "is not a rule"),
        ("1m 0d", "'0d' would keep nothing"),
        ("1m 999y", "'999y' is older than any data: write forever"),
        ("1m 2y, klines 1m 3y", "has two rules for klines 1m"),
        ("orders 2y", "'orders' cannot be retained"),
    ],
)
def test_nonsense_is_refused_in_a_sentence(written, said):
    """What is no policy is named, with what to write instead."""
    with pytest.raises(InputError) as error:
        retention.parse(written)
    assert said in str(error.value)


def test_of_klines_only_intervals_are_taken():
    """The command of klines does not delete anything else."""
    with pytest.raises(InputError, match="'quality' is not an interval of klines"):
        retention.parse("1m 2y, quality 1d", only_klines=True)


# --- the plan ------------------------------------------------------------------------------------------------------


def test_the_plan_shows_numbers_and_changes_nothing(installed):
    """Each partition of the interval is shown with its range, rows and size; a partly old one stays, and says so."""
    before = rows(installed, KLINES)
    shown = plan(installed)
    assert [2022, 2023, 2024, 2025, 2026, 2027, 2028] == [each.lower.year for each in shown.parts]
    assert [1000, 500, 0, 300, 0, 0, 0] == [each.rows for each in shown.parts]
    assert ["klines_1m_2022"] == [each.name for each in shown.going]
    size = ask(installed, f"SELECT pg_total_relation_size('{SCHEMA}.klines_1m_2022')")
    first, second, third = shown.parts[:3]
    assert (datetime(2023, 1, 1, tzinfo=UTC), size) == (first.upper, first.bytes)
    assert "all of it is before 2023-06-15" == first.reason
    assert "only a part of it is before 2023-06-15: it goes when all of it is" == second.reason
    assert "none of it is before 2023-06-15" == third.reason
    assert before == rows(installed, KLINES)


def test_a_partition_goes_when_its_last_moment_is_old(installed):
    """To the second: the end of the year is the limit, not its beginning."""
    assert [] == plan(installed, now=datetime(2024, 12, 31, 23, 59, 59, tzinfo=UTC)).going
    assert 1 == len(plan(installed, now=datetime(2025, 1, 1, tzinfo=UTC)).going)


def test_without_a_rule_everything_stays(installed):
    """Other intervals are not even looked at, and forever is forever."""
    assert [] == plan(installed, "1h 1d", now=datetime(2023, 1, 1, tzinfo=UTC)).going
    assert {"kept forever"} == {each.reason for each in plan(installed, "1m forever").parts}


def test_the_rows_of_a_table_never_analyzed_are_told(installed):
    """Fresh rows are estimated from what the server counted, never as none."""
    run_sql(
        installed,
        f"""INSERT INTO {SCHEMA}.klines (instrument_id, interval, open_time, open, high, low, close, volume)
            SELECT 1, '5m', timestamptz '2024-01-01T00:00Z' + n * interval '5 minutes', 1, 1, 1, 1, 0
            FROM generate_series(1, 2000) AS n""",
    )
    part = next(each for each in plan(installed, "5m 1d").parts if each.lower.year == 2024)
    assert 500 < part.rows < 8000


# --- klines go -----------------------------------------------------------------------------------------------------


def test_what_the_plan_shows_goes_and_nothing_else(installed):
    """The year that is old is gone with its table; a plan after it is empty."""
    assert [("klines_1m_2022", 1000)] == apply(plan(installed))
    assert [(2023, 500), (2025, 300)] == rows(installed, KLINES)
    assert "klines_1m_2022" not in str(rows(installed, LEFT))
    assert plan(installed).empty
    assert [] == apply(plan(installed))


def test_a_dropped_year_can_be_made_again(installed):
    """A loader that brings old candles back finds no trace in its way."""
    apply(plan(installed))
    run_sql(installed, f"SELECT {SCHEMA}.make_kline_partition('1m', 2022)")
    assert "klines_1m_2022" in str(rows(installed, LEFT))


def test_files_are_forgotten_with_their_candles(installed, tmp_path):
    """A file whose candles are gone is read again; one of another year is still known as unchanged."""
    files = [
        make_klines.make_file(tmp_path, "ETHUSDT", "1m", start=datetime(year, 5, 1, tzinfo=UTC), rows=200).path
        for year in (2022, 2023)
    ]
    engine = engine_of(installed)
    for file in files:
        backfill.load(engine, backfill.recognise(file))
    apply(plan(installed))
    again = [backfill.load(engine, backfill.recognise(file)) for file in files]
    assert [backfill.Mode.DIRECT, backfill.Mode.UNCHANGED] == [each.mode for each in again]
    assert 200 == again[0].inserted
    assert [(2022, 200), (2023, 700), (2025, 300)] == rows(installed, KLINES)


def test_a_writer_is_not_stalled_and_a_reader_is_waited_for(installed):
    """A query holds the partition: retention waits, trading goes on, and once the query ends the year goes."""
    done: list[tuple[str, int]] = []
    with reader(installed) as (_, leave), trader(installed) as took:
        thread = threading.Thread(target=lambda: done.extend(apply(plan(installed))))
        thread.start()
        until_detaching(installed)
        time.sleep(1)
        assert [] == done
        leave()
        thread.join()
    assert [("klines_1m_2022", 1000)] == done
    assert len(took) > 50
    assert max(took) < 0.2 + 0.3  # DATABASE_LOCK_TIMEOUT, and the noise of a busy machine
    assert [(2023, 500), (2025, 300 + len(took))] == rows(installed, KLINES)


def test_who_holds_the_partition_too_long_is_named(installed, monkeypatch):
    """After DATABASE_MIGRATION_WAIT it gives up with a sentence, and a later run finishes what was begun."""
    settings = replace(Settings.from_environment(), database_migration_wait=0.5)
    with reader(installed) as (pid, leave):
        with pytest.raises(SchemaError, match=f"pid {pid} .*then retain again"):
            list(retention.apply(settings, plan(installed)))
        [going] = plan(installed).going
        assert State.DETACHING == going.state
        assert going.reason.endswith("detaching by a run that was killed")
        leave()
    assert [("klines_1m_2022", 1000)] == apply(plan(installed))


def test_a_killed_run_is_finished_by_the_next(installed):
    """SIGKILL while it waits in the middle of detaching; the next run takes it up."""
    command = ("helios.cli", "klines", "retain", MINUTES, "--apply", "--yes")
    env = variables(installed, **OPTIONS)
    with reader(installed) as (_, leave):
        process = start(*command, env=env)
        until_detaching(installed)
        process.kill()
        process.communicate()
        leave()
    said, _ = finish(start(*command, env=env))
    assert "klines_1m_2022" in said
    assert "klines_1m_2022" not in str(rows(installed, LEFT))
    assert [] == rows(installed, "SELECT 1 FROM pg_inherits WHERE inhdetachpending")
    assert (2025, 300) == rows(installed, KLINES)[-1]


def test_a_run_killed_before_the_drop_is_finished(installed):
    """A detached table with the mark in its comment is shown, and dropped by the next run - if its policy says so."""
    settings = Settings.from_environment()
    [part] = plan(installed).going
    work = Work(engine_of(installed), settings.database_migration_wait, 100)
    work.mark(part)
    work.detach(part)
    assert [] == plan(installed, "1m forever").going
    [left] = plan(installed).going
    assert (State.DETACHED, "klines_1m_2022", 1000) == (left.state, left.name, left.rows)
    assert [("klines_1m_2022", 1000)] == apply(plan(installed))
    assert "klines_1m_2022" not in str(rows(installed, LEFT))


def test_killed_in_the_middle_again_and_again_it_ends_the_same(installed):
    """Killed when some of the years are gone, three times, it goes on each time and ends with just the young years."""
    chance = random.Random(7)  # noqa: S311 - moments, not secrets
    command = ("helios.cli", "klines", "retain", MINUTES, "--apply", "--yes")
    env = variables(installed, **OPTIONS)
    run_sql(installed, f"SELECT {SCHEMA}.make_kline_partition('1m', year) FROM generate_series(1994, 2021) AS year")
    left = len(rows(installed, LEFT))
    for _ in range(3):
        process = start(*command, env=env)
        wanted = left - chance.randint(2, 6)
        while left > wanted:
            assert process.poll() is None
            left = len(rows(installed, LEFT))
        time.sleep(chance.random() / 20)
        process.kill()
        process.communicate()
        left = len(rows(installed, LEFT))
        assert left > 8
    finish(start(*command, env=env))
    assert [f"klines_1m_{year}" for year in range(2023, 2029)] == [row[0] for row in rows(installed, LEFT)]
    assert [] == rows(installed, "SELECT 1 FROM pg_inherits WHERE inhdetachpending")
    assert [(2023, 500), (2025, 300)] == rows(installed, KLINES)


def test_another_partition_that_is_detaching_stands_in_the_way(installed):
    """PostgreSQL detaches one partition of a parent at a time; whose policy keeps that one is told to finish it."""
    run_sql(installed, f"SELECT {SCHEMA}.make_kline_partition('1m', 2021)")
    with reader(installed) as (_, leave):
        with engine_of(installed).connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("SET lock_timeout = 100"))
            with pytest.raises(OperationalError):
                connection.execute(
                    text(f"ALTER TABLE {SCHEMA}.klines_1m DETACH PARTITION {SCHEMA}.klines_1m_2025 CONCURRENTLY")
                )
        leave()
    with pytest.raises(SchemaError, match=r"klines_1m_2021 cannot be detached: .*klines_1m_2025.*finish that"):
        apply(plan(installed))
    run_sql(installed, f"ALTER TABLE {SCHEMA}.klines_1m DETACH PARTITION {SCHEMA}.klines_1m_2025 FINALIZE")
    assert ["klines_1m_2021", "klines_1m_2022"] == [name for name, _ in apply(plan(installed))]


def test_beside_a_default_partition_it_is_detached_briefly(installed):
    """PostgreSQL detaches nothing concurrently where a DEFAULT partition stands; it goes all the same."""
    run_sql(installed, f"CREATE TABLE {SCHEMA}.klines_1m_rest PARTITION OF {SCHEMA}.klines_1m DEFAULT")
    assert [("klines_1m_2022", 1000)] == apply(plan(installed))
    assert "klines_1m_2022" not in str(rows(installed, LEFT))


def test_a_table_detached_by_hand_is_left_alone(installed):
    """Somebody keeps an old year as an archive: it is no partition any more, and no business of a policy."""
    run_sql(installed, f"ALTER TABLE {SCHEMA}.klines_1m DETACH PARTITION {SCHEMA}.klines_1m_2022")
    assert [] == plan(installed).going
    assert 1000 == ask(installed, f"SELECT count(*) FROM {SCHEMA}.klines_1m_2022")


def test_a_table_that_took_the_name_since_is_not_dropped(installed):
    """The plan showed another table: what bears its name now stays."""
    shown = plan(installed)
    run_sql(installed, f"DROP TABLE {SCHEMA}.klines_1m_2022", f"SELECT {SCHEMA}.make_kline_partition('1m', 2022)")
    assert [] == apply(shown)
    assert "klines_1m_2022" in str(rows(installed, LEFT))


def test_a_renamed_partition_is_refused(installed):
    """The same table under another name is not what was shown; nothing is dropped."""
    shown = plan(installed)
    run_sql(installed, f"ALTER TABLE {SCHEMA}.klines_1m_2022 RENAME TO klines_1m_archive")
    with pytest.raises(SchemaError, match="klines_1m_2022 is not what the plan showed"):
        apply(shown)
    assert (2022, 1000) == rows(installed, KLINES)[0]


def test_a_writer_may_plan_but_not_drop(installed, monkeypatch):
    """Dropping is the owner's: a writer is told so, and nothing is gone."""
    url = login(installed, "bot", f"GRANT {COPIED}_writer TO {{login}}")
    shown = plan(url)
    assert 1 == len(shown.going)
    use(monkeypatch, url, **OPTIONS)
    with pytest.raises(RightsError):
        apply(shown)
    assert (2022, 1000) == rows(installed, KLINES)[0]


def test_a_member_of_the_owner_may_drop(installed, monkeypatch):
    """The login that migrates need not be a superuser."""
    url = login(installed, "deploy", f"GRANT {COPIED}_owner TO {{login}}")
    use(monkeypatch, url, **OPTIONS)
    assert [("klines_1m_2022", 1000)] == apply(plan(url))


# --- rows go -------------------------------------------------------------------------------------------------------


@pytest.fixture
def traded(installed: URL) -> URL:
    """Orders in every status, each with three changes, measurements and signals, half of them of 2022.

    That two of them are refused after they were open raises an alert each, which is a measurement of today.
    """
    statuses = ["NEW", "PARTIALLY_FILLED", "FILLED", "PENDING_CANCEL", "CANCELED", "REJECTED", "EXPIRED", "UNKNOWN"]
    with engine_of(installed).begin() as connection:
        insert(connection, "accounts", PARENTS["accounts"])
        for number, status in enumerate(statuses * 2):
            order = f"01900000-0000-7000-8000-{number:012d}"
            values = {**PARENTS["orders"], "id": order, "client_order_id": f"c{number}", "status": "PENDING_NEW"}
            insert(connection, "orders", values)
            for change in (f"status = 'NEW', price = {number}", f"status = '{status}', price = 99"):
                connection.execute(text(f"UPDATE {SCHEMA}.orders SET {change} WHERE id = '{order}'"))
            if number < len(statuses):
                connection.execute(
                    text(f"UPDATE {SCHEMA}.order_history SET recorded_at = '2022-05-05Z' WHERE order_id = '{order}'")
                )
        for year in (2022, 2025):
            connection.execute(
                text(f"""
                    INSERT INTO {SCHEMA}.data_quality_metrics (instrument_id, subject, source, measured_at)
                    SELECT 1, 'ticker', 'feed', '{year}-05-05Z' FROM generate_series(1, 25)
                """)
            )
            connection.execute(
                text(f"""
                    INSERT INTO {SCHEMA}.signals (id, instrument_id, side, kind, signalled_at)
                    SELECT gen_random_uuid(), 1, 'BUY', 'test', '{year}-05-05Z' FROM generate_series(1, 12)
                """)
            )
    return installed


@pytest.mark.parametrize("batch", [1, 7, 5000])
def test_old_rows_go_in_batches(traded, batch):
    """Just the rows that are older go, whatever the size of a batch, and the plan knew how many."""
    shown = plan(traded, "quality 2y, signals 1y")
    assert [("quality", 25, 27), ("signals", 12, 12)] == [(e.rule.name, e.rows, e.remaining) for e in shown.shares]
    assert [("quality", 25), ("signals", 12)] == apply(shown, batch=batch)
    assert 27 == ask(traded, f"SELECT count(*) FROM {SCHEMA}.data_quality_metrics")
    assert 12 == ask(traded, f"SELECT count(*) FROM {SCHEMA}.signals WHERE signalled_at > '2025-01-01Z'")
    assert plan(traded, "quality 2y, signals 1y").empty


@pytest.mark.parametrize("batch", [1, 3, 5000])
def test_history_goes_whole_and_only_of_ended_orders(traded, batch):
    """Of the orders of 2022, those that ended lose their history; open ones and the orders themselves stay."""
    shown = plan(traded, "history 1y")
    changes = f"SELECT count(*) FROM {SCHEMA}.order_history"
    assert 48 == ask(traded, changes)
    [share] = shown.shares
    assert (4 * 3, 48 - 4 * 3) == (share.rows, share.remaining)
    assert [("history", 12)] == apply(shown, batch=batch)
    kept = rows(
        traded,
        f"""SELECT DISTINCT status FROM {SCHEMA}.orders WHERE EXISTS (
            SELECT FROM {SCHEMA}.order_history WHERE order_id = id AND recorded_at < '2023-01-01Z') ORDER BY 1""",
    )
    assert ["NEW", "PARTIALLY_FILLED", "PENDING_CANCEL", "UNKNOWN"] == [row[0] for row in kept]
    assert 16 == ask(traded, f"SELECT count(*) FROM {SCHEMA}.orders")
    assert 36 == ask(traded, changes)


def test_an_ended_order_that_changed_lately_keeps_its_whole_history(traded):
    """One young version keeps the old ones: a history has no holes."""
    order = ask(traded, f"SELECT id FROM {SCHEMA}.orders WHERE status = 'FILLED' ORDER BY id LIMIT 1")
    run_sql(traded, f"UPDATE {SCHEMA}.orders SET filled_quantity = 1 WHERE id = '{order}'")
    shown = plan(traded, "history 1y")
    assert 9 == shown.shares[0].rows
    apply(shown)
    versions = f"SELECT version FROM {SCHEMA}.order_history WHERE order_id = '{order}' ORDER BY 1"
    assert [(1,), (2,), (3,), (4,)] == rows(traded, versions)


def test_an_order_that_somebody_holds_is_passed_by(traded):
    """A transaction that changes an ended order is not waited for, and its history stays whole."""
    order = ask(traded, f"SELECT id FROM {SCHEMA}.orders WHERE status = 'FILLED' ORDER BY id LIMIT 1")
    shown = plan(traded, "history 1y")
    with engine_of(traded).begin() as connection:
        connection.execute(text(f"UPDATE {SCHEMA}.orders SET filled_quantity = 1 WHERE id = '{order}'"))
        assert [("history", 9)] == apply(shown)
    assert 4 == ask(traded, f"SELECT count(*) FROM {SCHEMA}.order_history WHERE order_id = '{order}'")


def test_late_news_of_an_order_without_history_counts_from_one(traded):
    """A fill that comes after its order's history went starts a new one without holes."""
    apply(plan(traded, "history 1y"))
    order = ask(traded, f"SELECT id FROM {SCHEMA}.orders WHERE status = 'CANCELED' ORDER BY id LIMIT 1")
    run_sql(traded, f"UPDATE {SCHEMA}.orders SET filled_quantity = 1 WHERE id = '{order}'")
    assert [(1,)] == rows(traded, f"SELECT version FROM {SCHEMA}.order_history WHERE order_id = '{order}'")


# --- the commands --------------------------------------------------------------------------------------------------


def test_the_command_plans_asks_and_drops(traded, helios, monkeypatch):
    """The plan alone changes nothing; without a terminal --yes is required; then just this is gone."""
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    status, said, talk = helios("klines", "retain", f"{MINUTES}, 1d forever", "--json")
    assert 0 == status
    shown = {each["what"]: each for each in json.loads(said)}
    assert ("drop", 1000) == (shown["klines_1m_2022"]["plan"], shown["klines_1m_2022"]["rows"])
    assert "keep" == shown["klines_1d_2024"]["plan"]
    assert "about 1,000 rows go" in talk
    status, _, talk = helios("klines", "retain", MINUTES, "--apply")
    assert 2 == status
    assert "say --yes" in talk.splitlines()[-1]
    assert (2022, 1000) == rows(traded, KLINES)[0]
    status, said, _ = helios("retain", f"{MINUTES}, quality 2y, history 1y", "--apply", "--yes", "--json")
    assert 0 == status
    assert 1000 == {each["removed"]: each["rows"] for each in json.loads(said)}["klines_1m_2022"]
    assert {"klines_1m_2022", "quality", "history"} <= {each["removed"] for each in json.loads(said)}
    assert 2022 not in [row[0] for row in rows(traded, KLINES)]


@pytest.mark.parametrize("command", [("klines", "retain", "quality 90d"), ("retain", "1m 2m"), ("retain", "1m")])
def test_nonsense_and_other_subjects_end_with_a_sentence(helios, command):
    """Exit status 2, one line; no server is asked."""
    status, said, talk = helios(*command, "--apply", "--yes")
    assert (2, "", 1) == (status, said, len(talk.strip().splitlines()))
    assert talk.startswith("helios: ")


@pytest.mark.parametrize(("answer", "left"), [("n", 1000), ("", 1000), ("y", 0)])
def test_on_a_terminal_it_asks_first(installed, helios, monkeypatch, answer, left):
    """The plan is shown; only a yes removes what it shows."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal(f"{answer}\n"))
    status, said, talk = helios("klines", "retain", MINUTES, "--apply")
    assert 0 == status
    assert "klines_1m_2022" in said
    assert "Remove this for good?" in talk
    assert (left == 1000) == ("nothing was removed" in talk)
    assert left == ask(installed, f"SELECT count(*) FROM {SCHEMA}.klines WHERE open_time < '2023-01-01Z'")
