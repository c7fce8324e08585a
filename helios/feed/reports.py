"""What messages say, as typed values: numbers exact, moments in UTC, names as the exchange writes them."""

from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal

from helios.models import InstrumentStatus, Interval, OrderStatus, OrderType, PositionSide, Side, TimeInForce


@dataclass(frozen=True, kw_only=True, slots=True)
class InstrumentReport:
    """What trades, and in which steps; None where the message does not tell or leaves it free."""

    symbol: str
    base_asset: str | None
    quote_asset: str | None
    tick_size: Decimal | None = None
    step_size: Decimal | None = None
    min_notional: Decimal | None = None
    status: InstrumentStatus = InstrumentStatus.UNKNOWN


@dataclass(frozen=True, kw_only=True, slots=True)
class TickerReport:
    """Prices of an instrument: what was traded (as of `priced_at`), what is quoted (as of `quoted_at`), or both.

    Two moments, because a stream of quotes without times of its own, stamped here, would otherwise outdate what the
    exchange says of trades by its own clock.
    """

    symbol: str
    priced_at: datetime | None = None
    last_price: Decimal | None = None
    open_price_24h: Decimal | None = None
    high_price_24h: Decimal | None = None
    low_price_24h: Decimal | None = None
    price_change_24h: Decimal | None = None
    price_change_percent_24h: Decimal | None = None
    volume_24h: Decimal | None = None
    quote_volume_24h: Decimal | None = None
    trades_24h: int | None = None
    quoted_at: datetime | None = None
    bid_price: Decimal | None = None
    bid_quantity: Decimal | None = None
    ask_price: Decimal | None = None
    ask_quantity: Decimal | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class KlineReport:
    """A candle, closed or still running; volumes in the base asset, quote volumes in the quote asset."""

    symbol: str
    interval: Interval
    open_time: datetime
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    volume: Decimal
    quote_volume: Decimal | None = None
    trades: int | None = None
    taker_buy_volume: Decimal | None = None
    taker_buy_quote_volume: Decimal | None = None
    #: One that still runs is in no table; a feed that was given a Redis tells it there.
    closed: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class FillReport:
    """A trade that filled an order, or a part of it."""

    trade_id: str
    price: Decimal
    quantity: Decimal
    filled_at: datetime
    quote_quantity: Decimal | None = None
    fee: Decimal | None = None
    fee_asset: str | None = None
    is_maker: bool | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class OrderReport:
    """An order, as far as a message tells it; `status` is None where it tells of trades alone."""

    symbol: str
    exchange_order_id: str | None
    client_order_id: str | None
    side: Side
    submitted_at: datetime
    #: Whether the message itself names this client id as the original one, beside a newer one.
    names_original: bool = False
    type: OrderType = OrderType.UNKNOWN
    time_in_force: TimeInForce | None = None
    position_side: PositionSide = PositionSide.BOTH
    reduce_only: bool = False
    status: OrderStatus | None = None
    updated_at: datetime | None = None
    price: Decimal | None = None
    stop_price: Decimal | None = None
    quantity: Decimal | None = None
    quote_quantity: Decimal | None = None
    filled_quantity: Decimal = Decimal(0)
    filled_quote_quantity: Decimal = Decimal(0)
    reject_reason: str | None = None
    fills: tuple[FillReport, ...] = field(default=())


@dataclass(frozen=True, kw_only=True, slots=True)
class BalanceReport:
    """What an account holds of an asset, as of a moment."""

    asset: str
    free: Decimal
    locked: Decimal
    event_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Ignored:
    """A message that is known, and of which nothing is kept."""

    kind: str
    reason: str


Report = InstrumentReport | TickerReport | KlineReport | OrderReport | BalanceReport | Ignored
