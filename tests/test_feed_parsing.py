"""Messages are read exactly, whatever their form, or refused with a sentence that names what is wrong."""

import json
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import exchange
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios.errors import InputError
from helios.feed import (
    BalanceReport,
    Ignored,
    InstrumentReport,
    KlineReport,
    OrderReport,
    Sender,
    TickerReport,
    parse,
)
from helios.models import InstrumentStatus, Interval, Market, OrderStatus, OrderType, PositionSide, Side, TimeInForce

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "binance_json" / "spot"
START = datetime(2025, 6, 15, 15, 6, 40, tzinfo=UTC)
RECEIVED = datetime(2025, 6, 15, 18, tzinfo=UTC)
SENDER = Sender(received_at=RECEIVED, symbol="BTCUSDT", interval="1h")


def only(message: object, sender: Sender = SENDER) -> Any:
    [report] = parse(message, sender)
    return report


def told(message: object, *names: str, sender: Sender = SENDER) -> tuple[Any, ...]:
    report = only(message, sender)
    return tuple(getattr(report, name) for name in names)


def test_exchange_info() -> None:
    """Steps and status of each symbol; a filter that nobody knows is passed over."""
    expected = InstrumentReport(
        symbol="BTCUSDT",
        base_asset="BTC",
        quote_asset="USDT",
        tick_size=Decimal("0.01"),
        step_size=Decimal("0.00001"),
        min_notional=Decimal(5),
        status=InstrumentStatus.TRADING,
    )
    assert expected == only(exchange.exchange_info("BTCUSDT"))


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ([], (None, None, None)),
        ([{"filterType": "MIN_NOTIONAL", "minNotional": "10"}], (None, None, Decimal(10))),
        ([{"filterType": "MIN_NOTIONAL", "notional": "5"}], (None, None, Decimal(5))),
        ([{"filterType": "PRICE_FILTER", "tickSize": "0"}], (None, None, None)),
        ([{"filterType": "LOT_SIZE", "stepSize": "1"}], (None, Decimal(1), None)),
    ],
)
def test_filters(filters, expected) -> None:
    """Filters as spot and futures write them; a step of zero is none, and what is not there is untold."""
    message = exchange.exchange_info("BTCUSDT", filters=filters)
    assert expected == told(message, "tick_size", "step_size", "min_notional")


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"status": "BREAK"}, "HALT"),
        ({"status": "PENDING_TRADING"}, "PRE_TRADING"),
        ({"status": None, "contractStatus": "DELIVERED"}, "CLOSED"),
        ({"status": "OF_TOMORROW"}, "UNKNOWN"),
    ],
)
def test_instrument_statuses(changed, status) -> None:
    """Binance's words for whether a symbol trades, and one that it has not invented yet."""
    assert (status,) == told(exchange.exchange_info("BTCUSDT", **changed), "status")


def test_ticker_of_a_stream() -> None:
    """A 24hrTicker tells trades and quotes, both as of its event time."""
    message = {"stream": "btcusdt@ticker", "data": exchange.ticker_stream("BTCUSDT", "100", at=7)}
    at = START + timedelta(milliseconds=7)
    names = ("last_price", "trades_24h", "quote_volume_24h", "ask_quantity", "priced_at", "quoted_at")
    assert (Decimal(100), 77, Decimal("99150.25"), Decimal(8), at, at) == told(message, *names)


def test_ticker_of_coin_margined_futures() -> None:
    """What COIN-M futures put in place of the quote volume is none."""
    message = exchange.ticker_stream("BTCUSD_PERP", "100") | {"ps": "BTCUSD"}
    assert (None,) == told(message, "quote_volume_24h")


def test_mini_ticker() -> None:
    """A 24hrMiniTicker tells no quotes."""
    full = exchange.ticker_stream("BTCUSDT", "100")
    message = {name: full[name] for name in "Esohlvqc"} | {"e": "24hrMiniTicker"}
    assert (Decimal(100), START, None) == told(message, "last_price", "priced_at", "quoted_at")


@pytest.mark.parametrize(
    ("message", "at"),
    [
        (exchange.book_ticker("BTCUSDT", "99.5", "100.5"), RECEIVED),
        (exchange.book_ticker("BTCUSDT", "99.5", "100.5") | {"e": "bookTicker", "E": exchange.START}, START),
        ({"symbol": "BTCUSDT", "bidPrice": "99.5", "bidQty": "1", "askPrice": "100.5", "askQty": "2"}, RECEIVED),
    ],
)
def test_book_tickers(message, at) -> None:
    """Best bid and ask, of a stream or an answer; where the exchange tells no time, that of receipt counts."""
    expected = ("BTCUSDT", Decimal("99.5"), Decimal("100.5"), at, None)
    assert expected == told(message, "symbol", "bid_price", "ask_price", "quoted_at", "priced_at")


def test_ticker_answers() -> None:
    """ticker/24hr tells as of its closeTime, ticker/price as of its receipt; lists hold one of each symbol."""
    day = {"symbol": "BTCUSDT", "lastPrice": "1", "bidPrice": "2", "askPrice": "3", "closeTime": exchange.START}
    reports = parse([day, {"symbol": "ETHUSDT", "price": "4.00000200"}], SENDER)
    assert [("BTCUSDT", Decimal(1), START), ("ETHUSDT", Decimal("4.00000200"), RECEIVED)] == [
        (each.symbol, each.last_price, each.priced_at) for each in reports if isinstance(each, TickerReport)
    ]


def test_kline_of_a_stream() -> None:
    """A closed candle is read, and one that still runs says so."""
    opened = datetime(2025, 6, 15, 15, 6, tzinfo=UTC)
    names = ("interval", "open_time", "close", "volume", "trades", "taker_buy_quote_volume")
    expected = (Interval.M1, opened, Decimal("100.5"), Decimal("1000.000001"), 100, Decimal(50000))
    assert expected == told(exchange.kline_stream("BTCUSDT"), *names)
    assert (True,) == told(exchange.kline_stream("BTCUSDT"), "closed")
    assert (False,) == told(exchange.kline_stream("BTCUSDT", closed=False), "closed")


def test_klines_of_an_answer() -> None:
    """Arrays are candles of the series they were asked for; the last still runs."""
    first, last = exchange.kline_row(), exchange.kline_row(1_750_010_400_000)
    reports = parse([first, last], SENDER)
    assert [(KlineReport, True), (KlineReport, False)] == [(type(each), each.closed) for each in reports]
    assert ("BTCUSDT", Interval.H1, datetime(2025, 6, 15, 15, tzinfo=UTC)) == (
        reports[0].symbol,
        reports[0].interval,
        reports[0].open_time,
    )


def test_a_month_and_microseconds() -> None:
    """1M is a month, and 16 digits are microseconds."""
    row = exchange.kline_row(1_735_689_600_000_000)
    row[6] = 1_738_367_999_999_999
    sender = Sender(received_at=RECEIVED, symbol="BTCUSDT", interval="1M")
    assert (Interval.MO1, datetime(2025, 1, 1, tzinfo=UTC)) == told([row], "interval", "open_time", sender=sender)


def test_execution_report() -> None:
    """An executionReport of a trade, wrapped as the WebSocket API does."""
    report = only({"subscriptionId": 0, "event": exchange.executed(7, "1.5", "1.5", price="2")})
    assert isinstance(report, OrderReport)
    assert ("1001", "client-1", Side.BUY, OrderType.LIMIT, TimeInForce.GTC, OrderStatus.PARTIALLY_FILLED) == (
        report.exchange_order_id,
        report.client_order_id,
        report.side,
        report.type,
        report.time_in_force,
        report.status,
    )
    assert (Decimal(100), None, Decimal(3), None) == (
        report.price,
        report.stop_price,
        report.quantity,
        report.quote_quantity,
    )
    [fill] = report.fills
    assert ("7", Decimal(2), Decimal("1.5"), Decimal(3), START + timedelta(milliseconds=10)) == (
        fill.trade_id,
        fill.price,
        fill.quantity,
        fill.quote_quantity,
        fill.filled_at,
    )


@pytest.mark.parametrize(("named", "original"), [("", False), ("null", False), ("client-1", True)])
def test_client_id_of_a_cancellation(named, original) -> None:
    """The order keeps its own client id, which a cancellation tells beside the one of its own."""
    message = exchange.execution_report(c="cancel-9" if original else "client-1", C=named, X="CANCELED")
    assert ("client-1", original) == told(message, "client_order_id", "names_original")
    answer = exchange.rest_order(clientOrderId="cancel-9", origClientOrderId="client-1", status="CANCELED")
    assert ("client-1", True) == told(answer, "client_order_id", "names_original")


def test_reasons() -> None:
    """Why an order was refused or expired; NONE and 0 are no reasons."""
    assert (None,) == told(exchange.execution_report(), "reject_reason")
    rejected = exchange.execution_report(X="REJECTED", r="INSUFFICIENT_BALANCES")
    assert ("INSUFFICIENT_BALANCES",) == told(rejected, "reject_reason")
    assert ("4",) == told(exchange.order_trade_update(er="4"), "reject_reason", sender=Sender(market=Market.UM))


def test_order_trade_update() -> None:
    """A futures order keeps the type it was placed with, and its side of the book."""
    message = exchange.order_trade_update(o="MARKET", ot="STOP_MARKET", ps="SHORT", R=True, sp="90", X="NEW_ADL")
    names = ("type", "position_side", "reduce_only", "stop_price", "status", "fills")
    expected = (OrderType.STOP_MARKET, PositionSide.SHORT, True, Decimal(90), OrderStatus.NEW, ())
    assert expected == told(message, *names, sender=Sender(market=Market.UM))


def test_answer_to_a_new_order() -> None:
    """The fills that come with the answer to a market order."""
    fills = [{"price": "10", "qty": "1", "commission": "4", "commissionAsset": "USDT", "tradeId": 56}]
    message = exchange.rest_order(type="MARKET", price="0.00000000", status="FILLED", fills=fills)
    price, status, [fill] = told(message, "price", "status", "fills")
    assert (None, OrderStatus.FILLED, "56", START) == (price, status, fill.trade_id, fill.filled_at)


def test_trades_of_the_account() -> None:
    """A trade tells its order's id and side, and nothing of its state."""
    spot = exchange.rest_trade(isBuyer=False)
    assert (Side.SELL, "1001", None) == told([spot], "side", "exchange_order_id", "status")
    futures = {"side": "BUY", "buyer": None, "positionSide": "LONG", "maker": True}
    del spot["isBuyer"], spot["isMaker"]
    side, position_side, [fill] = told([spot | futures], "side", "position_side", "fills")
    assert (Side.BUY, PositionSide.LONG, True) == (side, position_side, fill.is_maker)


def test_balances() -> None:
    """Balances of streams and answers, spot and futures; a wallet counts as free."""
    spot = {"updateTime": exchange.START, "balances": [{"asset": "BTC", "free": "1.5", "locked": "0.5"}]}
    futures = {"canTrade": True, "assets": [{"asset": "BTC", "walletBalance": "-2", "updateTime": exchange.START}]}
    assert BalanceReport(asset="BTC", free=Decimal("1.5"), locked=Decimal("0.5"), event_at=START) == only(spot)
    assert (Decimal(-2), Decimal(0), START) == told(futures, "free", "locked", "event_at")
    assert (Decimal(7), Decimal(1)) == told(exchange.account_position(BTC=("7", "1")), "free", "locked")
    update = exchange.account_update(BTC=("7", "1"))
    assert (Decimal(7), Decimal(0)) == told(update, "free", "locked", sender=Sender(market=Market.CM))


def test_messages_inside_messages() -> None:
    """Orders of a cancelled list, both halves of a replacement, the answers of the WebSocket API."""
    nested = {"orderListId": 1, "contingencyType": "OCO", "orderReports": [exchange.rest_order()] * 2}
    replaced = {"cancelResult": "SUCCESS", "newOrderResult": "SUCCESS"}
    replaced |= {"cancelResponse": exchange.rest_order(), "newOrderResponse": exchange.rest_order(orderId=7)}
    answered = {"id": "a", "status": 200, "result": exchange.rest_order()}
    assert [2, 2, 1] == [len(parse(each)) for each in (nested, replaced, answered)]


CCXT_ORDER = {
    "info": {"symbol": "BTCUSDT"},
    "id": "1001",
    "clientOrderId": "client-1",
    "timestamp": exchange.START,
    "lastUpdateTimestamp": exchange.START + 5,
    "symbol": "BTC/USDT",
    "type": "limit",
    "side": "buy",
    "price": 0.1,
    "amount": 3.0,
    "filled": 0.0,
    "remaining": 3.0,
    "cost": 0.0,
    "status": "open",
    "postOnly": False,
    "reduceOnly": None,
    "timeInForce": "GTC",
    "stopPrice": None,
    "fee": None,
    "trades": [],
}
CCXT_TRADE = {
    "info": {},
    "id": "7",
    "order": "1001",
    "timestamp": exchange.START,
    "symbol": "BTC/USDT:USDT",
    "side": "sell",
    "takerOrMaker": "maker",
    "price": 0.1,
    "amount": 3.0,
    "cost": 0.3,
    "fee": {"cost": 1e-08, "currency": "BNB"},
}


@pytest.mark.parametrize(
    ("changed", "status", "kind", "time_in_force"),
    [
        ({}, "NEW", "LIMIT", "GTC"),
        ({"filled": 1.0}, "PARTIALLY_FILLED", "LIMIT", "GTC"),
        ({"status": "closed", "type": "market"}, "FILLED", "MARKET", "GTC"),
        ({"status": "canceled", "timeInForce": "PO"}, "CANCELED", "LIMIT", "GTX"),
        ({"status": "expired", "type": "stop_loss_limit"}, "EXPIRED", "STOP_LOSS_LIMIT", "GTC"),
        ({"status": "dreaming", "type": "poetic"}, "UNKNOWN", "UNKNOWN", "GTC"),
        ({"status": None}, None, "LIMIT", "GTC"),
    ],
)
def test_orders_of_ccxt(changed, status, kind, time_in_force) -> None:
    """The words of ccxt for states and types, and words that it has not invented yet."""
    assert (status, kind, time_in_force) == told(CCXT_ORDER | changed, "status", "type", "time_in_force")


def test_floats_of_ccxt() -> None:
    """A float is taken by its shortest text: what the exchange wrote, not the binary number nearest to it."""
    assert (Decimal("0.1"), Decimal("3.0")) == told(CCXT_ORDER, "price", "quantity")


def test_trades_of_ccxt() -> None:
    """A trade of one's own is a fill; one of the public has no order and is ignored."""
    symbol, side, [fill] = told(CCXT_TRADE, "symbol", "side", "fills")
    assert ("BTCUSDT", Side.SELL, Decimal("1E-8"), "BNB", True) == (
        symbol,
        side,
        fill.fee,
        fill.fee_asset,
        fill.is_maker,
    )
    assert isinstance(only(CCXT_TRADE | {"order": None}), Ignored)


@pytest.mark.parametrize(
    ("unified", "symbol"),
    [
        ("BTC/USDT", "BTCUSDT"),
        ("BTC/USDT:USDT", "BTCUSDT"),
        ("BTC/USD:BTC", "BTCUSD_PERP"),
        ("BTC/USDT:USDT-251226", "BTCUSDT_251226"),
        ("BTCUSDT", "BTCUSDT"),
    ],
)
def test_symbols_of_ccxt(unified, symbol) -> None:
    """A unified symbol becomes Binance's own, unless another one is given for it."""
    message = CCXT_TRADE | {"symbol": unified}
    assert (symbol,) == told(message, "symbol")
    assert ("XBT",) == told(message, "symbol", sender=Sender(symbols={unified: "XBT"}))


def test_markets_tickers_candles_and_balances_of_ccxt() -> None:
    """The other structures of ccxt."""
    market = {"info": {}, "id": "BTCUSDT", "base": "BTC", "quote": "USDT", "active": False}
    market |= {"precision": {"price": 0.01, "amount": 1e-05}, "limits": {"cost": {"min": 5.0}}}
    assert (Decimal("0.01"), Decimal("0.00001"), Decimal("5.0"), "HALT") == told(
        {"BTC/USDT": market}, "tick_size", "step_size", "min_notional", "status"
    )
    ticker = {"info": {}, "symbol": "BTC/USDT", "timestamp": exchange.START, "bid": 1.5, "ask": None, "last": None}
    assert (Decimal("1.5"), START, None) == told(ticker, "bid_price", "quoted_at", "priced_at")
    rows = [[exchange.START // 3_600_000 * 3_600_000, 1.0, 2.0, 0.5, 1.5, 10.25], [1_750_010_400_000, 1, 1, 1, 1, 0]]
    candle, running = parse(rows, SENDER)
    assert isinstance(candle, KlineReport)
    assert not running.closed
    assert (Decimal("10.25"), None) == (candle.volume, candle.quote_volume)
    balance = {"info": {}, "timestamp": None, "free": {"BTC": 1.5}, "used": {"BTC": None}, "total": {}}
    assert BalanceReport(asset="BTC", free=Decimal("1.5"), locked=Decimal(0), event_at=RECEIVED) == only(balance)


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"serverTime": 1},
        {"e": "balanceUpdate", "E": 1, "a": "BTC", "d": "1", "T": 1},
        {"subscriptionId": 0, "event": {"e": "listStatus", "E": 1, "s": "ETHBTC"}},
        {"e": "TRADE_LITE"},
        {"result": None, "id": 1},
        {"lastUpdateId": 1, "bids": [], "asks": []},
        {"id": 1, "price": "1", "qty": "1", "time": 1, "isBuyerMaker": True},
        {"mins": 5, "price": "9", "closeTime": 1},
        {"symbol": "BTCUSDT", "orderId": 1, "clientOrderId": "a", "transactTime": 1},
    ],
)
def test_what_is_known_and_not_kept(message) -> None:
    """Messages that Helios knows and keeps nothing of say why."""
    report = only(message)
    assert isinstance(report, Ignored)
    assert report.reason


REPORT = exchange.execution_report()


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ({"e": "fooBar"}, "'fooBar' is no type of message that Helios knows: leave it out, or read it yourself"),
        ({"foo": 1, "bar": 2}, "a message with the fields 'foo', 'bar' is of no type that Helios knows: leave it out"),
        ("text", "'text' is not a message: pass the decoded JSON, an object or a list"),
        ({"code": -1121, "msg": "Invalid symbol."}, "the exchange answered -1121: Invalid symbol."),
        (
            {k: v for k, v in REPORT.items() if k != "z"},
            "executionReport has no 'z': pass the exchange's message whole",
        ),
        (REPORT | {"p": "abc"}, "executionReport says 'p' is 'abc', which is not a number"),
        (REPORT | {"p": "NaN"}, "executionReport says 'p' is 'NaN', which is not a number"),
        (REPORT | {"p": [1]}, r"executionReport says 'p' is [1], which is not a number"),
        (REPORT | {"q": True}, "executionReport says 'q' is True, which is not a number"),
        (REPORT | {"p": "1e99999"}, "executionReport says 'p' is '1e99999', which is not a number"),
        (REPORT | {"T": 10**30}, f"executionReport says 'T' is {10**30}, which is not a moment"),
        (REPORT | {"T": "soon"}, "executionReport says 'T' is 'soon', which is not a number"),
        (REPORT | {"s": {}}, "executionReport says 's' is {}, which is not a text"),
        (REPORT | {"s": " "}, "executionReport says 's' is ' ', which names nothing"),
        (REPORT | {"S": "HOLD"}, "executionReport says 'S' is 'HOLD': it must be BUY or SELL"),
        ({"e": "kline", "k": 7}, "kline says 'k' is 7, which is not an object"),
        (
            exchange.account_position() | {"B": "none"},
            "outboundAccountPosition says 'B' is 'none', which is not a list of objects",
        ),
        (
            exchange.kline_stream("BTCUSDT") | {"k": exchange.kline_stream("BTCUSDT")["k"] | {"i": "7m"}},
            "'7m' is not an interval: choose one of 1s, 1m",
        ),
        ([[1, 2, 3]], "candles are arrays of 12 values (Binance) or 6 (ccxt), and these have 3"),
        (
            exchange.order_trade_update(),
            "ORDER_TRADE_UPDATE does not come from market spot: feed it with market um or cm",
        ),
        (CCXT_ORDER | {"side": None}, "ccxt's order has no 'side': pass the exchange's message whole"),
    ],
)
def test_malformed_messages(message, sentence) -> None:
    """What cannot be read is refused with one sentence that shows the value."""
    with pytest.raises(InputError) as refused:
        parse(message, SENDER)
    assert str(refused.value).startswith(sentence)


def test_a_receipt_without_time_zone() -> None:
    """When a message came is a moment, not the hands of some clock."""
    with pytest.raises(InputError, match="has no time zone: pass tzinfo=UTC"):
        Sender(received_at=datetime(2025, 6, 15, 18))  # noqa: DTZ001 - the very mistake


def test_an_order_without_the_exchanges_id() -> None:
    """An order that never reached the book has no id of the exchange's."""
    assert (None, "client-1") == told(exchange.execution_report(i=-1), "exchange_order_id", "client_order_id")


def test_arrays_of_nobody() -> None:
    """Candles do not say whose they are."""
    with pytest.raises(InputError, match="pass symbol= and interval= with them"):
        parse([exchange.kline_row()])


@given(st.data())
def test_broken_messages_never_end_in_anything_but_a_sentence(data) -> None:
    """A message with any field missing, or holding anything, is read or refused, and never ends in another error."""
    whole = data.draw(
        st.sampled_from(
            [
                exchange.executed(7, "1", "1"),
                exchange.rest_order(),
                exchange.rest_trade(),
                exchange.ticker_stream("BTCUSDT", "1"),
                exchange.account_position(BTC=("1", "1")),
                exchange.exchange_info("BTCUSDT"),
                CCXT_ORDER,
                CCXT_TRADE,
            ]
        )
    )
    name = data.draw(st.sampled_from(sorted(whole)))
    rubbish = (
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just([]) | st.just([1]) | st.just({})
    )
    message = whole | {name: data.draw(rubbish)}
    if data.draw(st.booleans()):
        del message[name]
    with suppress(InputError):
        assert all(asdict(each) for each in parse(message, SENDER))


def test_the_real_messages() -> None:
    """Every real message at hand is read; they are not part of the project, so elsewhere none is, and that is said."""
    found = sorted(REAL.rglob("*.json"))
    if not found:
        pytest.skip(f"no real messages in {REAL.parent}")
    for path in found:
        assert parse(json.loads(path.read_text()), SENDER), path.name
