"""Migrations beside live trading: a writer stalls for a moment at most, and indexes are built while others write."""

import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from installation import COPIED, HEAD, REVISIONS, ROOT, ask, engine_of, finish, rows, run_sql, start, variables
from server_user import until
from sqlalchemy import URL, text

from helios.schema import environment

SCHEMA = "helios_trading"
INVALID = """
    SELECT relname FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
    WHERE NOT indisvalid AND relnamespace = to_regnamespace('helios_trading')
"""
INDEXES = """
    SELECT count(*) FROM pg_class WHERE relkind IN ('i', 'I') AND relname LIKE 'ix_klines_close%'
    AND relnamespace = to_regnamespace('helios_trading')
"""
TABLES = "SELECT count(*) FROM pg_partition_tree('helios_trading.klines')"

REVISION = '''"""{title}."""
import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = {revision!r}, {parent!r}, None, None


def upgrade() -> None:
    {up}


def downgrade() -> None:
    {down}
'''
INDEX_KLINES = {
    "title": "Index klines by their close",
    "up": 'op.create_index_concurrently("ix_klines_close", "klines", ["close"])',
    "down": 'op.drop_index_concurrently("ix_klines_close")',
}
ADD_COLUMN = {
    "title": "A note on orders",
    "up": 'op.add_column("orders", sa.Column("note", sa.Text()))',
    "down": 'op.drop_column("orders", "note")',
}

Alembic = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def revise(tmp_path: Path, upgraded: URL) -> Callable[[dict[str, str]], Alembic]:
    """Add a revision after the project's newest; gives what starts Alembic with it."""

    def add(content: dict[str, str]) -> Alembic:
        (tmp_path / "more").mkdir()
        (tmp_path / "more" / "9999_test.py").write_text(REVISION.format(revision="9999", parent=HEAD, **content))
        lines = (
            (ROOT / "alembic.ini")
            .read_text()
            .replace(
                "%(here)s/migrations",
                f"{ROOT}/migrations\nversion_locations = {ROOT}/migrations/versions:{tmp_path}/more",
            )
        )
        ini = tmp_path / "alembic.ini"
        ini.write_text(lines.replace("[alembic]", "[alembic]\npath_separator = os"))
        env = variables(upgraded, DATABASE_ROLE_PREFIX=COPIED)
        return lambda *arguments, **more: start("alembic", "-c", str(ini), *arguments, env=env | more)

    return add


@contextmanager
def trader(url: URL, statement: str) -> Iterator[list[float]]:
    """Write every few milliseconds until the block ends; collects how long each write took, in seconds."""
    took: list[float] = []
    over = threading.Event()

    def trade() -> None:
        with engine_of(url).connect() as connection:
            while not over.is_set():
                began = time.monotonic()
                connection.execute(text(statement))
                connection.commit()
                took.append(time.monotonic() - began)
                time.sleep(0.005)

    thread = threading.Thread(target=trade)
    thread.start()
    try:
        yield took
    finally:
        over.set()
        thread.join()


def place_order(url: URL) -> str:
    """Put one order down and give the statement that touches it."""
    order = uuid.uuid4()
    run_sql(
        url,
        f"INSERT INTO {SCHEMA}.instruments (exchange, market, symbol) VALUES ('binance', 'spot', 'BTCUSDT')",
        f"INSERT INTO {SCHEMA}.accounts (exchange, name, market) VALUES ('binance', 'main', 'spot')",
        f"""INSERT INTO {SCHEMA}.orders
            (id, account_id, instrument_id, client_order_id, side, type, status, submitted_at)
            SELECT '{order}', a.id, i.id, 'c1', 'BUY', 'LIMIT', 'NEW', now()
            FROM {SCHEMA}.accounts AS a, {SCHEMA}.instruments AS i""",
    )
    return f"UPDATE {SCHEMA}.orders SET price = coalesce(price, 0) + 1 WHERE id = '{order}'"


def test_a_writer_never_stalls_longer_than_the_lock_timeout(upgraded, revise):
    """An upgrade that waits behind a long reader steps aside again and again, and succeeds once the reader leaves."""
    run = revise(ADD_COLUMN)
    statement = place_order(upgraded)
    with trader(upgraded, statement) as took, engine_of(upgraded).connect() as reader:
        reader.execute(text(f"SELECT count(*) FROM {SCHEMA}.orders"))
        upgrade = run("upgrade", "head", DATABASE_LOCK_TIMEOUT="0.5")
        tries = [next(line for line in upgrade.stderr if "a table is in use, trying again" in line) for _ in range(3)]
        assert upgrade.poll() is None
        reader.rollback()
        finish(upgrade)
    assert 3 == len(tries)
    assert 0.4 < max(took) < 0.9  # it did stall for the timeout, and no longer
    assert ask(upgraded, f"SELECT max(note) FROM {SCHEMA}.orders") is None  # the column is there


def test_an_upgrade_that_cannot_get_its_lock_names_who_holds_it(upgraded, revise):
    """After DATABASE_MIGRATION_WAIT it gives up with one sentence, and nothing is half done."""
    run = revise(ADD_COLUMN)
    with engine_of(upgraded).connect() as reader:
        reader.execute(text(f"SELECT count(*) FROM {SCHEMA}.orders"))
        pid = reader.scalar(text("SELECT pg_backend_pid()"))
        _, talk = finish(run("upgrade", "head", DATABASE_LOCK_TIMEOUT="0.1", DATABASE_MIGRATION_WAIT="1"), expected=1)
    assert f"pid {pid}" in talk.strip().splitlines()[-1]
    assert "Traceback" not in talk
    assert HEAD == ask(upgraded, f"SELECT version_num FROM {SCHEMA}.alembic_version")


def test_what_was_applied_before_a_revision_that_cannot_go_on_stays(upgraded, revise):
    """Each revision is a transaction of its own: the next upgrade need not repeat those that went through."""
    run = revise(ADD_COLUMN)
    mark_as_test(upgraded)
    finish(run("downgrade", REVISIONS[-2].revision))
    impatient = {"DATABASE_LOCK_TIMEOUT": "0.1", "DATABASE_MIGRATION_WAIT": "0.5"}
    with engine_of(upgraded).connect() as reader:
        reader.execute(text(f"SELECT count(*) FROM {SCHEMA}.orders"))
        _, talk = finish(run("upgrade", "head", **impatient), expected=1)
    assert 1 == talk.count(f"applied revision {HEAD}")
    assert HEAD == ask(upgraded, f"SELECT version_num FROM {SCHEMA}.alembic_version")


def test_a_second_migrator_that_waits_too_long_names_the_first(upgraded, revise):
    """One migration at a time: the other waits as long as it was told, then says for whom."""
    run = revise(ADD_COLUMN)
    with engine_of(upgraded).connect() as holder:
        holder.execute(text("SELECT pg_advisory_lock(hashtextextended('helios:helios_trading', 0))"))
        pid = holder.scalar(text("SELECT pg_backend_pid()"))
        _, talk = finish(run("upgrade", "head", DATABASE_MIGRATION_WAIT="0.5"), expected=1)
    assert f"pid {pid}" in talk
    assert "has been migrating schema 'helios_trading'" in talk


def test_an_index_is_built_concurrently_part_by_part(upgraded, revise):
    """On the partitioned klines, with a second migrator waiting and a trader writing: no deadlock, nothing invalid."""
    run = revise(INDEX_KLINES)
    run_sql(upgraded, *(kline(each) for each in range(200)))
    with trader(upgraded, kline(100_000).replace("100000", "(random() * 1e6)::int")) as took:
        first, second = run("upgrade", "head"), run("upgrade", "head")
        talk = finish(first)[1] + finish(second)[1]
    assert 1 == talk.count("applied revision 9999")
    assert [] == rows(upgraded, INVALID)
    assert ask(upgraded, TABLES) == ask(upgraded, INDEXES)
    assert max(took) < 1.0
    run_sql(upgraded, f"SELECT {SCHEMA}.make_kline_partition('1m', 2035)")
    assert [] == rows(upgraded, INVALID)
    finish(run("check"), expected=255)  # the models do not know this index: the check sees it once, not per partition
    mark_as_test(upgraded)
    finish(run("downgrade", HEAD))
    assert 0 == ask(upgraded, INDEXES.replace("%'", "'"))


def test_an_index_waits_for_a_writer_as_long_as_it_takes(upgraded, revise):
    """It blocks nobody meanwhile, and giving up after the lock timeout would leave it half built."""
    run = revise(INDEX_KLINES | {"up": 'op.create_index_concurrently("ix_signals_price", "signals", ["price"])'})
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX CONC%' AND wait_event_type = 'Lock'"
    with engine_of(upgraded).connect() as writer:
        writer.execute(text(f"DELETE FROM {SCHEMA}.signals"))
        upgrade = run("upgrade", "head", DATABASE_LOCK_TIMEOUT="0.2")
        until(lambda: ask(upgraded, waiting))
        time.sleep(0.5)
        assert 1 == ask(upgraded, waiting)
        writer.commit()
    finish(upgrade)
    assert [] == rows(upgraded, INVALID)


def test_a_killed_index_build_is_completed_by_the_next(upgraded, revise):
    """SIGKILL in the middle leaves an invalid index behind; the next upgrade drops it, builds it, and ends valid."""
    run = revise(INDEX_KLINES)
    run_sql(upgraded, *(kline(each) for each in range(50)))
    with engine_of(upgraded).connect() as writer:
        writer.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        writer.execute(text("SELECT count(*) FROM pg_class"))  # an old snapshot, for whose end every build waits
        upgrade = run("upgrade", "head")
        until(lambda: rows(upgraded, INVALID + " AND relkind = 'i'"))
        upgrade.kill()
        upgrade.communicate()
        writer.rollback()
    busy = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX CONCURRENTLY%' AND state = 'active'"
    until(lambda: not ask(upgraded, busy))
    finish(run("upgrade", "head"))
    assert [] == rows(upgraded, INVALID)
    assert ask(upgraded, TABLES) == ask(upgraded, INDEXES)


def kline(minute: int) -> str:
    """A statement that writes one candle of 2025."""
    return f"""INSERT INTO {SCHEMA}.klines (instrument_id, interval, open_time, open, high, low, close, volume)
        VALUES (1, '1m', timestamptz '2025-01-01T00:00Z' + {minute} * interval '1 minute', 1, 1, 1, 1, 0)
        ON CONFLICT DO NOTHING"""


def mark_as_test(url: URL) -> None:
    """Say that tables may be dropped here."""
    with engine_of(url).begin() as connection:
        environment.mark(connection, SCHEMA, "test")
