"""The questions a trader asks of the tables, each one statement; results are rows with named columns.

Every function takes a session or a connection (`execute` is all it needs).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import CTE, Connection, Row, String, case, func, select, true, values
from sqlalchemy import column as plain_column
from sqlalchemy.orm import Session, aliased

from helios.models import Fill, Instrument, Interval, Kline, Market, Order, Position, Side

Reader = Session | Connection
Rows = Sequence[Row[*tuple[Any, ...]]]


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """One series: how many klines it holds, from when to when (open times, UTC), and how many are missing between."""

    exchange: str
    market: Market
    symbol: str
    interval: Interval
    rows: int
    first: datetime
    last: datetime

    @property
    def expected(self) -> int:
        """How many candles the interval's grid has from the first to the last."""
        if self.interval.length is None:
            return (self.last.year - self.first.year) * 12 + self.last.month - self.first.month + 1
        return (self.last - self.first) // self.interval.length + 1

    @property
    def missing(self) -> int:
        """How many candles the grid has that are not there."""
        return self.expected - self.rows


def coverage(reader: Reader) -> list[Coverage]:
    """List every series that has klines, with its rows, first and last open time."""
    series = series_present()
    extent = (
        select(
            func.count().label("rows"),
            func.min(Kline.open_time).label("first"),
            func.max(Kline.open_time).label("last"),
        )
        .where(Kline.instrument_id == series.c.instrument_id, Kline.interval == series.c.interval)
        .lateral("extent")
    )
    statement = (
        select(Instrument.exchange, Instrument.market, Instrument.symbol, series.c.interval, *extent.c)
        .select_from(series)
        .join(Instrument, Instrument.id == series.c.instrument_id)
        .join(extent, true())
        .order_by(Instrument.exchange, Instrument.symbol, Instrument.market)
    )
    found = [
        Coverage(**{**row._mapping, "interval": Interval(row.interval)})  # noqa: SLF001 - SQLAlchemy's public name
        for row in reader.execute(statement)
    ]
    order = list(Interval)
    return sorted(found, key=lambda each: (each.exchange, each.symbol, each.market, order.index(each.interval)))


def series_present() -> CTE:
    """Find (interval, instrument_id) of every series by skipping through the primary key, one look for each."""
    intervals = values(plain_column("interval", String), name="intervals").data([(each.value,) for each in Interval])
    after = aliased(Kline)
    least = select(func.min(Kline.instrument_id)).where(Kline.interval == intervals.c.interval).scalar_subquery()
    series = select(intervals.c.interval, least.label("instrument_id")).cte("series", recursive=True)
    following = (
        select(func.min(after.instrument_id))
        .where(after.interval == series.c.interval, after.instrument_id > series.c.instrument_id)
        .scalar_subquery()
    )
    return series.union_all(select(series.c.interval, following).where(series.c.instrument_id.is_not(None)))


def instruments_named(reader: Reader, symbol: str) -> Rows:
    """Find the instruments of a symbol, in whichever exchange and market: id, exchange, market, symbol."""
    statement = select(Instrument.id, Instrument.exchange, Instrument.market, Instrument.symbol)
    return reader.execute(statement.where(Instrument.symbol == symbol).order_by(Instrument.id)).all()


def latest_klines(reader: Reader, instrument_id: int, interval: Interval, count: int) -> Rows:
    """Read the newest `count` candles of a series, oldest first."""
    table = Kline.__table__
    newest = (
        select(*table.columns)
        .where(Kline.instrument_id == instrument_id, Kline.interval == interval)
        .order_by(Kline.open_time.desc())
        .limit(count)
        .subquery()
    )
    return reader.execute(select(newest).order_by(newest.c.open_time)).all()


def ownerless_series(reader: Reader) -> Rows:
    """List the series whose instrument is not there: klines have no foreign key, so this is looked at instead."""
    series = series_present()
    statement = (
        select(series.c.interval, series.c.instrument_id)
        .where(series.c.instrument_id.is_not(None), series.c.instrument_id.not_in(select(Instrument.id)))
        .order_by(series.c.instrument_id)
    )
    return reader.execute(statement).all()


def position_differences(reader: Reader) -> Rows:
    """List the positions that differ from the sum of their fills: bought less sold, quantities in the base asset."""
    signed = case((Order.side == Side.BUY, Fill.quantity), else_=-Fill.quantity)
    filled = (
        select(Order.account_id, Order.instrument_id, Order.position_side, func.sum(signed).label("quantity"))
        .join(Fill, Fill.order_id == Order.id)
        .group_by(Order.account_id, Order.instrument_id, Order.position_side)
        .subquery("filled")
    )
    same = (
        (Position.account_id == filled.c.account_id)
        & (Position.instrument_id == filled.c.instrument_id)
        & (Position.position_side == filled.c.position_side)
    )
    stated, summed = func.coalesce(Position.quantity, 0), func.coalesce(filled.c.quantity, 0)
    statement = (
        select(
            func.coalesce(Position.account_id, filled.c.account_id).label("account_id"),
            func.coalesce(Position.instrument_id, filled.c.instrument_id).label("instrument_id"),
            func.coalesce(Position.position_side, filled.c.position_side).label("position_side"),
            stated.label("position"),
            summed.label("fills"),
        )
        .select_from(Position)
        .join(filled, same, full=True)
        .where(stated != summed)
        .order_by("account_id", "instrument_id", "position_side")
    )
    return reader.execute(statement).all()
