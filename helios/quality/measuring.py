"""The facts of a series, a ticker or the orders, read from PostgreSQL in one statement each."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, FromClause, Row, func, select, text

from helios.models import (
    DataQualityMetric,
    Instrument,
    InstrumentStatus,
    Interval,
    Kline,
    Market,
    Order,
    QualitySubject,
    Ticker,
)
from helios.models.base import UtcMoment
from helios.names import table_name
from helios.quality.facts import KlineFacts, OrderFacts, TickerFacts
from helios.quality.judging import (
    KlineThresholds,
    OrderThresholds,
    TickerThresholds,
    Verdict,
    judge_klines,
    judge_orders,
    judge_ticker,
)
from helios.queries import series_present, sharded
from helios.queries.orders import UNRESOLVED_STATUSES, waiting_since
from helios.queries.query import Reader, moments, shards

MONDAY = datetime(1970, 1, 5, tzinfo=UTC)  # weeks begin here, and so does every shorter interval
MONTH = timedelta(days=30)  # how long a month counts when the age of its candle is judged
SILENT = (InstrumentStatus.HALT, InstrumentStatus.CLOSED, InstrumentStatus.PRE_TRADING)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was looked at - from `since`, up to `until` - with its facts and the verdict on them."""

    subject: QualitySubject
    instrument_id: int | None
    interval: Interval | None = None
    since: datetime | None = None
    until: datetime | None = None
    facts: KlineFacts | TickerFacts | OrderFacts
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class Series:
    """A series that has candles, the open time of its newest, and whether its instrument trades."""

    instrument_id: int
    exchange: str
    market: Market
    symbol: str
    status: InstrumentStatus
    interval: Interval
    newest: datetime

    @property
    def end(self) -> datetime:
        """The moment that its newest candle closes."""
        return following(self.newest, self.interval)

    @property
    def rests(self) -> bool:
        """Whether the instrument does not trade, so that no new candle is due."""
        return self.status in SILENT


TABLE = table_name(Kline.__table__)
# Jumps: the true range of each candle, as a logarithm, against the median of all and their median deviation from it.
# The bounds keep numbers of hundreds of digits out of float8, which refuses them. What a candle's figures must not
# contradict: who buys as taker has a part of the volume, and the mean price lies between low and high, but for the
# last digit that the exchange rounds (coin-margined futures count volume in contracts, so not there).
KLINES = text(f"""
    WITH candles AS MATERIALIZED (
        SELECT volume = 0 AS is_quiet,
               count(*) FILTER (WHERE volume > 0) OVER following AS traded_before,
               ln(least(greatest(high, lag(close) OVER following), 1e300::numeric)::float8)
                   - ln(greatest(least(low, lag(close) OVER following), 1e-300::numeric)::float8) AS move,
               -- A month counts its mean length, so that rounding gives whole ones.
               round(extract(epoch FROM open_time - lag(open_time) OVER following)
                     / coalesce(nullif(:seconds, 0), 2629746)) - 1 AS gap,
               taker_buy_volume > volume OR taker_buy_quote_volume > quote_volume OR (
                   :mean_price AND volume > 0 AND NOT quote_volume BETWEEN
                       low * volume * 0.999999 - 0.00001 AND high * volume * 1.000001 + 0.00001
               ) AS is_implausible
        FROM {TABLE}
        WHERE instrument_id = :instrument_id AND "interval" = :interval
            AND open_time >= :since AND open_time < :until
        WINDOW following AS (ORDER BY open_time)
    ), middle AS MATERIALIZED (
        SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY move) AS median FROM candles
    ), spread AS MATERIALIZED (
        SELECT median, percentile_cont(0.5) WITHIN GROUP (ORDER BY abs(move - median)) AS deviation
        FROM candles, middle GROUP BY median
    ), runs AS (
        SELECT count(*) AS candles FROM candles WHERE is_quiet GROUP BY traded_before
    )
    SELECT count(*) AS found,
           count(*) FILTER (WHERE is_implausible) AS implausible,
           coalesce(sum(gap) FILTER (WHERE gap > 0), 0)::bigint AS missing,
           count(*) FILTER (WHERE gap > 0) AS gaps,
           coalesce(max(gap) FILTER (WHERE gap > 0), 0)::bigint AS longest_gap,
           count(*) FILTER (WHERE is_quiet) AS quiet,
           (SELECT coalesce(max(candles), 0) FROM runs) AS longest_quiet,
           (SELECT count(*) FROM candles, spread
            WHERE move >= :jump_least AND move > median + :jump_deviations * 1.4826 * deviation) AS jumps,
           (SELECT min(open_time) FROM {TABLE}
            WHERE instrument_id = :instrument_id AND "interval" = :interval) AS begun,
           (SELECT max(open_time) FROM {TABLE}
            WHERE instrument_id = :instrument_id AND "interval" = :interval AND open_time < :until) AS newest
    FROM candles
""").columns(begun=UtcMoment, newest=UtcMoment)


def measure(  # noqa: PLR0913 - a window, a clock and thresholds, by keyword alone
    reader: Reader,
    instrument_id: int,
    interval: Interval,
    *,
    since: datetime,
    until: datetime,
    now: datetime | None = None,
    market: Market = Market.SPOT,
    thresholds: KlineThresholds | None = None,
) -> Measured:
    """Measure a series of candles that open from `since` up to, but not at, `until`, and judge it.

    What is before the series' first candle is not expected of it, nor what has not closed by `now`.

    Args:
        reader: a session or a connection; one statement is run.
        instrument_id: the instrument's number.
        interval: the series' interval.
        since: the first moment looked at.
        until: the moment up to which it is looked at.
        now: the clock that the newest candle's age is told by; None: freshness is not judged.
        market: the instrument's market; in cm volumes count contracts, so prices cannot be told from them.
        thresholds: when candles are no longer flawless.

    Raises:
        InputError: a moment has no time zone.

    """
    told = {name: at.astimezone(UTC) for name, at in moments(since=since, until=until, now=now).items()}
    since, until, now = told["since"], told["until"], told.get("now")
    thresholds = thresholds or KlineThresholds()
    length = interval.length or MONTH
    row = reader.execute(
        KLINES,
        {
            "instrument_id": instrument_id,
            "interval": interval.value,
            "since": since,
            "until": until,
            "seconds": int(interval.length.total_seconds()) if interval.length else 0,
            "mean_price": market is not Market.CM,
            "jump_least": thresholds.jump_least,
            "jump_deviations": thresholds.jump_deviations,
        },
    ).one()
    begun = row.begun or since
    facts = KlineFacts(
        expected=openings(interval, max(since, begun), min(until, now or until), anchor=begun),
        found=row.found,
        missing=row.missing,
        gaps=row.gaps,
        longest_gap=row.longest_gap,
        implausible=row.implausible,
        quiet=row.quiet,
        longest_quiet=row.longest_quiet,
        jumps=row.jumps,
        age_seconds=(now - following(row.newest, interval)).total_seconds() if now and row.newest else None,
        interval_seconds=length.total_seconds(),
    )
    return Measured(
        subject=QualitySubject.KLINES,
        instrument_id=instrument_id,
        interval=interval,
        since=since,
        until=until,
        facts=facts,
        verdict=judge_klines(facts, thresholds),
    )


def openings(interval: Interval, since: datetime, until: datetime, anchor: datetime) -> int:
    """Count the candles that open at or after `since` and close by `until`.

    Three-day candles have no grid that exchanges share: theirs is that of the series' first candle, the anchor.
    """
    step = interval.length
    if step is None:
        months = (until.year - since.year) * 12 + until.month - since.month
        return max(0, months - (since > since.replace(day=1, hour=0, minute=0, second=0, microsecond=0)))
    zero = anchor if interval is Interval.D3 else MONDAY
    first = -((zero - since) // step)
    return max(0, (until - zero) // step - first)


def following(at: datetime, interval: Interval) -> datetime:
    """Tell when a candle closes, which is when the next one opens."""
    if interval.length is None:
        return (at.replace(day=1) + timedelta(days=31)).replace(day=1)
    return at + interval.length


def measure_ticker(
    reader: Reader, instrument_id: int, *, now: datetime, thresholds: TickerThresholds | None = None
) -> Measured | None:
    """Measure the ticker of an instrument at a moment; None when it has none.

    Raises:
        InputError: the moment has no time zone.

    """
    moments(now=now)
    statement = select(Ticker, Instrument.status).join(Instrument).where(Ticker.instrument_id == instrument_id)
    rows = reader.execute(select(*statement.subquery().c)).all()
    return measured_ticker(rows[0], now, thresholds) if rows else None


def tickers(reader: Reader, *, now: datetime, thresholds: TickerThresholds | None = None) -> list[Measured]:
    """Measure every ticker, in one statement.

    Raises:
        InputError: the moment has no time zone.

    """
    moments(now=now)
    statement = select(Ticker, Instrument.status).join(Instrument).order_by(Ticker.instrument_id)
    return [measured_ticker(row, now, thresholds) for row in reader.execute(select(*statement.subquery().c))]


def measured_ticker(row: Row[Any], now: datetime, thresholds: TickerThresholds | None) -> Measured:
    """Judge a row of tickers."""
    facts = TickerFacts(
        age_seconds=(now - row.event_at).total_seconds(),
        last_price=row.last_price,
        bid_price=row.bid_price,
        ask_price=row.ask_price,
        low_price_24h=row.low_price_24h,
        high_price_24h=row.high_price_24h,
        trades=row.status not in SILENT,
    )
    return Measured(
        subject=QualitySubject.TICKER,
        instrument_id=row.instrument_id,
        since=row.event_at,
        until=max(now, row.event_at),
        facts=facts,
        verdict=judge_ticker(facts, thresholds),
    )


def measure_orders(
    reader: Reader, *, since: datetime, until: datetime, thresholds: OrderThresholds | None = None
) -> Measured:
    """Measure the orders of all accounts: those submitted in the window, irregular changes, and unresolved ones.

    Raises:
        InputError: a moment has no time zone.

    """
    moments(since=since, until=until)
    thresholds = thresholds or OrderThresholds()
    late = until - timedelta(seconds=thresholds.unresolved_seconds)
    submitted = select(func.count()).where(Order.submitted_at >= since, Order.submitted_at < until)
    irregular = select(func.count()).where(
        DataQualityMetric.subject == QualitySubject.ORDERS,
        DataQualityMetric.source == "order_history",
        DataQualityMetric.measured_at >= since,
        DataQualityMetric.measured_at < until,
    )
    unresolved = select(func.count()).where(Order.status.in_(UNRESOLVED_STATUSES), waiting_since() < late)
    row = reader.execute(
        select(
            submitted.select_from(Order).scalar_subquery().label("orders"),
            irregular.select_from(DataQualityMetric).scalar_subquery().label("irregular"),
            unresolved.select_from(Order).scalar_subquery().label("unresolved"),
        )
    ).one()
    facts = OrderFacts(orders=row.orders, irregular=row.irregular, unresolved=row.unresolved)
    return Measured(
        subject=QualitySubject.ORDERS,
        instrument_id=None,
        since=since,
        until=until,
        facts=facts,
        verdict=judge_orders(facts, thresholds),
    )


def series_with_newest(reader: Reader) -> tuple[FromClause, ColumnElement[datetime]]:
    """Ask for the series that have candles, and for the newest open time of each."""
    if shards(reader):
        return sharded.series(), sharded.series().c.last
    present = series_present()
    newest = (
        select(func.max(Kline.open_time))
        .where(Kline.instrument_id == present.c.instrument_id, Kline.interval == present.c.interval)
        .scalar_subquery()
    )
    return present, newest


def series(reader: Reader, symbol: str | None = None, interval: Interval | None = None) -> Sequence[Series]:
    """List the series that have candles, with the newest of each: two looks into the index for each of them."""
    present, newest = series_with_newest(reader)
    statement = (
        select(
            Instrument.id.label("instrument_id"),
            Instrument.exchange,
            Instrument.market,
            Instrument.symbol,
            Instrument.status,
            present.c.interval,
            newest.label("newest"),
        )
        .select_from(present)
        .join(Instrument, Instrument.id == present.c.instrument_id)
    )
    if symbol is not None:
        statement = statement.where(Instrument.symbol == symbol)
    if interval is not None:
        statement = statement.where(present.c.interval == interval.value)
    found = [
        Series(**{**row._mapping, "interval": Interval(row.interval)})  # noqa: SLF001 - SQLAlchemy's public name
        for row in reader.execute(statement)
    ]
    order = list(Interval)
    return sorted(found, key=lambda each: (each.exchange, each.symbol, each.market, order.index(each.interval)))
