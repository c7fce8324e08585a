"""Binance's messages about an account: orders, their trades, balances.

Fields as in Binance's own documentation: spot "User Data Streams" and "Account endpoints" (binance-spot-api-docs),
derivatives "Event: Order Update" and "Event: Balance and Position Update" of USDⓈ-M and COIN-M futures.
"""

from datetime import datetime
from decimal import Decimal

from helios.errors import InputError
from helios.feed.fields import Fields, fee_of
from helios.feed.reports import BalanceReport, FillReport, OrderReport
from helios.models import OrderStatus, OrderType, PositionSide, Side, TimeInForce

# What futures call an order of the insurance fund or of auto-deleveraging that was just made.
NEW_IN_OTHER_WORDS = frozenset({"NEW_INSURANCE", "NEW_ADL"})


def execution_report(message: Fields) -> OrderReport:
    """Read an executionReport of a spot or margin account.

    A cancellation has its own id in `c`, and the order's in `C`; so has an amendment that gives a new id.
    """
    original = message.text_or_none("C")
    return OrderReport(
        symbol=message.text("s"),
        exchange_order_id=exchange_order_id_of(message, "i"),
        client_order_id=original or message.text_or_none("c"),
        names_original=original is not None,
        side=side_of(message, "S"),
        type=message.choice(OrderType, OrderType.UNKNOWN, "o"),
        time_in_force=time_in_force_of(message, "f"),
        status=status_of(message, "X"),
        price=message.nonzero("p"),
        stop_price=message.nonzero("P"),
        quantity=message.nonzero("q"),
        quote_quantity=message.nonzero("Q"),
        filled_quantity=message.number("z"),
        filled_quote_quantity=not_below_zero(message.number_or_none("Z")),
        reject_reason=reason_of(message, "r", "eR"),
        submitted_at=message.moment("O", "T"),
        updated_at=message.moment("T"),
        fills=last_fill(message, "Y"),
    )


def order_trade_update(message: Fields) -> OrderReport:
    """Read an ORDER_TRADE_UPDATE of a futures account; its `ot` is the type the order was placed with."""
    order = message.part("o")
    updated_at = order.moment_or_none("T") or message.moment("T", "E")
    return OrderReport(
        symbol=order.text("s"),
        exchange_order_id=exchange_order_id_of(order, "i"),
        client_order_id=order.text_or_none("c"),
        side=side_of(order, "S"),
        type=order.choice(OrderType, OrderType.UNKNOWN, "ot", "o"),
        time_in_force=time_in_force_of(order, "f"),
        position_side=order.choice(PositionSide, PositionSide.BOTH, "ps"),
        reduce_only=bool(order.flag_or_none("R")),
        status=status_of(order, "X"),
        price=order.nonzero("p"),
        stop_price=order.nonzero("sp"),
        quantity=order.nonzero("q"),
        filled_quantity=order.number("z"),
        reject_reason=reason_of(order, "er"),
        submitted_at=updated_at,
        updated_at=updated_at,
        fills=last_fill(Fields("ORDER_TRADE_UPDATE", {**dict(order.message), "T": order.get("T") or message.get("T")})),
    )


def last_fill(message: Fields, quote: str = "") -> tuple[FillReport, ...]:
    """Read the trade that a report of an order tells of; none where nothing was traded.

    Binance says -1 (spot) or 0 (futures) where there is no trade id. A fill without one is known by its moment.
    """
    quantity = message.number_or_none("l")
    if not quantity:
        return ()
    moment = message.moment("T", "E")
    trade_id = message.text_or_none("t")
    if trade_id in {None, "-1", "0"}:
        trade_id = f"{message.text('x').lower()}-{message.text('T', 'E')}"
    fee, fee_asset = fee_of(message, "n", "N")
    return (
        FillReport(
            trade_id=str(trade_id),
            price=message.number("L"),
            quantity=quantity,
            quote_quantity=message.number_or_none(quote) if quote else None,
            fee=fee,
            fee_asset=fee_asset,
            is_maker=message.flag_or_none("m"),
            filled_at=moment,
        ),
    )


def order(message: Fields) -> OrderReport:
    """Read an order of an answer: order, openOrders, allOrders, and what placing or cancelling one returns."""
    original = message.text_or_none("origClientOrderId")
    updated_at = message.moment("updateTime", "transactTime", "time")
    return OrderReport(
        symbol=message.text("symbol"),
        exchange_order_id=exchange_order_id_of(message, "orderId"),
        client_order_id=original or message.text_or_none("clientOrderId"),
        names_original=original is not None,
        side=side_of(message, "side"),
        type=message.choice(OrderType, OrderType.UNKNOWN, "origType", "type"),
        time_in_force=time_in_force_of(message, "timeInForce"),
        position_side=message.choice(PositionSide, PositionSide.BOTH, "positionSide"),
        reduce_only=bool(message.flag_or_none("reduceOnly")),
        status=status_of(message, "status"),
        price=message.nonzero("price"),
        stop_price=message.nonzero("stopPrice"),
        quantity=message.nonzero("origQty"),
        quote_quantity=message.nonzero("origQuoteOrderQty"),
        filled_quantity=message.number("executedQty"),
        # Below zero where Binance does not know it any more.
        filled_quote_quantity=not_below_zero(message.number_or_none("cummulativeQuoteQty", "cumQuote")),
        submitted_at=message.moment("time", "transactTime", "updateTime"),
        updated_at=updated_at,
        fills=tuple(fill_of_answer(each, updated_at) for each in message.parts("fills")),
    )


def fill_of_answer(message: Fields, filled_at: datetime) -> FillReport:
    """Read a fill of the answer to a new order, which is as old as the answer says."""
    fee, fee_asset = fee_of(message, "commission", "commissionAsset")
    return FillReport(
        trade_id=message.text("tradeId"),
        price=message.number("price"),
        quantity=message.number("qty"),
        fee=fee,
        fee_asset=fee_asset,
        is_maker=None,
        filled_at=filled_at,
    )


def trade(message: Fields) -> OrderReport:
    """Read a trade of myTrades (spot) or userTrades (futures): a fill, and little of its order."""
    fee, fee_asset = fee_of(message, "commission", "commissionAsset")
    filled_at = message.moment("time")
    buyer = message.flag_or_none("isBuyer", "buyer")
    fill = FillReport(
        trade_id=message.text("id"),
        price=message.number("price"),
        quantity=message.number("qty"),
        quote_quantity=message.number_or_none("quoteQty"),
        fee=fee,
        fee_asset=fee_asset,
        is_maker=message.flag_or_none("isMaker", "maker"),
        filled_at=filled_at,
    )
    return OrderReport(
        symbol=message.text("symbol"),
        exchange_order_id=message.text("orderId"),
        client_order_id=None,
        side=side_of(message, "side") if buyer is None else (Side.BUY if buyer else Side.SELL),
        position_side=message.choice(PositionSide, PositionSide.BOTH, "positionSide"),
        submitted_at=filled_at,
        fills=(fill,),
    )


def account_position(message: Fields) -> list[BalanceReport]:
    """Read an outboundAccountPosition: the assets that changed, with what they came to."""
    event_at = message.moment("E", "u")
    message.told("B")
    return [
        BalanceReport(asset=each.text("a"), free=each.number("f"), locked=each.number("l"), event_at=event_at)
        for each in message.parts("B")
    ]


def account_update(message: Fields) -> list[BalanceReport]:
    """Read the balances of a futures account's ACCOUNT_UPDATE: the whole wallet counts as free.

    Its positions are not taken: a position is the sum of its fills.
    """
    event_at = message.moment("E", "T")
    return [
        BalanceReport(asset=each.text("a"), free=each.number("wb"), locked=Decimal(0), event_at=event_at)
        for each in message.part("a").parts("B")
    ]


def account(message: Fields, received_at: datetime) -> list[BalanceReport]:
    """Read the balances of an answer of account, spot or futures."""
    told_at = message.moment_or_none("updateTime") or received_at
    spot = [
        BalanceReport(
            asset=each.text("asset"), free=each.number("free"), locked=each.number("locked"), event_at=told_at
        )
        for each in message.parts("balances")
    ]
    futures = [
        BalanceReport(
            asset=each.text("asset"),
            free=each.number("walletBalance"),
            locked=Decimal(0),
            event_at=each.moment_or_none("updateTime") or told_at,
        )
        for each in message.parts("assets")
    ]
    return spot + futures


def exchange_order_id_of(message: Fields, name: str) -> str | None:
    """Read the exchange's id of an order; -1 stands for none, where an order never reached the book."""
    text = message.text(name)
    return None if text in {"-1", "0"} else text


def side_of(message: Fields, name: str) -> Side:
    """Read the side, without which nothing can be kept."""
    text = message.text(name)
    if text.upper() not in set(Side):
        raise InputError(f"{message.kind} says {name!r} is {text!r}: it must be BUY or SELL")
    return Side(text.upper())


def status_of(message: Fields, name: str) -> OrderStatus:
    """Read the status; UNKNOWN where Helios does not know the word."""
    if message.text(name) in NEW_IN_OTHER_WORDS:
        return OrderStatus.NEW
    return message.choice(OrderStatus, OrderStatus.UNKNOWN, name)


def time_in_force_of(message: Fields, name: str) -> TimeInForce | None:
    """Read how long an order stands; None where Helios does not know the word."""
    text = (message.text_or_none(name) or "").upper()
    return TimeInForce(text) if text in set(TimeInForce) else None


def reason_of(message: Fields, *names: str) -> str | None:
    """Read why an order was refused or expired; NONE and 0 stand for no reason."""
    for name in names:
        text = message.text_or_none(name)
        if text not in {None, "NONE", "0"}:
            return text
    return None


def not_below_zero(number: Decimal | None) -> Decimal:
    """Take what is untold, or told as unknown by a number below zero, for zero."""
    return max(number or Decimal(0), Decimal(0))
