"""The tables as Helios first made them, with the functions that make partitions and keep the orders' history.

Nothing here names a schema: what runs this sets `search_path` to the schema, then `pg_temp`, and the functions keep
that path as their own.
"""

from collections.abc import Iterable

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)
INTERVALS = ("1s", "1m", "3m", "5m", "15m", "30m", "1h", "2h", "4h", "6h", "8h", "12h", "1d", "3d", "1w", "1mo")
# More years are made when they are needed, by make_kline_partition(). A fixed range, because a revision makes the
# same tables whenever it runs.
FIRST_YEAR, LAST_YEAR = 2024, 2028
ORDER_STATUSES = (
    "PENDING_NEW",
    "NEW",
    "PARTIALLY_FILLED",
    "FILLED",
    "PENDING_CANCEL",
    "CANCELED",
    "REJECTED",
    "EXPIRED",
    "EXPIRED_IN_MATCH",
    "UNKNOWN",
)
TABLES = (
    "instruments",
    "klines",
    "tickers",
    "data_quality_metrics",
    "kline_files",
    "trading_sessions",
    "signals",
    "grid_sessions",
    "accounts",
    "balances",
    "orders",
    "fills",
    "order_history",
    "positions",
    "grid_levels",
)
FUNCTIONS = (
    "make_kline_partition(text, integer)",
    "leave_to_owner(regclass)",
    "write_order_history()",
    "join_orders(uuid, uuid)",
    "order_transition_is_known(text, text)",
    "numbers_as_text(jsonb)",
)


def upgrade() -> None:
    create_market()
    create_strategy()
    create_orders()
    create_partitions()
    create_history()
    for function in FUNCTIONS:
        op.execute(f"REVOKE ALL ON FUNCTION {function} FROM PUBLIC")


def downgrade() -> None:
    for table in reversed(TABLES):
        op.drop_table(table)  # klines takes its partitions along, orders their trigger
    for function in FUNCTIONS:
        op.execute(f"DROP FUNCTION {function}")


def column(
    name: str,
    kind: sa.types.TypeEngine,
    comment: str,
    *rest: sa.Identity,
    null: bool = False,
    default: str | None = None,
) -> sa.Column:
    server_default = None if default is None else sa.text(default)
    return sa.Column(name, kind, *rest, nullable=null, server_default=server_default, comment=comment)


def check(table: str, name: str, holds: str) -> sa.CheckConstraint:
    return sa.CheckConstraint(holds, name=op.f(f"ck_{table}_{name}"))


def positive(*names: str) -> str:
    return " AND ".join(f"{name} > 0 AND {name} < 'Infinity'" for name in names)


def not_negative(*names: str) -> str:
    return " AND ".join(f"{name} >= 0 AND {name} < 'Infinity'" for name in names)


def finite(*names: str) -> str:
    return " AND ".join(f"{name} > '-Infinity' AND {name} < 'Infinity'" for name in names)


def one_of(table: str, name: str, choices: Iterable[str]) -> sa.CheckConstraint:
    texts = "', '".join(choices)
    return check(table, name, f"{name} IN ('{texts}')")


def create_market() -> None:
    op.create_table(
        "instruments",
        column("id", sa.Integer(), "Number given by the database", sa.Identity(always=True)),
        column("exchange", sa.Text(), "Exchange in lower case, such as binance"),
        column("market", sa.Text(), "spot, um (USD-margined) or cm (coin-margined futures)"),
        column("symbol", sa.Text(), "Symbol as the exchange writes it, such as BTCUSDT"),
        column("base_asset", sa.Text(), "What is traded; NULL until the exchange told", null=True),
        column("quote_asset", sa.Text(), "What it is paid in; NULL until the exchange told", null=True),
        column("tick_size", sa.Numeric(), "Step of prices; NULL where unknown or free", null=True),
        column("step_size", sa.Numeric(), "Step of quantities; NULL where unknown or free", null=True),
        column("min_notional", sa.Numeric(), "Least value of an order; NULL where unknown or free", null=True),
        column("status", sa.Text(), "Whether it trades now", default="'UNKNOWN'"),
        column("recorded_at", MOMENT, "When the row was first written here", default="now()"),
        column(
            "updated_at",
            MOMENT,
            "When the row was last written here; ORM and Core set it by themselves, raw SQL sets it",
            default="now()",
        ),
        sa.PrimaryKeyConstraint("id", name="pk_instruments"),
        sa.UniqueConstraint("exchange", "market", "symbol", name="uq_instruments_exchange_market_symbol"),
        one_of("instruments", "market", ("spot", "um", "cm")),
        one_of("instruments", "status", ("UNKNOWN", "PRE_TRADING", "TRADING", "HALT", "CLOSED")),
        check("instruments", "min_notional_is_not_negative", not_negative("min_notional")),
        check("instruments", "names_are_not_blank", "exchange ~ '\\S' AND symbol ~ '\\S'"),
        check("instruments", "sizes_are_positive", positive("tick_size", "step_size")),
        comment="What trades where: one row for each symbol in a market of an exchange",
    )
    op.create_table(
        "klines",
        column("instrument_id", sa.Integer(), "Instrument; the writer holds it, no key"),
        column("trades", sa.Integer(), "Number of trades; NULL where the source does not tell", null=True),
        column("open_time", MOMENT, "First moment of the candle"),
        column("open", sa.Numeric(), "First price"),
        column("high", sa.Numeric(), "Highest price"),
        column("low", sa.Numeric(), "Lowest price"),
        column("close", sa.Numeric(), "Last price"),
        column("volume", sa.Numeric(), "Quantity traded, in the base asset"),
        column("quote_volume", sa.Numeric(), "Value traded, in the quote asset; NULL where untold", null=True),
        column("taker_buy_volume", sa.Numeric(), "Part of volume where the buyer was the taker", null=True),
        column("taker_buy_quote_volume", sa.Numeric(), "Part of quote_volume where the buyer was the taker", null=True),
        column("interval", sa.Text(), "Length of each candle, 1m a minute, 1mo a month"),
        sa.PrimaryKeyConstraint("instrument_id", "interval", "open_time", name="pk_klines"),
        one_of("klines", "interval", INTERVALS),
        check("klines", "high_is_highest", "high >= open AND high >= close AND high >= low"),
        check("klines", "low_is_lowest", "low <= open AND low <= close"),
        check("klines", "prices_are_positive", "low > 0 AND high < 'Infinity'"),
        check(
            "klines",
            "volumes_are_not_negative",
            not_negative("volume", "quote_volume", "taker_buy_volume", "taker_buy_quote_volume") + " AND trades >= 0",
        ),
        comment="Closed candles; partitioned by interval, then by UTC year of open_time",
        postgresql_partition_by="LIST (interval)",
    )
    op.create_table(
        "tickers",
        column("instrument_id", sa.Integer(), "Instrument"),
        column("last_price", sa.Numeric(), "Price of the last trade; NULL where only quotes are told", null=True),
        column("bid_price", sa.Numeric(), "Best price that a buyer offers", null=True),
        column("bid_quantity", sa.Numeric(), "Quantity at the best bid", null=True),
        column("ask_price", sa.Numeric(), "Best price that a seller asks", null=True),
        column("ask_quantity", sa.Numeric(), "Quantity at the best ask", null=True),
        column("open_price_24h", sa.Numeric(), "Price 24 hours before", null=True),
        column("high_price_24h", sa.Numeric(), "Highest price of the last 24 hours", null=True),
        column("low_price_24h", sa.Numeric(), "Lowest price of the last 24 hours", null=True),
        column("price_change_24h", sa.Numeric(), "Change of the price in the last 24 hours", null=True),
        column("price_change_percent_24h", sa.Numeric(), "The same in percent", null=True),
        column("volume_24h", sa.Numeric(), "Quantity traded in the last 24 hours, base asset", null=True),
        column("quote_volume_24h", sa.Numeric(), "Value traded in the last 24 hours, quote asset", null=True),
        column("trades_24h", sa.BigInteger(), "Number of trades in the last 24 hours", null=True),
        column("event_at", MOMENT, "When the exchange said so"),
        column("priced_at", MOMENT, "When it said so of last price and 24 hours", null=True),
        column("quoted_at", MOMENT, "When it said so of bid and ask", null=True),
        column(
            "recorded_at",
            MOMENT,
            "When the row was last written here; ORM and Core set it by themselves, raw SQL sets it",
            default="now()",
        ),
        sa.PrimaryKeyConstraint("instrument_id", name="pk_tickers"),
        sa.ForeignKeyConstraint(["instrument_id"], ["instruments.id"], name="fk_tickers_instrument_id"),
        check("tickers", "price_changes_are_finite", finite("price_change_24h", "price_change_percent_24h")),
        check(
            "tickers",
            "prices_are_not_negative",
            not_negative("last_price", "bid_price", "ask_price", "open_price_24h", "high_price_24h", "low_price_24h"),
        ),
        check(
            "tickers",
            "quantities_are_not_negative",
            not_negative("bid_quantity", "ask_quantity", "volume_24h", "quote_volume_24h") + " AND trades_24h >= 0",
        ),
        check("tickers", "some_price_is_there", "num_nonnulls(last_price, bid_price, ask_price) > 0"),
        comment="Newest price of each instrument and its last 24 hours",
        postgresql_with={"fillfactor": 50},
    )
    op.create_table(
        "data_quality_metrics",
        column("id", sa.BigInteger(), "Number given by the database", sa.Identity(always=True)),
        column("instrument_id", sa.Integer(), "Instrument; NULL for all", null=True),
        column("subject", sa.Text(), "What was looked at"),
        column("interval", sa.Text(), "Interval of the klines looked at", null=True),
        column("source", sa.Text(), "Who measured: a file's name, feed, trigger ..."),
        column("measured_at", MOMENT, "When it was measured", default="now()"),
        column("window_start", MOMENT, "First moment looked at", null=True),
        column("window_end", MOMENT, "Moment up to which it was looked at", null=True),
        column("rows_expected", sa.BigInteger(), "Rows that should be there", null=True),
        column("rows_found", sa.BigInteger(), "Rows that are there", null=True),
        column("rows_rejected", sa.BigInteger(), "Rows that could not be used", null=True),
        column("completeness", sa.Numeric(), "Share of the expected rows that are there, 0 to 1", null=True),
        column("freshness_seconds", sa.Numeric(), "Age of the newest data, in seconds", null=True),
        column("spread", sa.Numeric(), "Ask less bid, as a share of the middle", null=True),
        column("score", sa.Numeric(), "All in all: 0 is useless, 1 is flawless", null=True),
        column("alert_level", sa.Text(), "How much attention it asks for", default="'ok'"),
        column("reasons", JSONB(), "Sentences saying why", default="'[]'"),
        sa.PrimaryKeyConstraint("id", name="pk_data_quality_metrics"),
        sa.ForeignKeyConstraint(["instrument_id"], ["instruments.id"], name="fk_data_quality_metrics_instrument_id"),
        one_of("data_quality_metrics", "subject", ("klines", "ticker", "orders", "positions")),
        one_of("data_quality_metrics", "interval", INTERVALS),
        one_of("data_quality_metrics", "alert_level", ("ok", "warning", "critical")),
        check("data_quality_metrics", "completeness_is_a_share", "completeness BETWEEN 0 AND 1"),
        check("data_quality_metrics", "measures_are_finite", finite("freshness_seconds", "spread")),
        check("data_quality_metrics", "reasons_are_a_list", "jsonb_typeof(reasons) = 'array'"),
        check(
            "data_quality_metrics",
            "rows_are_not_negative",
            "rows_expected >= 0 AND rows_found >= 0 AND rows_rejected >= 0",
        ),
        check("data_quality_metrics", "score_is_a_share", "score BETWEEN 0 AND 1"),
        check("data_quality_metrics", "window_is_in_order", "window_start <= window_end"),
        comment="Measurements of data quality, and the alerts they raised",
    )
    op.create_index(
        "ix_data_quality_metrics_instrument_id_subject_measured_at",
        "data_quality_metrics",
        ["instrument_id", "subject", "measured_at"],
    )
    op.create_table(
        "kline_files",
        column("instrument_id", sa.Integer(), "Instrument of the series"),
        column("interval", sa.Text(), "Interval of the series"),
        column("name", sa.Text(), "Name of the file, without folders"),
        column("sha256", sa.Text(), "Checksum of its content, 64 hexadecimal digits in lower case"),
        column("rows", sa.BigInteger(), "Good rows, each open time once"),
        column("rejected", sa.BigInteger(), "Rows that could not be used", default="'0'"),
        column("first_open_time", MOMENT, "Open time of its first candle; NULL without rows", null=True),
        column("last_open_time", MOMENT, "Open time of its last candle; NULL without rows", null=True),
        column("loaded_at", MOMENT, "When this content was loaded", default="now()"),
        sa.PrimaryKeyConstraint("instrument_id", "interval", "name", name="pk_kline_files"),
        sa.ForeignKeyConstraint(["instrument_id"], ["instruments.id"], name="fk_kline_files_instrument_id"),
        one_of("kline_files", "interval", INTERVALS),
        check("kline_files", "name_is_not_blank", "name ~ '\\S'"),
        check(
            "kline_files",
            "open_times_are_in_order",
            "(first_open_time IS NULL) = (last_open_time IS NULL) AND first_open_time <= last_open_time",
        ),
        check("kline_files", "rows_are_not_negative", "rows >= 0 AND rejected >= 0"),
        check("kline_files", "sha256_is_a_checksum", "sha256 ~ '^[0-9a-f]{64}$'"),
        comment="Files of klines that were loaded, with their newest content",
    )


def create_strategy() -> None:
    op.create_table(
        "trading_sessions",
        column("id", sa.Uuid(), "UUIDv7 made by the application"),
        column("name", sa.Text(), "What people call this run"),
        column("strategy", sa.Text(), "The strategy that runs"),
        column("mode", sa.Text(), "live (with money), paper or backtest"),
        column("status", sa.Text(), "Where it stands", default="'ACTIVE'"),
        column("started_at", MOMENT, "When it began"),
        column("stopped_at", MOMENT, "When it ended; NULL while it runs", null=True),
        column("parameters", JSONB(), "The strategy's parameters, as it was started with", default="'{}'"),
        column("note", sa.Text(), "Whatever people want to remember about it", null=True),
        column("recorded_at", MOMENT, "When the row was first written here", default="now()"),
        sa.PrimaryKeyConstraint("id", name="pk_trading_sessions"),
        one_of("trading_sessions", "mode", ("live", "paper", "backtest")),
        one_of("trading_sessions", "status", ("ACTIVE", "PAUSED", "STOPPED", "FAILED")),
        check("trading_sessions", "names_are_not_blank", "name ~ '\\S' AND strategy ~ '\\S'"),
        check("trading_sessions", "parameters_are_an_object", "jsonb_typeof(parameters) = 'object'"),
        check("trading_sessions", "stops_after_start", "stopped_at >= started_at"),
        comment="Runs of strategies",
    )
    op.create_table(
        "signals",
        column("id", sa.Uuid(), "UUIDv7 made by the application"),
        column("session_id", sa.Uuid(), "Run that raised it", null=True),
        column("instrument_id", sa.Integer(), "Instrument"),
        column("interval", sa.Text(), "Interval of the candles it was seen in", null=True),
        column("side", sa.Text(), "BUY or SELL"),
        column("kind", sa.Text(), "What was seen, in the strategy's own word"),
        column("strength", sa.Numeric(), "How sure the strategy is, 0 to 1", null=True),
        column("price", sa.Numeric(), "Price at which it was seen", null=True),
        column("reason", sa.Text(), "Why, as a sentence", null=True),
        column("signalled_at", MOMENT, "When it was raised"),
        column("recorded_at", MOMENT, "When the row was first written here", default="now()"),
        sa.PrimaryKeyConstraint("id", name="pk_signals"),
        sa.ForeignKeyConstraint(["session_id"], ["trading_sessions.id"], name="fk_signals_session_id"),
        sa.ForeignKeyConstraint(["instrument_id"], ["instruments.id"], name="fk_signals_instrument_id"),
        one_of("signals", "interval", INTERVALS),
        one_of("signals", "side", ("BUY", "SELL")),
        check("signals", "kind_is_not_blank", "kind ~ '\\S'"),
        check("signals", "price_is_positive", positive("price")),
        check("signals", "strength_is_a_share", "strength BETWEEN 0 AND 1"),
        comment="What strategies wished to do, whether or not an order followed",
    )
    op.create_index("ix_signals_instrument_id_signalled_at", "signals", ["instrument_id", "signalled_at"])
    op.create_index("ix_signals_session_id", "signals", ["session_id"])
    op.create_table(
        "grid_sessions",
        column("id", sa.Uuid(), "UUIDv7 made by the application"),
        column("session_id", sa.Uuid(), "Run that laid it"),
        column("instrument_id", sa.Integer(), "Instrument"),
        column("lower_price", sa.Numeric(), "Price of the lowest level"),
        column("upper_price", sa.Numeric(), "Price of the highest level"),
        column("level_count", sa.Integer(), "How many levels it has"),
        column("quantity_per_level", sa.Numeric(), "Quantity of the order on each level"),
        column("spacing", sa.Text(), "arithmetic (steps) or geometric (ratios)"),
        column("status", sa.Text(), "Where it stands", default="'ACTIVE'"),
        column("started_at", MOMENT, "When it was laid"),
        column("stopped_at", MOMENT, "When it was taken away; NULL while it stands", null=True),
        column("recorded_at", MOMENT, "When the row was first written here", default="now()"),
        sa.PrimaryKeyConstraint("id", name="pk_grid_sessions"),
        sa.ForeignKeyConstraint(["session_id"], ["trading_sessions.id"], name="fk_grid_sessions_session_id"),
        sa.ForeignKeyConstraint(["instrument_id"], ["instruments.id"], name="fk_grid_sessions_instrument_id"),
        one_of("grid_sessions", "spacing", ("arithmetic", "geometric")),
        one_of("grid_sessions", "status", ("ACTIVE", "PAUSED", "STOPPED", "FAILED")),
        check("grid_sessions", "level_count_is_two_or_more", "level_count >= 2"),
        check(
            "grid_sessions",
            "prices_are_in_order",
            positive("lower_price", "upper_price") + " AND lower_price < upper_price",
        ),
        check("grid_sessions", "quantity_is_positive", positive("quantity_per_level")),
        check("grid_sessions", "stops_after_start", "stopped_at >= started_at"),
        comment="Grids of orders laid between two prices",
    )


def create_orders() -> None:
    op.create_table(
        "accounts",
        column("id", sa.Integer(), "Number given by the database", sa.Identity(always=True)),
        column("exchange", sa.Text(), "Exchange in lower case, such as binance"),
        column("name", sa.Text(), "What people call it"),
        column("market", sa.Text(), "spot, um (USD-margined) or cm (coin-margined futures)"),
        column("recorded_at", MOMENT, "When the row was first written here", default="now()"),
        sa.PrimaryKeyConstraint("id", name="pk_accounts"),
        sa.UniqueConstraint("exchange", "name", name="uq_accounts_exchange_name"),
        one_of("accounts", "market", ("spot", "um", "cm")),
        check("accounts", "names_are_not_blank", "exchange ~ '\\S' AND name ~ '\\S'"),
        comment="Accounts at exchanges; never a key or a secret",
    )
    op.create_table(
        "balances",
        column("account_id", sa.Integer(), "Account"),
        column("asset", sa.Text(), "Asset, such as USDT"),
        column("free", sa.Numeric(), "What may be spent"),
        column("locked", sa.Numeric(), "What stands behind open orders", default="'0'"),
        column("event_at", MOMENT, "When the exchange said so"),
        column(
            "recorded_at",
            MOMENT,
            "When the row was last written here; ORM and Core set it by themselves, raw SQL sets it",
            default="now()",
        ),
        sa.PrimaryKeyConstraint("account_id", "asset", name="pk_balances"),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name="fk_balances_account_id"),
        check("balances", "amounts_are_finite", finite("free", "locked")),
        check("balances", "asset_is_not_blank", "asset ~ '\\S'"),
        comment="What each account holds of each asset",
    )
    op.create_table(
        "orders",
        column("id", sa.Uuid(), "UUIDv7 made by the application"),
        column("account_id", sa.Integer(), "Account"),
        column("instrument_id", sa.Integer(), "Instrument"),
        column("session_id", sa.Uuid(), "Run that placed it", null=True),
        column("client_order_id", sa.Text(), "Id that the client gave it", null=True),
        column("exchange_order_id", sa.Text(), "Id that the exchange gave it; NULL until told", null=True),
        column("side", sa.Text(), "BUY or SELL"),
        column("type", sa.Text(), "Type, as the exchange calls it"),
        column("time_in_force", sa.Text(), "How long it stands", null=True),
        column("position_side", sa.Text(), "Position it acts on", default="'BOTH'"),
        column("reduce_only", sa.Boolean(), "Whether it may only lessen a position", default="false"),
        column("origin", sa.Text(), "Where it came from", default="'strategy'"),
        column("status", sa.Text(), "Where it stands"),
        column("price", sa.Numeric(), "Limit price; NULL where it has none", null=True),
        column("stop_price", sa.Numeric(), "Price that triggers it; NULL where it has none", null=True),
        column("quantity", sa.Numeric(), "Quantity ordered; NULL if ordered by value", null=True),
        column("quote_quantity", sa.Numeric(), "Value ordered; NULL if ordered by quantity", null=True),
        column("filled_quantity", sa.Numeric(), "Quantity filled so far", default="'0'"),
        column("filled_quote_quantity", sa.Numeric(), "Value filled so far", default="'0'"),
        column("reject_reason", sa.Text(), "Why the exchange refused it", null=True),
        column("submitted_at", MOMENT, "When it was sent, or the exchange took it"),
        column("updated_at", MOMENT, "The exchange's time of the newest change", null=True),
        column("recorded_at", MOMENT, "When the row was first written here", default="now()"),
        sa.PrimaryKeyConstraint("id", name="pk_orders"),
        sa.UniqueConstraint("account_id", "client_order_id", name="uq_orders_account_id_client_order_id"),
        sa.UniqueConstraint(
            "account_id",
            "instrument_id",
            "exchange_order_id",
            name="uq_orders_account_id_instrument_id_exchange_order_id",
        ),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name="fk_orders_account_id"),
        sa.ForeignKeyConstraint(["instrument_id"], ["instruments.id"], name="fk_orders_instrument_id"),
        sa.ForeignKeyConstraint(["session_id"], ["trading_sessions.id"], name="fk_orders_session_id"),
        one_of("orders", "side", ("BUY", "SELL")),
        one_of(
            "orders",
            "type",
            (
                "LIMIT",
                "MARKET",
                "STOP",
                "STOP_MARKET",
                "STOP_LOSS",
                "STOP_LOSS_LIMIT",
                "TAKE_PROFIT",
                "TAKE_PROFIT_LIMIT",
                "TAKE_PROFIT_MARKET",
                "LIMIT_MAKER",
                "TRAILING_STOP_MARKET",
                "LIQUIDATION",
                "UNKNOWN",
            ),
        ),
        one_of("orders", "time_in_force", ("GTC", "IOC", "FOK", "GTX", "GTD")),
        one_of("orders", "position_side", ("BOTH", "LONG", "SHORT")),
        one_of("orders", "origin", ("strategy", "manual", "adopted", "liquidation")),
        one_of("orders", "status", ORDER_STATUSES),
        check("orders", "filled_quantities_are_not_negative", not_negative("filled_quantity", "filled_quote_quantity")),
        check("orders", "prices_are_not_negative", not_negative("price", "stop_price")),
        check("orders", "quantities_are_positive", positive("quantity", "quote_quantity")),
        check("orders", "some_order_id_is_there", "num_nonnulls(client_order_id, exchange_order_id) > 0"),
        comment="Orders as the exchange last told them; deleting one takes its fills and its history away",
    )
    op.create_index("ix_orders_instrument_id_submitted_at", "orders", ["instrument_id", "submitted_at"])
    op.create_index(
        "ix_orders_open",
        "orders",
        ["account_id", "instrument_id"],
        postgresql_where=sa.text("status IN ('PENDING_NEW', 'NEW', 'PARTIALLY_FILLED', 'PENDING_CANCEL', 'UNKNOWN')"),
    )
    op.create_index("ix_orders_session_id", "orders", ["session_id"])
    op.create_table(
        "fills",
        column("order_id", sa.Uuid(), "Order it filled"),
        column("trade_id", sa.Text(), "Id that the exchange gave the trade"),
        column("price", sa.Numeric(), "Price of the trade"),
        column("quantity", sa.Numeric(), "Quantity traded"),
        column("quote_quantity", sa.Numeric(), "Value traded; NULL where untold", null=True),
        column("fee", sa.Numeric(), "Fee paid; below zero for a rebate", null=True),
        column("fee_asset", sa.Text(), "Asset the fee was paid in", null=True),
        column("is_maker", sa.Boolean(), "Whether the order stood in the book; NULL where untold", null=True),
        column("filled_at", MOMENT, "When it was traded"),
        column("recorded_at", MOMENT, "When the row was first written here", default="now()"),
        sa.PrimaryKeyConstraint("order_id", "trade_id", name="pk_fills"),
        sa.ForeignKeyConstraint(["order_id"], ["orders.id"], name="fk_fills_order_id", ondelete="CASCADE"),
        check("fills", "fee_has_its_asset", "(fee IS NULL) = (fee_asset IS NULL)"),
        check("fills", "fee_is_finite", finite("fee")),
        check("fills", "price_is_positive", positive("price")),
        check("fills", "quantity_is_positive", positive("quantity")),
        check("fills", "quote_quantity_is_not_negative", not_negative("quote_quantity")),
        comment="Trades that filled orders",
    )
    op.create_index("ix_fills_filled_at", "fills", ["filled_at"])
    op.create_table(
        "order_history",
        column("order_id", sa.Uuid(), "Order that changed"),
        column("version", sa.Integer(), "Number of the change, from 1, without holes"),
        column("old_status", sa.Text(), "Before; NULL at first sight", null=True),
        column("new_status", sa.Text(), "Where it stood afterwards"),
        column("old_state", JSONB(), "The order before, less its id and its times; NULL at first sight", null=True),
        column("new_state", JSONB(), "The order afterwards, less its id and its times"),
        column("irregular", sa.Boolean(), "Whether an order's life cycle does not know such a change", default="false"),
        column("actor", sa.Text(), "Who changed it: helios.actor where set, else the session's user"),
        column("login", sa.Text(), "The session's user, whatever helios.actor said"),
        column("exchange_at", MOMENT, "The exchange's time of the change, where told", null=True),
        column("recorded_at", MOMENT, "When it was written", default="clock_timestamp()"),
        sa.PrimaryKeyConstraint("order_id", "version", name="pk_order_history"),
        sa.ForeignKeyConstraint(["order_id"], ["orders.id"], name="fk_order_history_order_id"),
        one_of("order_history", "old_status", ORDER_STATUSES),
        one_of("order_history", "new_status", ORDER_STATUSES),
        check("order_history", "version_is_one_or_more", "version >= 1"),
        comment="Every change of every order, written by a trigger; while it is there, its order stays",
    )
    op.create_table(
        "positions",
        column("account_id", sa.Integer(), "Account"),
        column("instrument_id", sa.Integer(), "Instrument"),
        column("position_side", sa.Text(), "BOTH, or LONG and SHORT kept apart", default="'BOTH'"),
        column("quantity", sa.Numeric(), "Bought less sold; below zero when short", default="'0'"),
        column("entry_price", sa.Numeric(), "Average price it was entered at; NULL when flat", null=True),
        column("realized_pnl", sa.Numeric(), "Profit and loss of what was closed", default="'0'"),
        column("event_at", MOMENT, "When the exchange last said so"),
        column(
            "recorded_at",
            MOMENT,
            "When the row was last written here; ORM and Core set it by themselves, raw SQL sets it",
            default="now()",
        ),
        sa.PrimaryKeyConstraint("account_id", "instrument_id", "position_side", name="pk_positions"),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name="fk_positions_account_id"),
        sa.ForeignKeyConstraint(["instrument_id"], ["instruments.id"], name="fk_positions_instrument_id"),
        one_of("positions", "position_side", ("BOTH", "LONG", "SHORT")),
        check("positions", "amounts_are_finite", finite("quantity", "realized_pnl")),
        check("positions", "entry_price_is_not_negative", not_negative("entry_price")),
        comment="What each account holds of each instrument: the sum of its fills",
    )
    op.create_table(
        "grid_levels",
        column("grid_session_id", sa.Uuid(), "Grid"),
        column("level", sa.Integer(), "Number of the level, from 0 at the lowest price"),
        column("price", sa.Numeric(), "Price of the level"),
        column("side", sa.Text(), "BUY or SELL"),
        column("state", sa.Text(), "Whether an order stands on it", default="'IDLE'"),
        column("order_id", sa.Uuid(), "Order that stands on it now", null=True),
        column("recorded_at", MOMENT, "When the row was first written here", default="now()"),
        sa.PrimaryKeyConstraint("grid_session_id", "level", name="pk_grid_levels"),
        sa.UniqueConstraint("order_id", name="uq_grid_levels_order_id"),
        sa.ForeignKeyConstraint(
            ["grid_session_id"], ["grid_sessions.id"], name="fk_grid_levels_grid_session_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["order_id"], ["orders.id"], name="fk_grid_levels_order_id", ondelete="SET NULL"),
        one_of("grid_levels", "side", ("BUY", "SELL")),
        one_of("grid_levels", "state", ("IDLE", "OPEN", "FILLED")),
        check("grid_levels", "level_is_not_negative", "level >= 0"),
        check("grid_levels", "price_is_positive", positive("price")),
        comment="Levels of the grids, and the order that stands on each now",
    )


def create_partitions() -> None:
    op.execute("""
        CREATE FUNCTION leave_to_owner(whose regclass) RETURNS void
        LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
        DECLARE
            grantee oid;
        BEGIN
            -- Default privileges reach partitions too. A right on one would pass by the rights and triggers of klines.
            FOR grantee IN
                SELECT DISTINCT entry.grantee FROM pg_class, aclexplode(relacl) AS entry
                WHERE oid = whose AND entry.grantee <> relowner
            LOOP
                EXECUTE format('REVOKE ALL ON %s FROM %s', whose,
                               CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END);
            END LOOP;
        END
        $$
    """)
    op.execute("COMMENT ON FUNCTION leave_to_owner(regclass) IS 'Takes every right on a table from all but its owner'")
    for interval in INTERVALS:
        part = f"klines_{interval}"
        op.execute(
            f"CREATE TABLE {part} PARTITION OF klines FOR VALUES IN ('{interval}') PARTITION BY RANGE (open_time)"
        )
        op.execute(f"COMMENT ON TABLE {part} IS 'Candles of {interval}; partitioned by UTC year'")
    known = "', '".join(INTERVALS)
    op.execute(f"""
        CREATE FUNCTION make_kline_partition(for_interval text, for_year integer) RETURNS boolean
        LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
        DECLARE
            parent CONSTANT text := format('klines_%s', for_interval);
            leaf CONSTANT text := format('klines_%s_%s', for_interval, for_year);
            -- With its schema, so that a temporary table of the caller's is not mistaken for it.
            found_as CONSTANT text := format('%I.%I', current_schema(), leaf);
        BEGIN
            IF (for_interval IN ('{known}')) IS NOT TRUE THEN
                RAISE invalid_parameter_value USING
                    MESSAGE = format('%L is not an interval of klines', for_interval),
                    HINT = 'Choose one of {", ".join(INTERVALS)}.';
            END IF;
            IF (for_year BETWEEN 1970 AND 2200) IS NOT TRUE THEN
                RAISE invalid_parameter_value USING
                    MESSAGE = format('%L is not a year of klines', for_year),
                    HINT = 'Choose one from 1970 to 2200.';
            END IF;
            IF pg_partition_root(to_regclass(found_as)) = 'klines'::regclass THEN
                RETURN false;
            END IF;
            -- One lock for all partitions: with one for each, two sessions that want the same two in different
            -- order would wait for each other. It is held until the caller commits, so commit soon.
            PERFORM pg_advisory_xact_lock(hashtext('make_kline_partition'), 'klines'::regclass::oid::integer);
            -- The lock that ATTACH takes anyway. Taken now, it makes the session see what others committed while it
            -- waited: an advisory lock alone leaves it with what it looked up before.
            EXECUTE format('LOCK TABLE ONLY %I IN SHARE UPDATE EXCLUSIVE MODE', parent);
            IF pg_partition_root(to_regclass(found_as)) = 'klines'::regclass THEN
                RETURN false;
            END IF;
            IF to_regclass(found_as) IS NOT NULL THEN
                RAISE duplicate_table USING
                    MESSAGE = format('%s exists, but is not a partition of klines: attach it or drop it', leaf);
            END IF;
            -- Made apart and then attached, which passes open readers and writers; PARTITION OF waits for them.
            EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL EXCLUDING COMMENTS)', leaf, parent);
            EXECUTE format('COMMENT ON TABLE %I IS %L', leaf, format('Candles of %s in %s', for_interval, for_year));
            PERFORM leave_to_owner(leaf::regclass);
            EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', parent, leaf,
                           make_timestamptz(for_year, 1, 1, 0, 0, 0, 'UTC'),
                           make_timestamptz(for_year + 1, 1, 1, 0, 0, 0, 'UTC'));
            RETURN true;
        END
        $$
    """)
    op.execute(
        "COMMENT ON FUNCTION make_kline_partition(text, integer) IS "
        "'Makes the partition of klines for an interval and a UTC year; false where it is there already'"
    )
    op.execute(f"""
        DO $$
        BEGIN
            PERFORM leave_to_owner(inhrelid::regclass) FROM pg_inherits WHERE inhparent = 'klines'::regclass;
            PERFORM make_kline_partition(of_interval, of_year)
            FROM unnest(ARRAY['{known}']) AS of_interval, generate_series({FIRST_YEAR}, {LAST_YEAR}) AS of_year;
        END
        $$
    """)


def create_history() -> None:
    op.execute("""
        CREATE FUNCTION order_transition_is_known(old_status text, new_status text) RETURNS boolean
        LANGUAGE sql IMMUTABLE SET search_path FROM CURRENT AS $$
            SELECT CASE old_status
                WHEN 'PENDING_NEW' THEN new_status IN (
                    'NEW', 'PARTIALLY_FILLED', 'FILLED', 'PENDING_CANCEL', 'CANCELED', 'REJECTED', 'EXPIRED',
                    'EXPIRED_IN_MATCH', 'UNKNOWN')
                WHEN 'NEW' THEN new_status IN (
                    'PARTIALLY_FILLED', 'FILLED', 'PENDING_CANCEL', 'CANCELED', 'EXPIRED', 'EXPIRED_IN_MATCH',
                    'UNKNOWN')
                WHEN 'PARTIALLY_FILLED' THEN new_status IN (
                    'FILLED', 'PENDING_CANCEL', 'CANCELED', 'EXPIRED', 'EXPIRED_IN_MATCH', 'UNKNOWN')
                WHEN 'PENDING_CANCEL' THEN new_status IN (
                    'NEW', 'PARTIALLY_FILLED', 'FILLED', 'CANCELED', 'EXPIRED', 'EXPIRED_IN_MATCH', 'UNKNOWN')
                WHEN 'UNKNOWN' THEN new_status IN (
                    'NEW', 'PARTIALLY_FILLED', 'FILLED', 'PENDING_CANCEL', 'CANCELED', 'REJECTED', 'EXPIRED',
                    'EXPIRED_IN_MATCH')
                ELSE false
            END
        $$
    """)
    op.execute(
        "COMMENT ON FUNCTION order_transition_is_known(text, text) IS "
        "'Whether the life cycle of an order knows this change of status'"
    )
    op.execute("""
        CREATE FUNCTION numbers_as_text(state jsonb) RETURNS jsonb
        LANGUAGE sql IMMUTABLE SET search_path FROM CURRENT AS $$
            SELECT jsonb_object_agg(key, CASE
                WHEN jsonb_typeof(value) = 'number' AND key NOT LIKE '%id' THEN to_jsonb(value #>> '{}')
                ELSE value
            END) FROM jsonb_each(state)
        $$
    """)
    op.execute(
        "COMMENT ON FUNCTION numbers_as_text(jsonb) IS "
        "'Writes the numbers of a state, ids apart, as text: readers of JSON would round them'"
    )
    op.execute("""
        CREATE FUNCTION write_order_history() RETURNS trigger
        LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT SET timezone TO 'UTC' AS $$
        DECLARE
            untold CONSTANT text[] := ARRAY['id', 'updated_at', 'recorded_at'];
            state_before jsonb;
            state_after CONSTANT jsonb := to_jsonb(NEW) - untold;
            status_before text;
            irregularity text;
        BEGIN
            IF TG_OP = 'UPDATE' THEN
                state_before := to_jsonb(OLD) - untold;
                IF state_before = state_after THEN
                    RETURN NULL;
                END IF;
                status_before := OLD.status;
                irregularity := CASE
                    WHEN OLD.status <> NEW.status AND NOT order_transition_is_known(OLD.status, NEW.status) THEN
                        format('Order %s went from %s to %s, which its life cycle does not know',
                               NEW.id, OLD.status, NEW.status)
                    WHEN OLD.status = NEW.status AND OLD.filled_quantity <> NEW.filled_quantity
                         AND NEW.status IN ('FILLED', 'CANCELED', 'REJECTED', 'EXPIRED', 'EXPIRED_IN_MATCH') THEN
                        format('Order %s is %s, but its filled quantity changed', NEW.id, NEW.status)
                END;
            END IF;
            -- The statement that fired this holds the order's row, so nobody else counts at the same time.
            INSERT INTO order_history (order_id, version, old_status, new_status, old_state, new_state,
                                       irregular, actor, login, exchange_at)
            SELECT NEW.id, coalesce(max(version), 0) + 1, status_before, NEW.status,
                   numbers_as_text(state_before), numbers_as_text(state_after), irregularity IS NOT NULL,
                   coalesce(nullif(current_setting('helios.actor', true), ''), session_user), session_user,
                   NEW.updated_at
            FROM order_history WHERE order_id = NEW.id;
            IF irregularity IS NOT NULL THEN
                INSERT INTO data_quality_metrics (instrument_id, subject, source, measured_at, alert_level, reasons)
                VALUES (NEW.instrument_id, 'orders', 'order_history', clock_timestamp(), 'warning',
                        jsonb_build_array(irregularity));
            END IF;
            RETURN NULL;
        END
        $$
    """)
    op.execute(
        "COMMENT ON FUNCTION write_order_history() IS "
        "'Writes each change of an order to order_history; an irregular one raises a quality alert too'"
    )
    op.execute("""
        CREATE FUNCTION join_orders(duplicate uuid, kept uuid) RETURNS void
        LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
        BEGIN
            -- What is written of the duplicate moves; nobody loses a line of history by calling this.
            PERFORM FROM orders AS one, orders AS other
            WHERE one.id = duplicate AND other.id = kept AND one.id <> other.id AND other.exchange_order_id IS NULL
              AND (one.account_id, one.instrument_id) = (other.account_id, other.instrument_id)
            FOR UPDATE;
            IF NOT FOUND THEN
                RAISE invalid_parameter_value USING
                    MESSAGE = format('orders %s and %s are not two rows of one order', duplicate, kept),
                    HINT = 'Join rows of one account and instrument, where the kept one has no exchange_order_id yet.';
            END IF;
            UPDATE order_history SET order_id = kept,
                version = version + (SELECT coalesce(max(version), 0) FROM order_history WHERE order_id = kept)
            WHERE order_id = duplicate;
            DELETE FROM orders WHERE id = duplicate;
        END
        $$
    """)
    op.execute(
        "COMMENT ON FUNCTION join_orders(uuid, uuid) IS "
        "'Makes one of two rows of an order that was told by its trades first; history moves, fills are the caller''s'"
    )
    op.execute("""
        CREATE TRIGGER write_order_history AFTER INSERT OR UPDATE ON orders
        FOR EACH ROW EXECUTE FUNCTION write_order_history()
    """)
