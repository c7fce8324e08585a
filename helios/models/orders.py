"""What was ordered, and what came of it: accounts, balances, orders with their fills and history, positions."""

import uuid
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Index, PrimaryKeyConstraint, UniqueConstraint, false, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column, relationship

from helios.models.base import (
    Base,
    Choice,
    Moment,
    Money,
    NumberedId,
    Price,
    Quantity,
    Recorded,
    Refreshed,
    TimeOrderedId,
    finite,
    not_blank,
    not_negative,
    one_of,
    positive,
)
from helios.models.market import Instrument, Market
from helios.models.strategy import GridLevel, Side, TradingSession


class OrderType(StrEnum):
    """The types of orders that exchanges know; UNKNOWN for one that Helios does not."""

    LIMIT = "LIMIT"
    MARKET = "MARKET"
    STOP = "STOP"
    STOP_MARKET = "STOP_MARKET"
    STOP_LOSS = "STOP_LOSS"
    STOP_LOSS_LIMIT = "STOP_LOSS_LIMIT"
    TAKE_PROFIT = "TAKE_PROFIT"
    TAKE_PROFIT_LIMIT = "TAKE_PROFIT_LIMIT"
    TAKE_PROFIT_MARKET = "TAKE_PROFIT_MARKET"
    LIMIT_MAKER = "LIMIT_MAKER"
    TRAILING_STOP_MARKET = "TRAILING_STOP_MARKET"
    LIQUIDATION = "LIQUIDATION"
    UNKNOWN = "UNKNOWN"


class TimeInForce(StrEnum):
    """How long an order stands: GTX is post-only, GTD until a date."""

    GTC = "GTC"
    IOC = "IOC"
    FOK = "FOK"
    GTX = "GTX"
    GTD = "GTD"


class PositionSide(StrEnum):
    """The position an order acts on: BOTH unless the account keeps long and short apart."""

    BOTH = "BOTH"
    LONG = "LONG"
    SHORT = "SHORT"


class OrderOrigin(StrEnum):
    """Where an order came from; adopted ones were found at the exchange."""

    STRATEGY = "strategy"
    MANUAL = "manual"
    ADOPTED = "adopted"
    LIQUIDATION = "liquidation"


class OrderStatus(StrEnum):
    """Where an order stands; the PENDING ones and UNKNOWN are ours, until the exchange answers."""

    PENDING_NEW = "PENDING_NEW"
    NEW = "NEW"
    PARTIALLY_FILLED = "PARTIALLY_FILLED"
    FILLED = "FILLED"
    PENDING_CANCEL = "PENDING_CANCEL"
    CANCELED = "CANCELED"
    REJECTED = "REJECTED"
    EXPIRED = "EXPIRED"
    EXPIRED_IN_MATCH = "EXPIRED_IN_MATCH"
    UNKNOWN = "UNKNOWN"


_FILLING = frozenset({OrderStatus.PARTIALLY_FILLED, OrderStatus.FILLED})
_ENDED = frozenset({OrderStatus.CANCELED, OrderStatus.EXPIRED, OrderStatus.EXPIRED_IN_MATCH})
_UNTOLD = frozenset({OrderStatus.PENDING_CANCEL, OrderStatus.UNKNOWN})

# The life cycle: what may follow each status. An order may be first seen in any of them. What is not here is
# recorded all the same, flagged as irregular. The database knows the same table as order_transition_is_known().
TRANSITIONS = MappingProxyType(
    {
        OrderStatus.PENDING_NEW: _FILLING | _ENDED | _UNTOLD | {OrderStatus.NEW, OrderStatus.REJECTED},
        OrderStatus.NEW: _FILLING | _ENDED | _UNTOLD,
        OrderStatus.PARTIALLY_FILLED: _ENDED | _UNTOLD | {OrderStatus.FILLED},
        OrderStatus.FILLED: frozenset[OrderStatus](),
        # NEW and PARTIALLY_FILLED follow where the exchange refused to cancel, or a fill came first.
        OrderStatus.PENDING_CANCEL: _FILLING | _ENDED | {OrderStatus.NEW, OrderStatus.UNKNOWN},
        OrderStatus.CANCELED: frozenset[OrderStatus](),
        OrderStatus.REJECTED: frozenset[OrderStatus](),
        OrderStatus.EXPIRED: frozenset[OrderStatus](),
        OrderStatus.EXPIRED_IN_MATCH: frozenset[OrderStatus](),
        # Nobody knew, then somebody asked: everything but a return to before it was sent.
        OrderStatus.UNKNOWN: frozenset(OrderStatus) - {OrderStatus.UNKNOWN, OrderStatus.PENDING_NEW},
    }
)
OPEN_STATUSES = tuple(status for status in OrderStatus if TRANSITIONS[status])


class Account(Base):
    """An account at an exchange; it holds no key and no secret."""

    __tablename__ = "accounts"
    __table_args__ = (
        UniqueConstraint("exchange", "name"),
        CheckConstraint(not_blank("exchange", "name"), name="names_are_not_blank"),
        {"comment": "Accounts at exchanges; never a key or a secret"},
    )

    id: Mapped[NumberedId] = mapped_column(comment="Number given by the database")
    exchange: Mapped[str] = mapped_column(comment="Exchange in lower case, such as binance")
    name: Mapped[str] = mapped_column(comment="What people call it")
    market: Mapped[Market] = mapped_column(
        Choice(Market), comment="spot, um (USD-margined) or cm (coin-margined futures)"
    )
    recorded_at: Mapped[Recorded]

    balances: Mapped[list["Balance"]] = relationship(
        back_populates="account", passive_deletes="all", order_by="Balance.asset"
    )
    positions: Mapped[list["Position"]] = relationship(back_populates="account", passive_deletes="all")


class Balance(Base):
    """What an account holds of an asset."""

    __tablename__ = "balances"
    __table_args__ = (
        PrimaryKeyConstraint("account_id", "asset"),
        CheckConstraint(not_blank("asset"), name="asset_is_not_blank"),
        # Not `not_negative`: the wallet of a futures account may fall below zero.
        CheckConstraint(finite("free", "locked"), name="amounts_are_finite"),
        {"comment": "What each account holds of each asset"},
    )

    account_id: Mapped[int] = mapped_column(ForeignKey(Account.id), comment="Account")
    asset: Mapped[str] = mapped_column(comment="Asset, such as USDT")
    free: Mapped[Money] = mapped_column(comment="What may be spent")
    locked: Mapped[Money] = mapped_column(server_default="0", comment="What stands behind open orders")
    event_at: Mapped[Moment] = mapped_column(comment="When the exchange said so")
    recorded_at: Mapped[Refreshed]

    account: Mapped[Account] = relationship(back_populates="balances")


class Order(Base):
    """An order as the exchange last told it; each change writes its own history, by a trigger."""

    __tablename__ = "orders"
    __table_args__ = (
        UniqueConstraint("account_id", "client_order_id"),
        # With the instrument, because Binance numbers the orders of each symbol for itself.
        UniqueConstraint("account_id", "instrument_id", "exchange_order_id"),
        CheckConstraint("num_nonnulls(client_order_id, exchange_order_id) > 0", name="some_order_id_is_there"),
        CheckConstraint(positive("quantity", "quote_quantity"), name="quantities_are_positive"),
        CheckConstraint(not_negative("price", "stop_price"), name="prices_are_not_negative"),
        # No upper bound by `quantity`: what the exchange says was filled is recorded, never refused.
        CheckConstraint(
            not_negative("filled_quantity", "filled_quote_quantity"), name="filled_quantities_are_not_negative"
        ),
        Index("ix_orders_open", "account_id", "instrument_id", postgresql_where=text(one_of("status", OPEN_STATUSES))),
        Index(None, "instrument_id", "submitted_at"),
        Index(None, "session_id"),
        {"comment": "Orders as the exchange last told them; deleting one takes its fills and its history away"},
    )

    id: Mapped[TimeOrderedId] = mapped_column(comment="UUIDv7 made by the application")
    account_id: Mapped[int] = mapped_column(ForeignKey(Account.id), comment="Account")
    instrument_id: Mapped[int] = mapped_column(ForeignKey(Instrument.id), comment="Instrument")
    session_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey(TradingSession.id), comment="Run that placed it")
    client_order_id: Mapped[str | None] = mapped_column(comment="Id that the client gave it")
    exchange_order_id: Mapped[str | None] = mapped_column(comment="Id that the exchange gave it; NULL until told")
    side: Mapped[Side] = mapped_column(Choice(Side), comment="BUY or SELL")
    type: Mapped[OrderType] = mapped_column(Choice(OrderType), comment="Type, as the exchange calls it")
    time_in_force: Mapped[TimeInForce | None] = mapped_column(Choice(TimeInForce), comment="How long it stands")
    position_side: Mapped[PositionSide] = mapped_column(
        Choice(PositionSide), server_default=PositionSide.BOTH, comment="Position it acts on"
    )
    reduce_only: Mapped[bool] = mapped_column(server_default=false(), comment="Whether it may only lessen a position")
    origin: Mapped[OrderOrigin] = mapped_column(
        Choice(OrderOrigin), server_default=OrderOrigin.STRATEGY, comment="Where it came from"
    )
    status: Mapped[OrderStatus] = mapped_column(Choice(OrderStatus), comment="Where it stands")
    price: Mapped[Price | None] = mapped_column(comment="Limit price; NULL where it has none")
    stop_price: Mapped[Price | None] = mapped_column(comment="Price that triggers it; NULL where it has none")
    quantity: Mapped[Quantity | None] = mapped_column(comment="Quantity ordered; NULL if ordered by value")
    quote_quantity: Mapped[Money | None] = mapped_column(comment="Value ordered; NULL if ordered by quantity")
    filled_quantity: Mapped[Quantity] = mapped_column(server_default="0", comment="Quantity filled so far")
    filled_quote_quantity: Mapped[Money] = mapped_column(server_default="0", comment="Value filled so far")
    reject_reason: Mapped[str | None] = mapped_column(comment="Why the exchange refused it")
    submitted_at: Mapped[Moment] = mapped_column(comment="When it was sent, or the exchange took it")
    updated_at: Mapped[Moment | None] = mapped_column(comment="The exchange's time of the newest change")
    recorded_at: Mapped[Recorded]

    account: Mapped[Account] = relationship()
    instrument: Mapped[Instrument] = relationship()
    session: Mapped[TradingSession | None] = relationship()
    grid_level: Mapped[GridLevel | None] = relationship(passive_deletes=True)
    fills: Mapped[list["Fill"]] = relationship(
        back_populates="order",
        cascade="all, delete-orphan",
        passive_deletes=True,
        order_by="Fill.filled_at, Fill.trade_id",
    )
    # Only to be read: the trigger writes it.
    history: Mapped[list["OrderHistory"]] = relationship(
        back_populates="order", viewonly=True, order_by="OrderHistory.version"
    )


class Fill(Base):
    """A trade that filled an order, or a part of it."""

    __tablename__ = "fills"
    __table_args__ = (
        PrimaryKeyConstraint("order_id", "trade_id"),
        CheckConstraint(positive("price"), name="price_is_positive"),
        CheckConstraint(positive("quantity"), name="quantity_is_positive"),
        CheckConstraint(not_negative("quote_quantity"), name="quote_quantity_is_not_negative"),
        CheckConstraint(finite("fee"), name="fee_is_finite"),
        CheckConstraint("(fee IS NULL) = (fee_asset IS NULL)", name="fee_has_its_asset"),
        # Whether a fill is the newest of its position is asked for each.
        Index(None, "filled_at"),
        {"comment": "Trades that filled orders"},
    )

    order_id: Mapped[uuid.UUID] = mapped_column(ForeignKey(Order.id, ondelete="CASCADE"), comment="Order it filled")
    trade_id: Mapped[str] = mapped_column(comment="Id that the exchange gave the trade")
    price: Mapped[Price] = mapped_column(comment="Price of the trade")
    quantity: Mapped[Quantity] = mapped_column(comment="Quantity traded")
    quote_quantity: Mapped[Money | None] = mapped_column(comment="Value traded; NULL where untold")
    fee: Mapped[Money | None] = mapped_column(comment="Fee paid; below zero for a rebate")
    fee_asset: Mapped[str | None] = mapped_column(comment="Asset the fee was paid in")
    is_maker: Mapped[bool | None] = mapped_column(comment="Whether the order stood in the book; NULL where untold")
    filled_at: Mapped[Moment] = mapped_column(comment="When it was traded")
    recorded_at: Mapped[Recorded]

    order: Mapped[Order] = relationship(back_populates="fills")


class OrderHistory(Base):
    """One change of an order, written by the trigger on orders: versions count from 1 without holes."""

    __tablename__ = "order_history"
    __table_args__ = (
        PrimaryKeyConstraint("order_id", "version"),
        CheckConstraint("version >= 1", name="version_is_one_or_more"),
        {"comment": "Every change of every order, written by a trigger; while it is there, its order stays"},
    )

    # Not by cascade: who may delete an order would erase what is written of it.
    order_id: Mapped[uuid.UUID] = mapped_column(ForeignKey(Order.id), comment="Order that changed")
    version: Mapped[int] = mapped_column(autoincrement=False, comment="Number of the change, from 1, without holes")
    old_status: Mapped[OrderStatus | None] = mapped_column(Choice(OrderStatus), comment="Before; NULL at first sight")
    new_status: Mapped[OrderStatus] = mapped_column(Choice(OrderStatus), comment="Where it stood afterwards")
    old_state: Mapped[dict[str, Any] | None] = mapped_column(
        JSONB(none_as_null=True), comment="The order before, less its id and its times; NULL at first sight"
    )
    new_state: Mapped[dict[str, Any]] = mapped_column(JSONB, comment="The order afterwards, less its id and its times")
    irregular: Mapped[bool] = mapped_column(
        server_default=false(), comment="Whether an order's life cycle does not know such a change"
    )
    actor: Mapped[str] = mapped_column(comment="Who changed it: helios.actor where set, else the session's user")
    login: Mapped[str] = mapped_column(comment="The session's user, whatever helios.actor said")
    exchange_at: Mapped[Moment | None] = mapped_column(comment="The exchange's time of the change, where told")
    recorded_at: Mapped[Moment] = mapped_column(server_default=func.clock_timestamp(), comment="When it was written")

    order: Mapped[Order] = relationship(back_populates="history")


class Position(Base):
    """What an account holds of an instrument: the sum of its fills."""

    __tablename__ = "positions"
    __table_args__ = (
        PrimaryKeyConstraint("account_id", "instrument_id", "position_side"),
        CheckConstraint(finite("quantity", "realized_pnl"), name="amounts_are_finite"),
        CheckConstraint(not_negative("entry_price"), name="entry_price_is_not_negative"),
        {"comment": "What each account holds of each instrument: the sum of its fills"},
    )

    account_id: Mapped[int] = mapped_column(ForeignKey(Account.id), comment="Account")
    instrument_id: Mapped[int] = mapped_column(ForeignKey(Instrument.id), comment="Instrument")
    position_side: Mapped[PositionSide] = mapped_column(
        Choice(PositionSide), server_default=PositionSide.BOTH, comment="BOTH, or LONG and SHORT kept apart"
    )
    quantity: Mapped[Quantity] = mapped_column(server_default="0", comment="Bought less sold; below zero when short")
    entry_price: Mapped[Price | None] = mapped_column(comment="Average price it was entered at; NULL when flat")
    realized_pnl: Mapped[Money] = mapped_column(server_default="0", comment="Profit and loss of what was closed")
    event_at: Mapped[Moment] = mapped_column(comment="When the exchange last said so")
    recorded_at: Mapped[Refreshed]

    account: Mapped[Account] = relationship(back_populates="positions")
    instrument: Mapped[Instrument] = relationship()
