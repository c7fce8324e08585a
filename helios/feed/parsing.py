"""Which message is which: any message of Binance or ccxt into reports, without a database."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from helios.errors import InputError
from helios.feed import binance_account, binance_market, ccxt
from helios.feed.fields import Fields
from helios.feed.reports import Ignored, Report
from helios.models import Interval, Market

# Messages of streams that are known, and why nothing of them is kept.
NEEDLESS = {
    "balanceUpdate": "the outboundAccountPosition sent with it tells what the balance came to",
    "listStatus": "the executionReport of each order of the list tells its state",
    "TRADE_LITE": "the ORDER_TRADE_UPDATE of the same trade tells more",
    "ORDER_TRADE_LITE": "the ORDER_TRADE_UPDATE of the same trade tells more",
    "trade": "trades of the public are not kept",
    "aggTrade": "trades of the public are not kept",
    "depthUpdate": "order books are not kept",
    "markPriceUpdate": "mark prices are not kept",
    "indexPriceUpdate": "index prices are not kept",
    "forceOrder": "liquidations of others are not kept",
    "avgPrice": "average prices are not kept",
    "continuous_kline": "candles of continuous contracts are not kept",
    "contractInfo": "exchangeInfo tells more",
    "ACCOUNT_CONFIG_UPDATE": "settings of the account are not kept",
    "MARGIN_CALL": "margin calls are not kept",
    "CONDITIONAL_ORDER_TRIGGER_REJECT": "the ORDER_TRADE_UPDATE of the order tells its state",
    "STRATEGY_UPDATE": "strategies that run at the exchange are not kept",
    "GRID_UPDATE": "strategies that run at the exchange are not kept",
    "externalLockUpdate": "the outboundAccountPosition sent with it tells what the balance came to",
    "listenKeyExpired": "it is about the stream: connect again",
    "eventStreamTerminated": "it is about the stream: connect again",
    "serverShutdown": "it is about the stream: connect again",
}
FUTURES = frozenset({"ORDER_TRADE_UPDATE", "ACCOUNT_UPDATE"})
SPOT = frozenset({"executionReport", "outboundAccountPosition"})
SPOT_QUOTE = frozenset({"u", "s", "b", "B", "a", "A"})
KLINE_VALUES, CANDLE_VALUES = 12, 6


@dataclass(frozen=True, kw_only=True)
class Sender:
    """What a message does not say of itself: its market, the series of bare arrays, when it came, ccxt's symbols."""

    market: Market = Market.SPOT
    symbol: str | None = None
    interval: str | Interval | None = None
    received_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    symbols: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a moment without a time zone: the server would take it for its session's."""
        if self.received_at.utcoffset() is None:
            raise InputError(f"received_at={self.received_at!r} has no time zone: pass tzinfo=UTC")


def parse(message: object, sender: Sender | None = None) -> list[Report]:
    """Read any message of Binance (answer, stream, wrapped or bare) or any unified dictionary of ccxt, or a list.

    A known message of which nothing is kept gives an `Ignored` with its reason.

    Raises:
        InputError: the message is of an unknown type, of another market, lacks a field, or holds what is no number,
            moment or text; numbers are exact, and a float counts as its shortest text.

    """
    sender = sender or Sender()
    if isinstance(message, list | tuple):
        return parse_list(message, sender)
    if isinstance(message, Mapping):
        return parse_object(message, sender)
    raise InputError(f"{message!r} is not a message: pass the decoded JSON, an object or a list")


def parse_list(messages: list[Any] | tuple[Any, ...], sender: Sender) -> list[Report]:
    """Read a list of objects, or of arrays, which are candles."""
    if not messages or isinstance(messages[0], Mapping):
        return [report for each in messages for report in parse(each, sender)]
    if sender.symbol is None or sender.interval is None:
        raise InputError("arrays of candles do not say whose they are: pass symbol= and interval= with them")
    lengths = {len(row) if isinstance(row, list | tuple) else 0 for row in messages}
    if lengths == {KLINE_VALUES}:
        return [*binance_market.klines(messages, sender.symbol, sender.interval, sender.received_at)]
    if lengths == {CANDLE_VALUES}:
        return [*ccxt.candles(messages, sender.symbol, sender.interval, sender.received_at)]
    found = ", ".join(str(each) for each in sorted(lengths))
    raise InputError(f"candles are arrays of 12 values (Binance) or 6 (ccxt), and these have {found}")


def parse_object(message: Mapping[str, Any], sender: Sender) -> list[Report]:
    """Read one object: out of its wrapping, then by its `e`, else by the fields it has."""
    for wrapping, content in (("stream", "data"), ("subscriptionId", "event"), ("status", "result")):
        if wrapping in message and isinstance(message.get(content), Mapping | list):
            return parse(message[content], sender)
    if isinstance(message.get("e"), str):
        return parse_event(message, sender)
    if ccxt.recognise(message) is not None:
        return ccxt.read(message, sender.received_at, sender.symbols)
    nested = [*inner(message)]
    if nested:
        return [report for each in nested for report in parse(each, sender)]
    return parse_answer(message, sender)


def inner(message: Mapping[str, Any]) -> Iterable[object]:
    """Give the messages that another one holds: orders of a list, both halves of a replacement, ccxt's maps."""
    reports = message.get("orderReports")
    if isinstance(reports, list):
        yield from reports
    for name in ("cancelResponse", "newOrderResponse"):
        if isinstance(message.get(name), Mapping) and "orderId" in message[name]:
            yield message[name]
    if message and all(isinstance(each, Mapping) and ccxt.recognise(each) for each in message.values()):
        yield from message.values()


def parse_event(message: Mapping[str, Any], sender: Sender) -> list[Report]:
    """Read a message of a stream, by its `e`."""
    kind = message["e"]
    if kind in NEEDLESS:
        return [Ignored(kind=kind, reason=NEEDLESS[kind])]
    if kind in (FUTURES if sender.market == Market.SPOT else SPOT):
        wanted = "um or cm" if sender.market == Market.SPOT else "spot"
        raise InputError(f"{kind} does not come from market {sender.market}: feed it with market {wanted}")
    if kind not in EVENTS:
        raise InputError(f"{kind!r} is no type of message that Helios knows: leave it out, or read it yourself")
    return EVENTS[kind](Fields(kind, message), sender)


def parse_answer(message: Mapping[str, Any], sender: Sender) -> list[Report]:
    """Read an answer, by the fields it has."""
    if "code" in message and "msg" in message:
        raise InputError(f"the exchange answered {message['code']}: {message['msg']}")
    for kind, fits, read in ANSWERS:
        if fits(message):
            return read(Fields(kind, message), sender)
    found = ", ".join(repr(name) for name in list(message)[:8])
    raise InputError(f"a message with the fields {found} is of no type that Helios knows: leave it out")


def has(*names: str, without: tuple[str, ...] = ()) -> Callable[[Mapping[str, Any]], bool]:
    """Say whether a message has these fields, and none of the others."""
    return lambda message: all(name in message for name in names) and not any(name in message for name in without)


def needless(reason: str) -> Callable[[Fields, Sender], list[Report]]:
    """Read nothing, for a reason."""
    return lambda fields, _: [Ignored(kind=fields.kind, reason=reason)]


# How each type of a stream's messages is read.
EVENTS: dict[str, Callable[[Fields, Sender], list[Report]]] = {
    "executionReport": lambda each, _: [binance_account.execution_report(each)],
    "ORDER_TRADE_UPDATE": lambda each, _: [binance_account.order_trade_update(each)],
    "outboundAccountPosition": lambda each, _: [*binance_account.account_position(each)],
    "ACCOUNT_UPDATE": lambda each, _: [*binance_account.account_update(each)],
    "24hrTicker": lambda each, sender: [binance_market.ticker_stream(each, sender.received_at)],
    "24hrMiniTicker": lambda each, sender: [binance_market.ticker_stream(each, sender.received_at)],
    "bookTicker": lambda each, sender: [binance_market.book_ticker(each, sender.received_at)],
    "kline": lambda each, _: [binance_market.kline_stream(each)],
}
# What an answer is, by what it has; the first that fits counts.
ANSWERS: tuple[tuple[str, Callable[[Mapping[str, Any]], bool], Callable[[Fields, Sender], list[Report]]], ...] = (
    ("exchangeInfo", has("symbols", "serverTime"), lambda each, _: [*binance_market.exchange_info(each)]),
    ("account", has("balances"), lambda each, sender: [*binance_account.account(each, sender.received_at)]),
    ("account", has("assets", "canTrade"), lambda each, sender: [*binance_account.account(each, sender.received_at)]),
    ("order", has("orderId", "status"), lambda each, _: [binance_account.order(each)]),
    ("myTrades", has("orderId", "id", "qty"), lambda each, _: [binance_account.trade(each)]),
    (
        "acknowledgement",
        has("orderId", "transactTime"),
        needless("an acknowledgement tells no state: the report of the order does"),
    ),
    (
        "ticker/24hr",
        has("lastPrice", "symbol"),
        lambda each, sender: [binance_market.ticker_24h(each, sender.received_at)],
    ),
    (
        "bookTicker",
        has("bidPrice", "askPrice", "symbol"),
        lambda each, sender: [binance_market.book_ticker(each, sender.received_at)],
    ),
    ("bookTicker", has(*SPOT_QUOTE), lambda each, sender: [binance_market.book_ticker(each, sender.received_at)]),
    (
        "ticker/price",
        has("symbol", "price", without=("qty", "orderId")),
        lambda each, sender: [binance_market.ticker_price(each, sender.received_at)],
    ),
    ("avgPrice", has("mins", "price"), needless("average prices are not kept")),
    ("depth", has("bids", "asks"), needless("order books are not kept")),
    ("trades", has("id", "price", "isBuyerMaker"), needless("trades of the public are not kept")),
    ("time", has("serverTime", without=("symbols",)), needless("it tells the time alone")),
    ("listenKey", has("listenKey"), needless("it is about the stream")),
    ("subscription", has("result", "id"), needless("it is about the stream")),
    ("ping", lambda message: not message, needless("it tells nothing")),
)
