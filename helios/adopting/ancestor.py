"""What the ancestor's tables hold, under which names, and what becomes of each column.

Several versions of it are about, so that each column is looked for under all the names it has had. A column that stands
here neither as copied nor as left behind is reported as unknown.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from helios.models import (
    Base,
    DataQualityMetric,
    Interval,
    Kline,
    Order,
    OrderHistory,
    Position,
    SessionStatus,
    Ticker,
    TradingSession,
)

MONDAY = "1970-01-05T00:00Z"  # where weeks are counted from


class Kind(StrEnum):
    """What a value is, whatever type its column has in the ancestor's table."""

    NUMBER = "number"
    WHOLE = "whole number"
    MOMENT = "moment"
    TEXT = "text"
    CHOICE = "choice"
    JSON = "JSON"
    ID = "UUID"


@dataclass(frozen=True, kw_only=True)
class Column:
    """A value to look for: under these names, the first that is there; `kind` is told where no model tells it."""

    names: tuple[str, ...]
    kind: Kind | None = None
    words: Mapping[str, str] = field(default_factory=dict)  # the ancestor's words for a choice, in capitals
    otherwise: str | None = None  # SQL of what stands in for no value, or for a word nobody knows


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Rows that Helios does not take, by a condition on what the row says, and why."""

    when: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Heir:
    """A table of the ancestor's, and the model that takes its rows.

    `derived` are columns made of the others; `needed` are values without which it is somebody else's table of that
    name; `joined` finds what is there already, as `k`, of a row `j` with its instrument `i` and account `a`, and names
    the tables in braces.
    """

    table: str
    model: type[Base]
    columns: Mapping[str, Column]
    needed: tuple[str, ...]
    joined: str
    derived: Mapping[str, str] = field(default_factory=dict)
    refusals: tuple[Refusal, ...] = ()
    left: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    compared: tuple[str, ...] | None = None  # None: all that is copied, but for the id


SYMBOL = Column(names=("symbol", "pair", "trading_pair"), kind=Kind.TEXT)
NO_SYMBOL = Refusal(when="symbol !~ '^\\S{1,64}$'", why="symbol is blank, too long, or holds white space")
MOMENTS = ("timestamp", "ts", "time", "event_time", "updated_at")
WRITTEN = "when the old row was written is not when Helios wrote its own"
STATUSES = {
    "PENDING": "PENDING_NEW",
    "SUBMITTED": "PENDING_NEW",
    "OPEN": "NEW",
    "PARTIAL": "PARTIALLY_FILLED",
    "CANCELLED": "CANCELED",
}
SESSION_STATUSES = {
    "COMPLETED": SessionStatus.STOPPED,
    "CLOSED": SessionStatus.STOPPED,
    "ERROR": SessionStatus.FAILED,
    "RUNNING": SessionStatus.ACTIVE,
}

TICKERS = Heir(
    table="current_prices",
    model=Ticker,
    needed=("symbol", "last_price", "event_at"),
    joined="{tickers} AS k ON k.instrument_id = i.id",
    columns={
        "symbol": SYMBOL,
        "last_price": Column(names=("price", "last_price", "current_price")),
        "bid_price": Column(names=("bid_price", "bid")),
        "bid_quantity": Column(names=("bid_quantity", "bid_qty")),
        "ask_price": Column(names=("ask_price", "ask")),
        "ask_quantity": Column(names=("ask_quantity", "ask_qty")),
        "open_price_24h": Column(names=("open_24h", "open_price_24h")),
        "high_price_24h": Column(names=("high_24h", "high_price_24h")),
        "low_price_24h": Column(names=("low_24h", "low_price_24h")),
        "price_change_24h": Column(names=("price_change_24h", "change_24h", "price_change")),
        "price_change_percent_24h": Column(
            names=("price_change_percent_24h", "change_percent_24h", "price_change_percent")
        ),
        "volume_24h": Column(names=("volume_24h", "volume")),
        "quote_volume_24h": Column(names=("quote_volume_24h", "quote_volume")),
        "trades_24h": Column(names=("trades_24h", "trades_count", "count")),
        "event_at": Column(names=MOMENTS),
    },
    derived={
        "priced_at": "event_at",
        "quoted_at": "CASE WHEN num_nonnulls(bid_price, ask_price) > 0 THEN event_at END",
    },
    refusals=(NO_SYMBOL,),
    left={"id": "Helios keys tickers by their instrument", "updated_at": WRITTEN, "created_at": WRITTEN},
)
SESSIONS = Heir(
    table="trading_sessions",
    model=TradingSession,
    needed=("id", "strategy", "started_at"),
    joined="{trading_sessions} AS k ON k.id = j.id",
    columns={
        "id": Column(names=("session_id", "id", "uuid")),
        "name": Column(names=("session_name", "name"), otherwise="'adopted'"),
        "strategy": Column(names=("strategy_name", "strategy")),
        "mode": Column(names=("mode", "trading_mode"), otherwise="CAST(:mode AS text)"),
        "status": Column(names=("status",), words=SESSION_STATUSES),
        "started_at": Column(names=("start_time", "started_at")),
        "stopped_at": Column(names=("end_time", "ended_at", "stopped_at")),
        "note": Column(names=("notes", "note")),
        "config": Column(names=("config_data", "config", "parameters"), kind=Kind.JSON),
        "symbols": Column(names=("symbols", "symbol"), kind=Kind.JSON),
        "performance": Column(names=("performance_metrics", "performance"), kind=Kind.JSON),
    },
    derived={
        "parameters": """
            CASE WHEN config IS NULL THEN '{}' WHEN jsonb_typeof(config) = 'object' THEN config
                 ELSE jsonb_build_object('config', config) END
            || jsonb_build_object('adopted', jsonb_strip_nulls(jsonb_build_object(
                'symbols', symbols, 'performance', performance)))
        """,
    },
    refusals=(
        Refusal(
            when="mode IS NULL", why="nothing tells whether it traded with money: say --mode live, paper or backtest"
        ),
    ),
    left={"created_at": WRITTEN, "updated_at": WRITTEN},
    notes=("symbols and performance metrics go into parameters, under 'adopted'",),
)
ORDERS = Heir(
    table="orders",
    model=Order,
    needed=("symbol", "client_order_id", "side", "type", "status", "submitted_at"),
    joined="""LATERAL (
        SELECT * FROM {orders} WHERE account_id = a.id AND client_order_id = j.client_order_id
        UNION ALL
        SELECT * FROM {orders}
        WHERE account_id = a.id AND instrument_id = i.id AND exchange_order_id = j.exchange_order_id
        LIMIT 1) AS k ON true""",
    columns={
        "symbol": SYMBOL,
        "client_order_id": Column(names=("client_order_id", "order_id")),
        "exchange_id": Column(names=("exchange_order_id", "binance_order_id"), kind=Kind.TEXT),
        "side": Column(names=("side",)),
        "type": Column(
            names=("order_type", "type"),
            words={"STOP_LIMIT": "STOP_LOSS_LIMIT", "STOP LIMIT": "STOP_LOSS_LIMIT"},
            otherwise="'UNKNOWN'",
        ),
        "time_in_force": Column(names=("time_in_force",)),
        "status": Column(names=("status",), words=STATUSES, otherwise="'UNKNOWN'"),
        "price": Column(names=("price", "limit_price")),
        "stop_price": Column(names=("stop_price",)),
        "quantity": Column(names=("quantity", "qty", "amount")),
        "filled_quantity": Column(names=("filled_quantity", "executed_qty", "filled"), otherwise="0"),
        "average_price": Column(
            names=("average_fill_price", "avg_fill_price", "average_price", "avg_price"), kind=Kind.NUMBER
        ),
        "submitted_at": Column(names=("created_at", "submitted_at", "timestamp")),
        "updated_at": Column(names=("updated_at",)),
    },
    derived={
        # a UUIDv7 of the moment it was placed, the same whenever it is adopted
        "id": """CASE WHEN submitted_at BETWEEN '1970-01-01T00:00Z' AND '2200-01-01T00:00Z' THEN CAST(
            lpad(to_hex(CAST(trunc(extract(epoch FROM submitted_at) * 1000) AS bigint)), 12, '0') || '7'
            || substr(md5(client_order_id), 1, 3) || '8' || substr(md5(client_order_id), 4, 15) AS uuid) END""",
        "exchange_order_id": "nullif(exchange_id, '')",
        "filled_quote_quantity": "coalesce(filled_quantity * average_price, 0)",
        "origin": "'adopted'",
    },
    refusals=(
        NO_SYMBOL,
        Refusal(
            when="(submitted_at BETWEEN '1970-01-01T00:00Z' AND '2200-01-01T00:00Z') IS FALSE",
            why="submitted_at is no plausible time",
        ),
    ),
    left={
        "id": "Helios gives orders ids of its own",
        "commission": "fees belong to fills: read the account's trades",
        "commission_asset": "fees belong to fills: read the account's trades",
        "notes": "orders have no notes",
    },
    notes=(
        "fills were not kept: read the account's trades through the feed, which makes fills and positions",
        "statuses and types that nobody knows are kept as UNKNOWN",
        "the value filled is the quantity filled at the average price, as far as that was rounded",
    ),
)
HISTORY = Heir(
    table="order_history",
    model=OrderHistory,
    needed=("of_order", "new_status", "exchange_at"),
    joined="""LATERAL (
        SELECT line.* FROM {orders} AS o JOIN {order_history} AS line ON line.order_id = o.id
        WHERE o.account_id = a.id AND o.client_order_id = j.of_order
        ORDER BY line.new_status = j.new_status DESC, line.version LIMIT 1) AS k ON true""",
    columns={
        "of_order": Column(names=("order_id", "client_order_id"), kind=Kind.TEXT),
        "new_status": Column(names=("status", "new_status"), words=STATUSES),
        "exchange_at": Column(names=("changed_at", "timestamp", "created_at")),
        "number": Column(names=("id",), kind=Kind.NUMBER),
    },
    left={
        "old_status": "it is the status before",
        "details": "history tells the order's state",
    },
    notes=("each order goes through its states again, which writes its history",),
    compared=("new_status",),
)
POSITIONS = Heir(
    table="positions",
    model=Position,
    needed=("symbol", "quantity"),
    joined="{positions} AS k ON false",
    columns={
        "symbol": SYMBOL,
        "side": Column(names=("side", "position_side"), kind=Kind.TEXT),
        "quantity": Column(names=("quantity", "qty", "size")),
    },
    refusals=(
        Refusal(when="quantity = 0 OR upper(side) = 'FLAT'", why="it is flat: there is nothing to hold"),
        Refusal(
            when="true",
            why="a position is the sum of its fills, and none were kept: read the account's trades through the feed, "
            "which makes both",
        ),
    ),
    left=dict.fromkeys(
        (
            "id",
            "entry_price",
            "current_price",
            "realized_pnl",
            "unrealized_pnl",
            "total_commission",
            "opened_at",
            "closed_at",
            "updated_at",
            "created_at",
        ),
        "positions are derived from fills",
    ),
)
METRICS = Heir(
    table="data_quality_metrics",
    model=DataQualityMetric,
    needed=("metric_type", "measured_at"),
    joined="{data_quality_metrics} AS k ON k.source = j.source AND k.measured_at = j.measured_at",
    columns={
        "number": Column(names=("id",), kind=Kind.TEXT),
        "symbol": SYMBOL,
        "measured_at": Column(names=MOMENTS),
        "metric_type": Column(names=("metric_type", "metric_name", "metric"), kind=Kind.TEXT),
        "metric_value": Column(names=("metric_value", "value"), kind=Kind.TEXT),
        "metric_data": Column(names=("metric_data", "details", "data"), kind=Kind.JSON),
        "score": Column(names=("quality_score", "score")),
        "alert_level": Column(
            names=("alert_level", "level"),
            words={"INFO": "ok", "ERROR": "critical"},
        ),
    },
    derived={
        "subject": """CASE
            WHEN metric_type ~* 'ticker|price|spread|bid|ask' THEN 'ticker'
            WHEN metric_type ~* 'kline|ohlc|candle|gap|completeness|volume' THEN 'klines'
            WHEN metric_type ~* 'position' THEN 'positions'
            WHEN metric_type ~* 'order|fill|trade' THEN 'orders' END""",
        "source": "'adopted data_quality_metrics ' || coalesce(number, md5(CAST(raw AS text)))",
        "reasons": """jsonb_path_query_array(jsonb_build_array(
            metric_type || coalesce(' = ' || metric_value, ''), CAST(metric_data AS text)), '$[*] ? (@ != null)')""",
    },
    refusals=(
        Refusal(when="symbol !~ '^\\S{1,64}$' AND symbol <> ''", why=NO_SYMBOL.why),
        Refusal(when="subject IS NULL", why="metric_type is about none of ticker, klines, orders and positions"),
    ),
    left={"created_at": WRITTEN, "updated_at": WRITTEN},
    notes=("metric, value and data become the reasons; info is ok, error is critical",),
)


def candles(table: str, interval: Interval) -> Heir:
    """Tell what a table of candles of one interval holds."""
    return Heir(
        table=table,
        model=Kline,
        needed=("symbol", "open_time", "open", "high", "low", "close", "volume"),
        joined=f"""{{klines}} AS k
            ON k.instrument_id = i.id AND k.interval = '{interval}' AND k.open_time = j.open_time""",
        columns={
            "symbol": SYMBOL,
            "open_time": Column(names=("open_time", "timestamp", "ts", "time", "bucket")),
            **{name: Column(names=(f"{name}_price", name)) for name in ("open", "high", "low", "close")},
            "volume": Column(names=("volume", "base_volume")),
            "quote_volume": Column(names=("quote_volume", "quote_asset_volume", "volume_usd")),
            "trades": Column(names=("trades_count", "trade_count", "number_of_trades", "num_trades", "trades")),
            "taker_buy_volume": Column(names=("taker_buy_volume", "taker_buy_base_volume")),
            "taker_buy_quote_volume": Column(names=("taker_buy_quote_volume",)),
            "written_at": Column(names=("created_at",), kind=Kind.MOMENT),
        },
        derived={"interval": f"'{interval}'"},
        refusals=(NO_SYMBOL, *about_time(interval)),
        left={
            "id": "Helios keys candles by instrument, interval and open time",
            "close_time": "it follows from open time and interval",
            "updated_at": WRITTEN,
        },
    )


def about_time(interval: Interval) -> tuple[Refusal, ...]:
    """Tell which moments begin no candle of an interval, or one that had not ended when it was written.

    The ancestor read the newest candles again and again, so that each was written anew once it had ended: all but the
    newest of a series.
    """
    length = interval.length
    if length is None:
        off = "date_trunc('month', open_time AT TIME ZONE 'UTC') <> open_time AT TIME ZONE 'UTC'"
        ends = "((open_time AT TIME ZONE 'UTC' + interval '1 month') AT TIME ZONE 'UTC')"
    else:
        seconds = int(length.total_seconds())
        step = 86_400 if interval is Interval.D3 else seconds  # nobody says on which days periods of three begin
        off = f"date_bin(make_interval(secs => {step}), open_time, '{MONDAY}') <> open_time"
        ends = f"(open_time + make_interval(secs => {seconds}))"
    return (
        Refusal(
            when="open_time < '2000-01-01T00:00Z' OR open_time >= '2200-01-01T00:00Z'",
            why="open_time is not between 2000 and 2199",
        ),
        Refusal(when=off, why=f"open_time is where no candle of {interval} begins"),
        Refusal(when=f"{ends} > now()", why="its interval is still running"),
        Refusal(
            when=f"open_time = newest AND written_at < {ends}",
            why="it is the newest of its series, and was written before it ended",
        ),
    )


# in the order in which they are copied: what others refer to comes first
HEIRS = (TICKERS, SESSIONS, ORDERS, HISTORY, POSITIONS, METRICS)


def heir_of(table: str) -> Heir | None:
    """Find what is known of a table by its name."""
    if table.startswith("ohlcv_"):
        word = "1mo" if table == "ohlcv_1M" else table.removeprefix("ohlcv_")
        return candles(table, Interval(word)) if word in set(Interval) else None
    return next((heir for heir in HEIRS if heir.table == table), None)
