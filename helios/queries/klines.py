"""Questions about klines: a series or its newest candles, the newest of each instrument, gaps, coverage."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    Select,
    String,
    bindparam,
    cast,
    extract,
    func,
    literal_column,
    null,
    select,
    true,
    type_coerce,
    values,
)
from sqlalchemy import Interval as Duration
from sqlalchemy import column as plain_column

from helios.errors import InputError
from helios.models import Instrument, Interval, Kline, Market
from helios.queries import sharded
from helios.queries.query import Query, Reader, known_interval, moments, table_of

KLINES = table_of(Kline)
INSTRUMENTS = table_of(Instrument)


def klines(
    instrument_id: int,
    interval: Interval,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    last: int | None = None,
) -> Query[Kline]:
    """Ask for the candles of a series, oldest first: all, or those opened from `since` to before `until`.

    `last` keeps the newest of them: it reads no more than these, from the end of the index.

    Raises:
        InputError: no such interval, a moment without time zone, or `last` below 1.

    """
    told = moments(since=since, until=until)
    parameters: dict[str, Any] = {"instrument_id": instrument_id, "interval": known_interval(interval), **told}
    if last is not None:
        if last < 1:
            raise InputError(f"last={last!r} is not a number of candles: pass 1 or more")
        parameters["last"] = last
    return Query(candles(frozenset(parameters)), parameters, Kline, turned=last is not None)


# Statements are made once for each form: making one costs a tenth of what the newest 500 candles cost.
@cache
def candles(told: frozenset[str]) -> Select[Any]:
    """Make the statement for candles of one series, with the bounds that are told; `last` turns the order."""
    found = of_series(select(*KLINES.c), told)
    if "last" in told:
        return found.order_by(KLINES.c.open_time.desc()).limit(bindparam("last"))
    return found.order_by(KLINES.c.open_time)


def of_series(statement: Select[Any], told: frozenset[str]) -> Select[Any]:
    """Keep a statement to one series and to the bounds that are told."""
    statement = statement.where(
        KLINES.c.instrument_id == bindparam("instrument_id"), KLINES.c.interval == bindparam("interval")
    )
    if "since" in told:
        statement = statement.where(KLINES.c.open_time >= bindparam("since"))
    if "until" in told:
        statement = statement.where(KLINES.c.open_time < bindparam("until"))
    return statement


def latest_of_each(interval: Interval) -> Query[Kline]:
    """Ask for the newest candle of every instrument that has one: exchange, market, symbol and the candle's columns.

    One look into the index for each instrument; DISTINCT ON would read every candle there is.

    Raises:
        InputError: no such interval.

    """
    of = {"interval": known_interval(interval)}
    return Query(latest_of_each_statement(), of, Kline, of_shards=sharded.latest_of_each())


@cache
def latest_of_each_statement() -> Select[Any]:
    """Make the statement of `latest_of_each`."""
    latest = (
        select(*KLINES.c)
        .where(KLINES.c.instrument_id == INSTRUMENTS.c.id, KLINES.c.interval == bindparam("interval"))
        .order_by(KLINES.c.open_time.desc())
        .limit(1)
        .lateral("latest")
    )
    named = (INSTRUMENTS.c.exchange, INSTRUMENTS.c.market, INSTRUMENTS.c.symbol)
    return select(*named, *latest.c).select_from(INSTRUMENTS).join(latest, true()).order_by(INSTRUMENTS.c.id)


def gaps(
    instrument_id: int, interval: Interval, *, since: datetime | None = None, until: datetime | None = None
) -> Query[Any]:
    """Ask for the gaps of a series: `start` and `until`, the open times of the first candle that is missing and of
    the next that is there, and `missing`, how many are not there.

    A gap stands between two candles; with bounds, between two that were opened from `since` to before `until`. The
    index alone is read, in order and without a sort: about a second for two or three million candles.

    Raises:
        InputError: no such interval, or a moment without time zone.

    """  # noqa: D205 - one sentence, longer than a line
    of = known_interval(interval)
    told = moments(since=since, until=until)
    parameters: dict[str, Any] = {"instrument_id": instrument_id, "interval": of, **told}
    if of.length is not None:
        parameters |= {"length": of.length, "seconds": of.length // timedelta(seconds=1)}
    return Query(gaps_statement(frozenset(parameters)), parameters)


@cache
def gaps_statement(told: frozenset[str]) -> Select[Any]:
    """Make the statement of `gaps`; no arithmetic of it depends on the session's time zone, so no clock change does."""
    following = func.lead(KLINES.c.open_time).over(order_by=KLINES.c.open_time)
    pairs = of_series(select(KLINES.c.open_time, following.label("following")), told).subquery("pairs")
    here, there = pairs.c.open_time, pairs.c.following
    missing: ColumnElement[Any]
    start: ColumnElement[Any]
    if "length" in told:
        apart = type_coerce(there - here, Duration())
        is_gap = apart > bindparam("length", type_=Duration())
        missing = func.ceil(extract("epoch", apart) / bindparam("seconds", type_=BigInteger())) - 1
        start = here + func.make_interval(0, 0, 0, 0, 0, 0, bindparam("seconds", type_=BigInteger()))
    else:
        missing = month_number(there) - month_number(here) - 1
        is_gap = missing > 0
        start = func.timezone("UTC", func.timezone("UTC", here) + literal_column("interval '1 month'"))
    return (
        select(
            type_coerce(start, KLINES.c.open_time.type).label("start"),
            there.label("until"),
            cast(missing, BigInteger).label("missing"),
        )
        .where(is_gap)
        .order_by(here)
    )


def month_number(moment: ColumnElement[Any]) -> ColumnElement[Any]:
    """Number the months, in UTC."""
    there = func.timezone("UTC", moment)
    return extract("year", there) * 12 + extract("month", there)


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """One series: how many klines it holds, from when to when (open times, UTC), and how many are missing between.

    `rows`, and with it `missing`, is None where nobody counted.
    """

    instrument_id: int
    exchange: str
    market: Market
    symbol: str
    interval: Interval
    rows: int | None
    first: datetime
    last: datetime

    @property
    def expected(self) -> int:
        """How many candles the interval's grid has from the first to the last."""
        if self.interval.length is None:
            return (self.last.year - self.first.year) * 12 + self.last.month - self.first.month + 1
        return (self.last - self.first) // self.interval.length + 1

    @property
    def missing(self) -> int | None:
        """How many candles the grid has that are not there."""
        return None if self.rows is None else self.expected - self.rows


def coverage(reader: Reader, *, count: bool = True) -> list[Coverage]:
    """List every series that has klines, with its first and last open time, and its rows.

    PostgreSQL counts by reading: the index alone where the table has been vacuumed since (autovacuum does), five to
    ten million rows a second. With `count=False`, each series costs a few looks into the index, however many rows it
    has.
    """
    statement = sharded.coverage(count=count) if sharded.shards(reader) else coverage_statement(count=count)
    found = [
        Coverage(**{**row._mapping, "interval": Interval(row.interval)})  # noqa: SLF001 - SQLAlchemy's public name
        for row in reader.execute(statement)
    ]
    order = list(Interval)
    return sorted(found, key=lambda each: (each.exchange, each.symbol, each.market, order.index(each.interval)))


@cache
def coverage_statement(*, count: bool) -> Select[Any]:
    """Make the statement of `coverage`."""
    series = series_present()
    same = (KLINES.c.instrument_id == series.c.instrument_id) & (KLINES.c.interval == series.c.interval)
    first, last, rows = (
        select(each).where(same).scalar_subquery()
        for each in (func.min(KLINES.c.open_time), func.max(KLINES.c.open_time), func.count())
    )
    return (
        select(
            series.c.instrument_id,
            INSTRUMENTS.c.exchange,
            INSTRUMENTS.c.market,
            INSTRUMENTS.c.symbol,
            series.c.interval,
            (rows if count else null()).label("rows"),
            first.label("first"),
            last.label("last"),
        )
        .select_from(series)
        .join(INSTRUMENTS, INSTRUMENTS.c.id == series.c.instrument_id)
    )


def series_present() -> CTE:
    """Find (interval, instrument_id) of every series by skipping through the primary key, one look for each."""
    intervals = values(plain_column("interval", String), name="intervals").data([(each.value,) for each in Interval])
    after = KLINES.alias()
    least = select(func.min(KLINES.c.instrument_id)).where(KLINES.c.interval == intervals.c.interval).scalar_subquery()
    series = select(intervals.c.interval, least.label("instrument_id")).cte("series", recursive=True)
    following = (
        select(func.min(after.c.instrument_id))
        .where(after.c.interval == series.c.interval, after.c.instrument_id > series.c.instrument_id)
        .scalar_subquery()
    )
    return series.union_all(select(series.c.interval, following).where(series.c.instrument_id.is_not(None)))


def ownerless_series() -> Query[Any]:
    """Ask for the series whose instrument is not there: klines have no foreign key, so this is looked at instead."""
    series = series_present()
    statement = (
        select(series.c.interval, series.c.instrument_id)
        .where(series.c.instrument_id.is_not(None), series.c.instrument_id.not_in(select(INSTRUMENTS.c.id)))
        .order_by(series.c.instrument_id)
    )
    return Query(statement, of_shards=sharded.ownerless_series())
