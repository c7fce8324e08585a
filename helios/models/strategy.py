"""What a strategy wants: trading sessions, the signals they raise, and the grids they lay."""

import uuid
from enum import StrEnum
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Index, PrimaryKeyConstraint, UniqueConstraint
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column, relationship

from helios.models.base import (
    Base,
    Choice,
    Moment,
    Price,
    Quantity,
    Ratio,
    Recorded,
    TimeOrderedId,
    not_blank,
    positive,
    share,
)
from helios.models.market import Instrument, Interval


class SessionMode(StrEnum):
    """Whether a session trades with money."""

    LIVE = "live"
    PAPER = "paper"
    BACKTEST = "backtest"


class SessionStatus(StrEnum):
    """Where a session stands; the same for a grid."""

    ACTIVE = "ACTIVE"
    PAUSED = "PAUSED"
    STOPPED = "STOPPED"
    FAILED = "FAILED"


class Side(StrEnum):
    """The side of an order, a signal or a level of a grid."""

    BUY = "BUY"
    SELL = "SELL"


class GridSpacing(StrEnum):
    """Whether a grid's levels stand in equal steps or in equal ratios."""

    ARITHMETIC = "arithmetic"
    GEOMETRIC = "geometric"


class LevelState(StrEnum):
    """Whether an order stands on a level of a grid."""

    IDLE = "IDLE"
    OPEN = "OPEN"
    FILLED = "FILLED"


class TradingSession(Base):
    """One run of a strategy."""

    __tablename__ = "trading_sessions"
    __table_args__ = (
        CheckConstraint(not_blank("name", "strategy"), name="names_are_not_blank"),
        CheckConstraint("stopped_at >= started_at", name="stops_after_start"),
        CheckConstraint("jsonb_typeof(parameters) = 'object'", name="parameters_are_an_object"),
        {"comment": "Runs of strategies"},
    )

    id: Mapped[TimeOrderedId] = mapped_column(comment="UUIDv7 made by the application")
    name: Mapped[str] = mapped_column(comment="What people call this run")
    strategy: Mapped[str] = mapped_column(comment="The strategy that runs")
    mode: Mapped[SessionMode] = mapped_column(Choice(SessionMode), comment="live (with money), paper or backtest")
    status: Mapped[SessionStatus] = mapped_column(
        Choice(SessionStatus), server_default=SessionStatus.ACTIVE, comment="Where it stands"
    )
    started_at: Mapped[Moment] = mapped_column(comment="When it began")
    stopped_at: Mapped[Moment | None] = mapped_column(comment="When it ended; NULL while it runs")
    parameters: Mapped[dict[str, Any]] = mapped_column(
        JSONB, default=dict, server_default="{}", comment="The strategy's parameters, as it was started with"
    )
    note: Mapped[str | None] = mapped_column(comment="Whatever people want to remember about it")
    recorded_at: Mapped[Recorded]

    signals: Mapped[list["Signal"]] = relationship(
        back_populates="session", passive_deletes="all", order_by="Signal.signalled_at"
    )
    grids: Mapped[list["GridSession"]] = relationship(
        back_populates="session", passive_deletes="all", order_by="GridSession.started_at"
    )


class Signal(Base):
    """A strategy's wish to buy or to sell, whether or not an order followed."""

    __tablename__ = "signals"
    __table_args__ = (
        CheckConstraint(not_blank("kind"), name="kind_is_not_blank"),
        CheckConstraint(share("strength"), name="strength_is_a_share"),
        CheckConstraint(positive("price"), name="price_is_positive"),
        Index(None, "instrument_id", "signalled_at"),
        Index(None, "session_id"),
        {"comment": "What strategies wished to do, whether or not an order followed"},
    )

    id: Mapped[TimeOrderedId] = mapped_column(comment="UUIDv7 made by the application")
    session_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey(TradingSession.id), comment="Run that raised it")
    instrument_id: Mapped[int] = mapped_column(ForeignKey(Instrument.id), comment="Instrument")
    interval: Mapped[Interval | None] = mapped_column(
        Choice(Interval), comment="Interval of the candles it was seen in"
    )
    side: Mapped[Side] = mapped_column(Choice(Side), comment="BUY or SELL")
    kind: Mapped[str] = mapped_column(comment="What was seen, in the strategy's own word")
    strength: Mapped[Ratio | None] = mapped_column(comment="How sure the strategy is, 0 to 1")
    price: Mapped[Price | None] = mapped_column(comment="Price at which it was seen")
    reason: Mapped[str | None] = mapped_column(comment="Why, as a sentence")
    signalled_at: Mapped[Moment] = mapped_column(comment="When it was raised")
    recorded_at: Mapped[Recorded]

    session: Mapped[TradingSession | None] = relationship(back_populates="signals")
    instrument: Mapped[Instrument] = relationship()


class GridSession(Base):
    """A grid of orders that a session lays between two prices."""

    __tablename__ = "grid_sessions"
    __table_args__ = (
        CheckConstraint(
            f"{positive('lower_price', 'upper_price')} AND lower_price < upper_price", name="prices_are_in_order"
        ),
        CheckConstraint("level_count >= 2", name="level_count_is_two_or_more"),
        CheckConstraint(positive("quantity_per_level"), name="quantity_is_positive"),
        CheckConstraint("stopped_at >= started_at", name="stops_after_start"),
        {"comment": "Grids of orders laid between two prices"},
    )

    id: Mapped[TimeOrderedId] = mapped_column(comment="UUIDv7 made by the application")
    session_id: Mapped[uuid.UUID] = mapped_column(ForeignKey(TradingSession.id), comment="Run that laid it")
    instrument_id: Mapped[int] = mapped_column(ForeignKey(Instrument.id), comment="Instrument")
    lower_price: Mapped[Price] = mapped_column(comment="Price of the lowest level")
    upper_price: Mapped[Price] = mapped_column(comment="Price of the highest level")
    level_count: Mapped[int] = mapped_column(comment="How many levels it has")
    quantity_per_level: Mapped[Quantity] = mapped_column(comment="Quantity of the order on each level")
    spacing: Mapped[GridSpacing] = mapped_column(
        Choice(GridSpacing), comment="arithmetic (steps) or geometric (ratios)"
    )
    status: Mapped[SessionStatus] = mapped_column(
        Choice(SessionStatus), server_default=SessionStatus.ACTIVE, comment="Where it stands"
    )
    started_at: Mapped[Moment] = mapped_column(comment="When it was laid")
    stopped_at: Mapped[Moment | None] = mapped_column(comment="When it was taken away; NULL while it stands")
    recorded_at: Mapped[Recorded]

    session: Mapped[TradingSession] = relationship(back_populates="grids")
    instrument: Mapped[Instrument] = relationship()
    levels: Mapped[list["GridLevel"]] = relationship(
        back_populates="grid", cascade="all, delete-orphan", passive_deletes=True, order_by="GridLevel.level"
    )


class GridLevel(Base):
    """One level of a grid, and the order that stands on it now."""

    __tablename__ = "grid_levels"
    __table_args__ = (
        PrimaryKeyConstraint("grid_session_id", "level"),
        UniqueConstraint("order_id"),
        CheckConstraint("level >= 0", name="level_is_not_negative"),
        CheckConstraint(positive("price"), name="price_is_positive"),
        {"comment": "Levels of the grids, and the order that stands on each now"},
    )

    grid_session_id: Mapped[uuid.UUID] = mapped_column(ForeignKey(GridSession.id, ondelete="CASCADE"), comment="Grid")
    level: Mapped[int] = mapped_column(autoincrement=False, comment="Number of the level, from 0 at the lowest price")
    price: Mapped[Price] = mapped_column(comment="Price of the level")
    side: Mapped[Side] = mapped_column(Choice(Side), comment="BUY or SELL")
    state: Mapped[LevelState] = mapped_column(
        Choice(LevelState), server_default=LevelState.IDLE, comment="Whether an order stands on it"
    )
    # Named by text, because orders stand above strategies: see Order.grid_level.
    order_id: Mapped[uuid.UUID | None] = mapped_column(
        ForeignKey("orders.id", ondelete="SET NULL"), comment="Order that stands on it now"
    )
    recorded_at: Mapped[Recorded]

    grid: Mapped[GridSession] = relationship(back_populates="levels")
