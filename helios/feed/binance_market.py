"""Binance's messages about the market: exchangeInfo, tickers, candles.

Fields as in Binance's own documentation: spot "Market Data endpoints" and "WebSocket Streams" (binance-spot-api-docs),
derivatives "Market Data" of USDⓈ-M and COIN-M futures.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from helios.feed.fields import Fields
from helios.feed.reports import InstrumentReport, KlineReport, TickerReport
from helios.models import InstrumentStatus, Interval
from helios.queries.query import known_interval

STATUSES = {
    "TRADING": InstrumentStatus.TRADING,
    "PRE_TRADING": InstrumentStatus.PRE_TRADING,
    "PENDING_TRADING": InstrumentStatus.PRE_TRADING,
    # Open again one day, as far as the word tells; a delisted spot symbol stays at BREAK.
    "HALT": InstrumentStatus.HALT,
    "BREAK": InstrumentStatus.HALT,
    "AUCTION_MATCH": InstrumentStatus.HALT,
    "CANCEL_ONLY": InstrumentStatus.HALT,
    "END_OF_DAY": InstrumentStatus.HALT,
    "POST_TRADING": InstrumentStatus.HALT,
    "PRE_DELIVERING": InstrumentStatus.CLOSED,
    "DELIVERING": InstrumentStatus.CLOSED,
    "DELIVERED": InstrumentStatus.CLOSED,
    "PRE_SETTLE": InstrumentStatus.CLOSED,
    "SETTLING": InstrumentStatus.CLOSED,
    "CLOSE": InstrumentStatus.CLOSED,
}
# The places of a candle's values where Binance writes it as an array, and their names where it writes an object.
KLINE_PLACES = {
    "open": 1,
    "high": 2,
    "low": 3,
    "close": 4,
    "volume": 5,
    "quote_volume": 7,
    "taker_buy_volume": 9,
    "taker_buy_quote_volume": 10,
}
KLINE_NAMES = {
    "open": "o",
    "high": "h",
    "low": "l",
    "close": "c",
    "volume": "v",
    "quote_volume": "q",
    "taker_buy_volume": "V",
    "taker_buy_quote_volume": "Q",
}


def exchange_info(message: Fields) -> list[InstrumentReport]:
    """Read exchangeInfo: every symbol with its steps; filters that Helios does not keep are passed over."""
    return [instrument(Fields("exchangeInfo", each.message)) for each in message.parts("symbols")]


def instrument(symbol: Fields) -> InstrumentReport:
    """Read one symbol of exchangeInfo; a step of zero means that the exchange sets none."""
    filters = {each.text("filterType"): each for each in symbol.parts("filters")}
    nothing = Fields("exchangeInfo", {})
    notional = filters.get("NOTIONAL") or filters.get("MIN_NOTIONAL") or nothing
    return InstrumentReport(
        symbol=symbol.text("symbol"),
        base_asset=symbol.text_or_none("baseAsset"),
        quote_asset=symbol.text_or_none("quoteAsset"),
        tick_size=filters.get("PRICE_FILTER", nothing).nonzero("tickSize"),
        step_size=filters.get("LOT_SIZE", nothing).nonzero("stepSize"),
        min_notional=notional.number_or_none("minNotional", "notional"),  # futures call it notional
        status=STATUSES.get(symbol.text_or_none("status", "contractStatus") or "", InstrumentStatus.UNKNOWN),
    )


def ticker_24h(message: Fields, received_at: datetime) -> TickerReport:
    """Read an answer of ticker/24hr; its closeTime is the exchange's clock at the answer."""
    told_at = message.moment_or_none("closeTime") or received_at
    quotes = quotes_of(message, "bidPrice", "bidQty", "askPrice", "askQty")
    return TickerReport(
        symbol=message.text("symbol"),
        priced_at=told_at,
        last_price=message.number("lastPrice"),
        open_price_24h=message.number_or_none("openPrice"),
        high_price_24h=message.number_or_none("highPrice"),
        low_price_24h=message.number_or_none("lowPrice"),
        price_change_24h=message.number_or_none("priceChange"),
        price_change_percent_24h=message.number_or_none("priceChangePercent"),
        volume_24h=message.number_or_none("volume"),
        quote_volume_24h=message.number_or_none("quoteVolume"),
        trades_24h=message.count_or_none("count"),
        quoted_at=told_at if quotes else None,
        **quotes,
    )


def ticker_stream(message: Fields, received_at: datetime) -> TickerReport:
    """Read a 24hrTicker or 24hrMiniTicker of a stream."""
    told_at = message.moment_or_none("E") or received_at
    quotes = quotes_of(message, "b", "B", "a", "A")
    # COIN-M futures count contracts, and put base assets where the others put quote assets; they name the pair.
    inverse = message.get("ps") is not None
    return TickerReport(
        symbol=message.text("s"),
        priced_at=told_at,
        last_price=message.number("c"),
        open_price_24h=message.number_or_none("o"),
        high_price_24h=message.number_or_none("h"),
        low_price_24h=message.number_or_none("l"),
        price_change_24h=message.number_or_none("p"),
        price_change_percent_24h=message.number_or_none("P"),
        volume_24h=message.number_or_none("v"),
        quote_volume_24h=None if inverse else message.number_or_none("q"),
        trades_24h=message.count_or_none("n"),
        quoted_at=told_at if quotes else None,
        **quotes,
    )


def book_ticker(message: Fields, received_at: datetime) -> TickerReport:
    """Read best bid and ask, from a stream or an answer; spot tells no time, so the moment of receipt counts."""
    names = ("b", "B", "a", "A") if message.get("s") is not None else ("bidPrice", "bidQty", "askPrice", "askQty")
    for name in (names[0], names[2]):
        message.number(name)
    return TickerReport(
        symbol=message.text("s", "symbol"),
        quoted_at=message.moment_or_none("E", "T", "time") or received_at,
        **quotes_of(message, *names),
    )


def ticker_price(message: Fields, received_at: datetime) -> TickerReport:
    """Read an answer of ticker/price; spot tells no time, so the moment of receipt counts."""
    return TickerReport(
        symbol=message.text("symbol"),
        priced_at=message.moment_or_none("time") or received_at,
        last_price=message.number("price"),
    )


def quotes_of(message: Fields, bid: str, bid_quantity: str, ask: str, ask_quantity: str) -> dict[str, Any]:
    """Read best bid and ask, as far as they are told."""
    told = {
        "bid_price": message.number_or_none(bid),
        "bid_quantity": message.number_or_none(bid_quantity),
        "ask_price": message.number_or_none(ask),
        "ask_quantity": message.number_or_none(ask_quantity),
    }
    return {name: value for name, value in told.items() if value is not None}


def kline_stream(message: Fields) -> KlineReport:
    """Read a candle of a stream, closed or still running."""
    candle = message.part("k")
    values: dict[str, Any] = {name: candle.number(place) for name, place in KLINE_NAMES.items()}
    return KlineReport(
        symbol=candle.text("s"),
        interval=interval_named(candle.text("i")),
        open_time=candle.moment("t"),
        trades=candle.count_or_none("n"),
        closed=bool(candle.flag_or_none("x")),
        **values,
    )


def klines(
    rows: Sequence[Sequence[Any]], symbol: str, interval: str | Interval, received_at: datetime
) -> list[KlineReport]:
    """Read an answer of klines: arrays of twelve values; a candle that closes after `received_at` still runs."""
    known = interval_named(interval)
    return [kline(Fields("klines", row), symbol, known, received_at) for row in rows]


def kline(row: Fields, symbol: str, interval: Interval, received_at: datetime) -> KlineReport:
    """Read one array of an answer of klines."""
    values: dict[str, Any] = {name: row.number(place) for name, place in KLINE_PLACES.items()}
    return KlineReport(
        symbol=symbol,
        interval=interval,
        open_time=row.moment(0),
        trades=row.count_or_none(8),
        closed=row.moment(6) < received_at,
        **values,
    )


def interval_named(text: str) -> Interval:
    """Find an interval by Binance's word for it, in which 1M is a month.

    Raises:
        InputError: there is none of this name.

    """
    return Interval.MO1 if text == "1M" else known_interval(text)
