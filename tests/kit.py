"""What the tests of the testing kit share: a database that already holds real data, and a proof that it still does."""

import hashlib

import pytest
import redis
from installation import rows, run_sql, variables
from own_servers import client
from sqlalchemy import URL

REAL = """
    INSERT INTO {s}.instruments (exchange, market, symbol)
    VALUES ('binance', 'spot', 'BTCUSDT'), ('binance', 'um', 'TESTUSDT');
    INSERT INTO {s}.tickers (instrument_id, last_price, event_at) SELECT id, 96340.61, now() FROM {s}.instruments;
    INSERT INTO {s}.accounts (exchange, name, market) VALUES ('binance', 'main', 'spot');
    INSERT INTO {s}.orders (id, account_id, instrument_id, client_order_id, exchange_order_id,
                            side, type, price, quantity, filled_quantity, status, submitted_at)
    SELECT gen_random_uuid(), account.id, instrument.id, 'TEST-' || instrument.id, instrument.id,
           'BUY', 'LIMIT', 96000, 1, 1, 'FILLED', now() FROM {s}.accounts AS account, {s}.instruments AS instrument;
    INSERT INTO {s}.fills (order_id, trade_id, price, quantity, filled_at)
    SELECT id, 'T1', 96000, 1, now() FROM {s}.orders;
    INSERT INTO {s}.trading_sessions (id, name, strategy, mode, status, started_at)
    VALUES (gen_random_uuid(), 'TEST of the grid, real money', 'grid', 'live', 'ACTIVE', now());
    SELECT {s}.make_kline_partition('1h', 2025);
    INSERT INTO {s}.klines (instrument_id, interval, open_time, open, high, low, close, volume)
    SELECT id, '1h', '2025-01-01T00:00Z', 1, 2, 1, 2, 3 FROM {s}.instruments;
"""


def seed_rows(url: URL, schema: str = "helios_trading") -> None:
    """Write rows that look like tests, and are real: they were there before."""
    run_sql(url, *filter(str.strip, REAL.format(s=schema).split(";\n")))


def seed_keys(valkey: URL) -> None:
    """Write keys that look like tests, and are real: they were there before."""
    with client(valkey) as there:
        there.delete("price:BTCUSDT", "TEST:BTCUSDT", "queue:TESTUSDT")
        there.set("price:BTCUSDT", "96340.61", px=3_600_000)
        there.hset("TEST:BTCUSDT", mapping={"bid": "96340.60", "ask": "96340.62"})
        there.rpush("queue:TESTUSDT", *range(5))


def content(url: URL, schema: str = "helios_trading") -> dict[str, str]:
    """Hash every row of every table, asked of the catalog."""
    tables = rows(
        url,
        "SELECT oid::regclass::text FROM pg_class WHERE relkind IN ('r', 'p') AND NOT relispartition "
        "AND relnamespace = to_regnamespace(:schema) AND relname NOT LIKE 'mirror%' ORDER BY 1",
        schema=schema,
    )
    found = {}
    for (table,) in tables:
        lines = rows(url, f"SELECT CAST(each AS text) FROM {table} AS each ORDER BY 1")
        found[table] = hashlib.sha256("\n".join(line for (line,) in lines).encode()).hexdigest()[:12] + f" {len(lines)}"
    return found


def keys(valkey: URL) -> dict[bytes, tuple[bytes, bytes, int]]:
    """Read every key that is not Helios's own: its type, its value, its absolute expiry."""
    with client(valkey) as there:
        names = [each for each in there.scan_iter(count=1000) if not each.startswith(b"helios:")]
        return {each: (there.type(each), value(there, each), there.pexpiretime(each)) for each in sorted(names)}


def value(there: redis.Redis, name: bytes) -> str:
    kind = there.type(name)
    if kind == b"hash":
        return repr(sorted(there.hgetall(name).items()))
    if kind == b"list":
        return repr(there.lrange(name, 0, -1))
    return repr(there.get(name)) if kind == b"string" else repr(there.dump(name))


INI = """
    [pytest]
    asyncio_mode = auto
    asyncio_default_fixture_loop_scope = function
    filterwarnings = error
"""


class Inner:
    """A project whose suite uses the kit: pytest in a process of its own, on a database with real data in it."""

    def __init__(self, pytester: pytest.Pytester, database: URL, valkey: URL, **more: str) -> None:
        self.pytester = pytester
        self.database = database
        self.valkey = valkey
        pytester.makeini(INI)
        self.env = variables(database, REDIS_URL=valkey.render_as_string(hide_password=False), **more)

    def run(self, *arguments: str) -> pytest.RunResult:
        """Run the suite to its end."""
        with pytest.MonkeyPatch.context() as patch:
            for name, given in self.env.items():
                patch.setenv(name, given)
            return self.pytester.runpytest_subprocess(*arguments, timeout=60)

    def state(self) -> tuple[dict[str, str], dict[bytes, tuple[bytes, bytes, int]]]:
        """Read all that may not change."""
        return content(self.database), keys(self.valkey)
