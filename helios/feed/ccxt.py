"""ccxt's unified dictionaries: market, ticker, candle, order, trade, balance.

Structures as in ccxt's manual. ccxt gives numbers as floats; each is taken by its shortest text, which is what the
exchange wrote wherever that has 15 digits or fewer. Whoever needs more gives ccxt strings (`exchange.number = str`).
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from helios.errors import InputError
from helios.feed.binance_account import side_of, time_in_force_of
from helios.feed.binance_market import interval_named
from helios.feed.fields import Fields, fee_of
from helios.feed.reports import (
    BalanceReport,
    FillReport,
    Ignored,
    InstrumentReport,
    KlineReport,
    OrderReport,
    Report,
    TickerReport,
)
from helios.models import InstrumentStatus, Interval, OrderStatus, OrderType, TimeInForce

STATUSES = {
    "open": OrderStatus.NEW,
    "closed": OrderStatus.FILLED,
    "canceled": OrderStatus.CANCELED,
    "canceling": OrderStatus.PENDING_CANCEL,
    "expired": OrderStatus.EXPIRED,
    "rejected": OrderStatus.REJECTED,
}
# ccxt's words for types that Binance calls otherwise.
TYPES = {"STOP_LIMIT": OrderType.STOP, "STOP_LOSS_MARKET": OrderType.STOP_LOSS}
# What each structure has, in one way or another; the first that fits counts.
STRUCTURES = (
    ("market", ({"base", "quote", "precision"},)),
    ("trade", ({"takerOrMaker"},)),
    ("ticker", ({"bid", "ask", "last"},)),
    ("order", ({"clientOrderId"}, {"remaining"})),
)
CANDLE = ("open", "high", "low", "close", "volume")


def exchange_symbol(unified: str) -> str:
    """Write a unified symbol as Binance does: BTC/USDT and BTC/USDT:USDT are BTCUSDT, BTC/USD:BTC is BTCUSD_PERP."""
    pair, _, settlement = unified.partition(":")
    base, slash, quote = pair.partition("/")
    if not slash:
        return unified
    settled_in, _, delivery = settlement.partition("-")
    if delivery:
        return f"{base}{quote}_{delivery}"
    return f"{base}{quote}_PERP" if settled_in and settled_in == base else f"{base}{quote}"


def symbol_of(message: Fields, symbols: Mapping[str, str]) -> str:
    """Find the exchange's own symbol: as given, else as the raw message says, else by Binance's rule."""
    unified = message.text("symbol")
    if unified in symbols:
        return symbols[unified]
    raw = message.get("info")
    told = raw.get("symbol") or raw.get("s") if isinstance(raw, Mapping) else None
    return told if isinstance(told, str) and told.strip() else exchange_symbol(unified)


def recognise(message: Mapping[str, Any]) -> str | None:
    """Name which of ccxt's structures a dictionary is; None where it is none of them."""
    if "info" not in message:
        return None
    if isinstance(message.get("free"), Mapping) and isinstance(message.get("used"), Mapping):
        return "balance"
    return next((kind for kind, names in STRUCTURES if any(each <= message.keys() for each in names)), None)


def read(message: Mapping[str, Any], received_at: datetime, symbols: Mapping[str, str]) -> list[Report]:
    """Read a dictionary that `recognise` knows."""
    kind = recognise(message)
    fields = Fields(f"ccxt's {kind}", message)
    match kind:
        case "market":
            return [market(fields)]
        case "ticker":
            return [ticker(fields, received_at, symbols)]
        case "order":
            return [order(fields, received_at, symbols)]
        case "trade":
            return [trade(fields, symbols)]
        case _:
            return [*balance(fields, received_at)]


def market(message: Fields) -> InstrumentReport:
    """Read a market; `precision` counts as the size of a step, as ccxt's Binance has it (TICK_SIZE)."""
    precision = message.part("precision")
    limits = message.get("limits") or {}
    cost = Fields(message.kind, limits.get("cost") or {} if isinstance(limits, Mapping) else {})
    active = message.flag_or_none("active")
    status = {True: InstrumentStatus.TRADING, False: InstrumentStatus.HALT, None: InstrumentStatus.UNKNOWN}[active]
    return InstrumentReport(
        symbol=message.text("id"),
        base_asset=message.text_or_none("base"),
        quote_asset=message.text_or_none("quote"),
        tick_size=precision.nonzero("price"),
        step_size=precision.nonzero("amount"),
        min_notional=cost.number_or_none("min"),
        status=status,
    )


def ticker(message: Fields, received_at: datetime, symbols: Mapping[str, str]) -> TickerReport:
    """Read a ticker."""
    told_at = message.moment_or_none("timestamp") or received_at
    bid, ask = message.number_or_none("bid"), message.number_or_none("ask")
    last = message.number_or_none("last", "close")
    if bid is None and ask is None and last is None:
        raise InputError(f"{message.kind} of {message.text('symbol')} tells neither 'last' nor 'bid' nor 'ask'")
    return TickerReport(
        symbol=symbol_of(message, symbols),
        priced_at=None if last is None else told_at,
        last_price=last,
        open_price_24h=message.number_or_none("open"),
        high_price_24h=message.number_or_none("high"),
        low_price_24h=message.number_or_none("low"),
        price_change_24h=message.number_or_none("change"),
        price_change_percent_24h=message.number_or_none("percentage"),
        volume_24h=message.number_or_none("baseVolume"),
        quote_volume_24h=message.number_or_none("quoteVolume"),
        quoted_at=None if bid is None and ask is None else told_at,
        bid_price=bid,
        bid_quantity=message.number_or_none("bidVolume"),
        ask_price=ask,
        ask_quantity=message.number_or_none("askVolume"),
    )


def candles(
    rows: Sequence[Sequence[Any]], symbol: str, interval: str | Interval, received_at: datetime
) -> list[KlineReport]:
    """Read rows of fetch_ohlcv: arrays of six values; a candle that closes after `received_at` still runs."""
    known = interval_named(interval)
    return [candle(Fields("ccxt's candle", row), symbol, known, received_at) for row in rows]


def candle(row: Fields, symbol: str, interval: Interval, received_at: datetime) -> KlineReport:
    """Read one row of fetch_ohlcv."""
    open_time = row.moment(0)
    # A month is 31 days at most: one that was just closed waits for the next message.
    closed = open_time + (interval.length or timedelta(days=31)) <= received_at
    values: dict[str, Any] = {name: row.number(place) for place, name in enumerate(CANDLE, start=1)}
    return KlineReport(symbol=symbol, interval=interval, open_time=open_time, closed=closed, **values)


def order(message: Fields, received_at: datetime, symbols: Mapping[str, str]) -> OrderReport:
    """Read an order; ccxt's `open` is PARTIALLY_FILLED once something was filled, its `closed` is FILLED."""
    filled = message.number_or_none("filled") or Decimal(0)
    kind = type_of(message)
    submitted_at = message.moment_or_none("timestamp")
    updated_at = message.moment_or_none("lastUpdateTimestamp", "lastTradeTimestamp") or submitted_at or received_at
    status = status_of(message, filled)
    return OrderReport(
        symbol=symbol_of(message, symbols),
        exchange_order_id=message.text_or_none("id"),
        client_order_id=message.text_or_none("clientOrderId"),
        side=side_of(message, "side"),
        type=kind,
        time_in_force=post_only(message) or time_in_force_of(message, "timeInForce"),
        reduce_only=bool(message.flag_or_none("reduceOnly")),
        status=status,
        # ccxt puts the average where a market order has no price.
        price=None if kind is OrderType.MARKET else message.nonzero("price"),
        stop_price=message.nonzero("triggerPrice", "stopPrice"),
        quantity=message.nonzero("amount"),
        filled_quantity=filled,
        filled_quote_quantity=message.number_or_none("cost") or Decimal(0),
        submitted_at=submitted_at or updated_at,
        updated_at=None if status is None else updated_at,
        fills=tuple(fill_of(each) for each in message.parts("trades")),
    )


def trade(message: Fields, symbols: Mapping[str, str]) -> OrderReport | Ignored:
    """Read a trade of one's own; one of the public has no order."""
    exchange_order_id = message.text_or_none("order")
    if exchange_order_id is None:
        return Ignored(kind=message.kind, reason="trades of the public are not kept")
    fill = fill_of(message)
    return OrderReport(
        symbol=symbol_of(message, symbols),
        exchange_order_id=exchange_order_id,
        client_order_id=None,
        side=side_of(message, "side"),
        submitted_at=fill.filled_at,
        fills=(fill,),
    )


def fill_of(message: Fields) -> FillReport:
    """Read what a trade filled; of several fees the first is kept."""
    fees = message.parts("fees")
    told = message.get("fee")
    first = Fields(message.kind, told) if isinstance(told, Mapping) else (fees[0] if fees else Fields(message.kind, {}))
    fee, fee_asset = fee_of(first, "cost", "currency")
    role = message.text_or_none("takerOrMaker")
    return FillReport(
        trade_id=message.text("id"),
        price=message.number("price"),
        quantity=message.number("amount"),
        quote_quantity=message.number_or_none("cost"),
        fee=fee,
        fee_asset=fee_asset,
        is_maker=None if role is None else role == "maker",
        filled_at=message.moment("timestamp"),
    )


def balance(message: Fields, received_at: datetime) -> list[BalanceReport]:
    """Read a balance: its maps `free` and `used`, in which an untold amount is zero."""
    told_at = message.moment_or_none("timestamp") or received_at
    free, used = message.part("free"), message.part("used")
    assets = sorted({*free.message, *used.message})
    return [
        BalanceReport(
            asset=asset,
            free=free.number_or_none(asset) or Decimal(0),
            locked=used.number_or_none(asset) or Decimal(0),
            event_at=told_at,
        )
        for asset in assets
    ]


def status_of(message: Fields, filled: Decimal) -> OrderStatus | None:
    """Read the status; None where it is untold, UNKNOWN where Helios does not know the word."""
    text = message.text_or_none("status")
    if text is None:
        return None
    status = STATUSES.get(text.lower(), OrderStatus.UNKNOWN)
    return OrderStatus.PARTIALLY_FILLED if status is OrderStatus.NEW and filled else status


def type_of(message: Fields) -> OrderType:
    """Read the type; UNKNOWN where it is untold or Helios does not know the word."""
    text = (message.text_or_none("type") or "").upper()
    return TYPES.get(text) or message.choice(OrderType, OrderType.UNKNOWN, "type")


def post_only(message: Fields) -> TimeInForce | None:
    """Read whether the order only stands in the book, which ccxt says in either of two ways."""
    post = message.flag_or_none("postOnly") or message.text_or_none("timeInForce") == "PO"
    return TimeInForce.GTX if post else None
