"""Names of schemas that SQL or Python takes for something else: all of Helios works in them."""

import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

import ancestor
import exchange
import make_klines
from installation import alembic, ask, finish, start, variables
from kit import client
from own_servers import address
from sqlalchemy import URL

LONG_AGO = datetime(2015, 1, 1, tzinfo=UTC)  # no revision makes its partitions
# An order that was placed, told by its trade before the exchange gave it a number: two rows that are joined.
MESSAGES = [
    exchange.kline_stream("BTCUSDT", at=int(LONG_AGO.timestamp() * 1000)),
    exchange.execution_report(i=-1),
    exchange.rest_trade(),
    exchange.execution_report(),
]


def test_a_schema_may_be_named_by_a_word_of_sql(database: URL, valkey: URL, tmp_path: Path):
    """Upgraded, loaded, fed, adopted into, mirrored and verified, also where a partition has to be made first."""
    ancestor.install(database)
    env = schema_made(database, "order", REDIS_URL=address(valkey))
    load_long_ago(env, tmp_path)
    messages = tmp_path / "messages.json"
    messages.write_text(json.dumps(MESSAGES))
    finish(start("feeding", address(database), "main", str(messages), env=env))
    finish(start("helios.cli", "adopt", "--apply", "--mode", "paper", env=env, cwd=tmp_path))
    finish(start("helios.cli", "mirror", "rebuild", env=env))
    finish(start("helios.cli", "mirror", "check", env=env))
    finish(start("test_data_pipeline", env=env))
    counts = {table: count(database, f'"order".{table}') for table in ("klines", "orders", "fills", "positions")}
    assert {"klines": 48 + 1 + 402, "orders": 1 + 3, "fills": 1, "positions": 1} == counts
    with client(valkey) as there:
        there.flushdb()


def test_a_schema_may_have_underscores_at_its_ends(database: URL, tmp_path: Path):
    """SQLAlchemy's `func` drops one at the end, and takes two at the beginning for Python's."""
    load_long_ago(schema_made(database, "__desk_"), tmp_path)
    assert 48 == count(database, "__desk_.klines")


def schema_made(url: URL, schema: str, **more: str) -> dict[str, str]:
    """Make a schema of this name for tests, and give the environment of a process that works in it."""
    env = variables(url, schema, HELIOS_ENVIRONMENT="test", PYTHONPATH=os.pathsep.join(sys.path), **more)
    alembic("upgrade", "head", env=env)
    finish(start("helios.cli", "environment", "set", "test", env=env))
    return env


def load_long_ago(env: dict[str, str], folder: Path) -> None:
    """Load a file of candles that fall into no partition that is there."""
    made = make_klines.make_file(folder, "ETHUSDT", "1h", start=LONG_AGO, rows=48)
    finish(start("helios.cli", "klines", "load", str(made.path), env=env))


def count(url: URL, table: str) -> int:
    return ask(url, f"SELECT count(*) FROM {table}")
