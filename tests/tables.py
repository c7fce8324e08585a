"""Helios's tables in a database of their own, a good row for each, and what PostgreSQL says of them."""

from alembic.migration import MigrationContext
from alembic.operations import Operations
from installation import REVISIONS
from server_user import until
from sqlalchemy import Connection, Engine, text

from helios.models import metadata

SCHEMA = str(metadata.schema)

SESSION = "01900000-0000-7000-8000-00000000000a"
GRID = "01900000-0000-7000-8000-00000000000b"
ORDER = "01900000-0000-7000-8000-00000000000c"
NEXT = "01900000-0000-7000-8000-00000000000d"
NOBODY = "01900000-0000-7000-8000-0000000000ff"
DAY = "2025-03-01 00:00:00+00"
NEXT_DAY = "2025-03-02 00:00:00+00"

# The rows that others refer to; in a fresh database their numbers are 1.
PARENTS: dict[str, dict[str, str]] = {
    "instruments": {"exchange": "binance", "market": "um", "symbol": "BTCUSDT"},
    "accounts": {"exchange": "binance", "name": "main", "market": "um"},
    "trading_sessions": {"id": SESSION, "name": "run", "strategy": "grid", "mode": "paper", "started_at": DAY},
    "grid_sessions": {
        "id": GRID,
        "session_id": SESSION,
        "instrument_id": "1",
        "lower_price": "1",
        "upper_price": "2",
        "level_count": "2",
        "quantity_per_level": "1",
        "spacing": "arithmetic",
        "started_at": DAY,
    },
    "orders": {
        "id": ORDER,
        "account_id": "1",
        "instrument_id": "1",
        "client_order_id": "helios-1",
        "side": "BUY",
        "type": "LIMIT",
        "status": "NEW",
        "submitted_at": DAY,
    },
}

# A row that each table takes beside its parents, with every column that may be wrong filled in.
GOOD: dict[str, dict[str, str]] = {
    "instruments": PARENTS["instruments"]
    | {"symbol": "ETHUSDT", "tick_size": "0.01", "step_size": "0.001", "min_notional": "0", "status": "TRADING"},
    "klines": {
        "instrument_id": "1",
        "interval": "1m",
        "open_time": DAY,
        "open": "2",
        "high": "3",
        "low": "1",
        "close": "2",
        "volume": "0",
        "quote_volume": "0",
        "taker_buy_volume": "0",
        "taker_buy_quote_volume": "0",
        "trades": "0",
    },
    "tickers": {
        "instrument_id": "1",
        "last_price": "1",
        "bid_price": "0",
        "bid_quantity": "0",
        "ask_price": "2",
        "ask_quantity": "1",
        "open_price_24h": "1",
        "high_price_24h": "1",
        "low_price_24h": "1",
        "price_change_24h": "-1",
        "price_change_percent_24h": "-50",
        "volume_24h": "1",
        "quote_volume_24h": "1",
        "trades_24h": "3000000000",
        "event_at": DAY,
    },
    "data_quality_metrics": {
        "instrument_id": "1",
        "subject": "klines",
        "interval": "1m",
        "source": "feed",
        "window_start": DAY,
        "window_end": NEXT_DAY,
        "rows_expected": "1440",
        "rows_found": "1440",
        "rows_rejected": "0",
        "completeness": "1",
        "freshness_seconds": "-0.5",
        "spread": "-0.1",
        "score": "0",
        "alert_level": "warning",
        "reasons": '["One row came late"]',
    },
    "kline_files": {
        "instrument_id": "1",
        "interval": "1m",
        "name": "BTCUSDT-1m-2025-03.csv",
        "sha256": "0123456789abcdef" * 4,
        "rows": "1440",
        "rejected": "0",
        "first_open_time": DAY,
        "last_open_time": DAY,
        "stamp": "2049:131:153865417:1735689600000000000:1735689600000000000",
    },
    "trading_sessions": PARENTS["trading_sessions"]
    | {"id": NEXT, "status": "STOPPED", "stopped_at": DAY, "parameters": '{"steps": 3}', "note": "a try"},
    "signals": {
        "id": NEXT,
        "session_id": SESSION,
        "instrument_id": "1",
        "interval": "1h",
        "side": "SELL",
        "kind": "breakout",
        "strength": "0.5",
        "price": "1",
        "signalled_at": DAY,
    },
    "grid_sessions": PARENTS["grid_sessions"] | {"id": NEXT, "status": "FAILED", "stopped_at": NEXT_DAY},
    "grid_levels": {
        "grid_session_id": GRID,
        "level": "0",
        "price": "1",
        "side": "BUY",
        "state": "OPEN",
        "order_id": ORDER,
    },
    "accounts": PARENTS["accounts"] | {"name": "second"},
    "balances": {"account_id": "1", "asset": "USDT", "free": "-1", "locked": "0", "event_at": DAY},
    "orders": PARENTS["orders"]
    | {
        "id": NEXT,
        "session_id": SESSION,
        "client_order_id": "helios-2",
        "exchange_order_id": "17",
        "time_in_force": "GTC",
        "position_side": "LONG",
        "origin": "manual",
        "price": "0",
        "stop_price": "1",
        "quantity": "1",
        "quote_quantity": "1",
        "filled_quantity": "2",
        "filled_quote_quantity": "2",
    },
    "fills": {
        "order_id": ORDER,
        "trade_id": "1",
        "price": "1",
        "quantity": "1",
        "quote_quantity": "1",
        "fee": "-0.1",
        "fee_asset": "BNB",
        "filled_at": DAY,
    },
    "order_history": {
        "order_id": ORDER,
        "version": "2",
        "old_status": "NEW",
        "new_status": "FILLED",
        "new_state": "{}",
        "actor": "tester",
        "login": "tester",
    },
    "positions": {
        "account_id": "1",
        "instrument_id": "1",
        "position_side": "SHORT",
        "quantity": "-1",
        "entry_price": "1",
        "realized_pnl": "-1",
        "event_at": DAY,
    },
    "mirror_outbox": {"subject": "ticker", "key": "1"},
    "mirror_points": {"bucket": "x", "number": "1", "token": "t", "snapshot": "1:1:"},
    "mirror_state": {"bucket": "x", "server": "1", "form": "1"},
}


def wait_until_blocked(engine: Engine, name: str) -> None:
    """Return when the connection of that name waits for a lock."""
    blocked = text("SELECT count(*) > 0 FROM pg_stat_activity WHERE application_name = :n AND wait_event_type = 'Lock'")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        until(lambda: bool(connection.scalar(blocked, {"n": name})))


def look_into(connection: Connection, schema: str) -> None:
    """Make the schema the only one that names without a schema mean, until the transaction ends."""
    connection.execute(text(f'SET LOCAL search_path TO "{schema}", pg_temp'))


def run(connection: Connection, schema: str, step: str) -> None:
    """Run `upgrade` or `downgrade` of the revisions in a schema, as migrations do."""
    look_into(connection, schema)
    with Operations.context(MigrationContext.configure(connection)):
        for each in REVISIONS if step == "upgrade" else reversed(REVISIONS):
            getattr(each.module, step)()


def insert(connection: Connection, table: str, values: dict[str, str | None]) -> None:
    """Insert a row as raw SQL would: every value as text, for PostgreSQL to read."""
    names = ", ".join(f'"{name}"' for name in values)
    places = ", ".join(f":{name}" for name in values)
    connection.execute(text(f'INSERT INTO "{SCHEMA}".{table} ({names}) VALUES ({places})'), values)


CATALOG = {
    "tables": """
        SELECT relname, relkind::text, reloptions, pg_get_partkeydef(pg_class.oid),
               obj_description(pg_class.oid, 'pg_class')
        FROM pg_class WHERE {here} AND relkind IN ('r', 'p') ORDER BY relname""",
    "columns": """
        SELECT relname, attnum, attname, format_type(atttypid, atttypmod), attnotnull, attidentity::text,
               pg_get_expr(adbin, adrelid), col_description(attrelid, attnum)
        FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid
        LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
        WHERE {here} AND relkind IN ('r', 'p') AND attnum > 0 ORDER BY relname, attnum""",
    "constraints": """
        SELECT relname, conname, pg_get_constraintdef(pg_constraint.oid) FROM pg_constraint
        JOIN pg_class ON conrelid = pg_class.oid WHERE {here} ORDER BY relname, conname""",
    "indexes": """
        SELECT relname, replace(pg_get_indexdef(pg_class.oid), quote_ident(:schema) || '.', '') FROM pg_class
        WHERE {here} AND relkind IN ('i', 'I') ORDER BY relname""",
    "partitions": """
        SELECT relname, pg_get_expr(relpartbound, oid), relacl::text, obj_description(oid, 'pg_class') FROM pg_class
        WHERE {in_schema} AND relispartition AND relkind IN ('r', 'p') ORDER BY relname""",
    "functions": """
        SELECT proname, prosrc, prosecdef, provolatile::text, proacl::text, obj_description(oid, 'pg_proc') FROM pg_proc
        WHERE pronamespace = CAST(quote_ident(:schema) AS regnamespace) ORDER BY proname""",
    "triggers": """
        SELECT relname, tgname, replace(pg_get_triggerdef(pg_trigger.oid), quote_ident(:schema) || '.', '')
        FROM pg_trigger JOIN pg_class ON tgrelid = pg_class.oid
        WHERE {here} AND NOT tgisinternal ORDER BY relname, tgname""",
    "types": """
        SELECT typname FROM pg_type
        WHERE typnamespace = CAST(quote_ident(:schema) AS regnamespace) AND typrelid = 0 AND typelem = 0""",
}


def catalog(connection: Connection, schema: str) -> dict[str, list[tuple[object, ...]]]:
    """Tell all that PostgreSQL knows of a schema, without its name."""
    look_into(connection, schema)
    in_schema = "relnamespace = CAST(quote_ident(:schema) AS regnamespace)"
    here = f"{in_schema} AND NOT relispartition"
    told = {}
    for subject, query in CATALOG.items():
        rows = connection.execute(text(query.format(here=here, in_schema=in_schema)), {"schema": schema})
        told[subject] = [tuple(row) for row in rows]
    return told
