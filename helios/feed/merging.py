"""What an order is, after another message about it: the same whatever order the messages came in, and how often.

Each value is merged by a rule that does not care about order (the newest, the greatest, the earliest, the known over
the unknown), so a message that comes late, again, or after one that tells more, changes nothing but what it adds.
One limit: a price, a stop price or a quantity that was amended AND that some messages leave out keeps a value that
came before the amendment, if they come in the wrong order. Binance always tells all three.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from helios.feed.reports import OrderReport
from helios.models import OrderOrigin, OrderStatus, OrderType, PositionSide

LONG_AGO = datetime.min.replace(tzinfo=UTC)
# Of two states of one millisecond, the one that stands later in an order's life is the newer.
LIFE = (
    OrderStatus.UNKNOWN,
    OrderStatus.PENDING_NEW,
    OrderStatus.NEW,
    OrderStatus.PARTIALLY_FILLED,
    OrderStatus.PENDING_CANCEL,
    OrderStatus.REJECTED,
    OrderStatus.EXPIRED,
    OrderStatus.EXPIRED_IN_MATCH,
    OrderStatus.CANCELED,
    OrderStatus.FILLED,
)
AMENDABLE = ("price", "stop_price", "quantity")
# Client ids that Binance gives: to liquidations, auto-deleveraging and settlements, and to what people click.
FORCED = ("autoclose-", "adl_autoclose", "settlement_autoclose-", "delivery_autoclose-")
CLICKED = ("web_", "android_", "and_", "ios_", "electron_", "mac_", "pc_", "ipad_", "windows_")
# What tells more of an order's origin stands later; one that was placed here stays so.
ORIGINS = (OrderOrigin.ADOPTED, OrderOrigin.MANUAL, OrderOrigin.LIQUIDATION, OrderOrigin.STRATEGY)
SIDES = (PositionSide.BOTH, PositionSide.LONG, PositionSide.SHORT)


def first_sight(report: OrderReport) -> dict[str, Any]:
    """Write an order that was never seen before, less its account and instrument."""
    return {
        "client_order_id": report.client_order_id,
        "exchange_order_id": report.exchange_order_id,
        "side": report.side,
        "type": report.type,
        "time_in_force": report.time_in_force,
        "position_side": report.position_side,
        "reduce_only": report.reduce_only,
        "origin": origin_of(report.client_order_id, report.type),
        "status": report.status or OrderStatus.UNKNOWN,
        "price": report.price,
        "stop_price": report.stop_price,
        "quantity": report.quantity,
        "quote_quantity": report.quote_quantity,
        "filled_quantity": report.filled_quantity,
        "filled_quote_quantity": report.filled_quote_quantity,
        "reject_reason": report.reject_reason,
        "submitted_at": report.submitted_at,
        "updated_at": report.updated_at,
    }


def changes(row: Mapping[str, Any], told: Mapping[str, Any], *, tells_state: bool) -> dict[str, Any]:
    """Say which of an order's values a message changes.

    `told` is what `first_sight` makes of the message, or another row of the same order.
    """
    newer = tells_state and state_key(told) > state_key(row)
    merged: dict[str, Any] = {
        "side": row["side"],
        "type": later_word(row["type"], told["type"], OrderType.UNKNOWN),
        "time_in_force": later_word(row["time_in_force"], told["time_in_force"], None),
        "position_side": max(row["position_side"], told["position_side"], key=SIDES.index),
        "reduce_only": row["reduce_only"] or told["reduce_only"],
        "origin": max(row["origin"], told["origin"], key=ORIGINS.index),
        "status": told["status"] if newer else row["status"],
        "quote_quantity": greatest(row["quote_quantity"], told["quote_quantity"]),
        "filled_quantity": max(row["filled_quantity"], told["filled_quantity"]),
        "filled_quote_quantity": max(row["filled_quote_quantity"], told["filled_quote_quantity"]),
        "reject_reason": greatest(row["reject_reason"], told["reject_reason"]),
        "submitted_at": min(row["submitted_at"], told["submitted_at"]),
        "updated_at": told["updated_at"] if newer else row["updated_at"],
    }
    for name in AMENDABLE:
        first, second = (told[name], row[name]) if newer else (row[name], told[name])
        merged[name] = second if first is None else first
    return {name: value for name, value in merged.items() if value != row[name]}


def state_key(row: Mapping[str, Any]) -> tuple[datetime, int, Decimal, Decimal, Decimal]:
    """Say how new a state is: by the exchange's time, then by its place in the life, then by any fixed rule."""
    values = [Decimal(-1) if row[name] is None else row[name] for name in AMENDABLE]
    return (row["updated_at"] or LONG_AGO, LIFE.index(row["status"]), values[0], values[1], values[2])


def later_word(one: Any, other: Any, unknown: Any) -> Any:  # noqa: ANN401 - any choice
    """Give the known of two words; if both are, the one that sorts later."""
    known = [each for each in (one, other) if each != unknown]
    return max(known, default=unknown)


def greatest(one: Any, other: Any) -> Any:  # noqa: ANN401 - numbers or texts
    """Give the greater of two values that may be untold."""
    return max((each for each in (one, other) if each is not None), default=None)


def origin_of(client_order_id: str | None, kind: OrderType) -> OrderOrigin:
    """Tell by its client id where an order came from that Helios did not place."""
    if kind is OrderType.LIQUIDATION or starts_with(client_order_id, FORCED):
        return OrderOrigin.LIQUIDATION
    return OrderOrigin.MANUAL if starts_with(client_order_id, CLICKED) else OrderOrigin.ADOPTED


def starts_with(client_order_id: str | None, beginnings: Iterable[str]) -> bool:
    """Say whether a client id begins in one of these ways."""
    return client_order_id is not None and client_order_id.startswith(tuple(beginnings))


def precedes(one: str, other: str) -> bool:
    """Say whether an exchange's order id was given before another; digits are compared as numbers."""
    return (len(one), one) < (len(other), other)
