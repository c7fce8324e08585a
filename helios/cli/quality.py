"""Command of quality: the score of every series and ticker, and what is wrong with it."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import click
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bars
from sqlalchemy import Connection, func, select

from helios import db
from helios.cli.output import json_option, show, talk
from helios.errors import InputError
from helios.models import Instrument, Interval, Market
from helios.quality import Measured, OrderFacts, Series, measure, measure_orders, series, tickers
from helios.quality import record as store
from helios.settings import Settings

DAYS = 30
MOST_CANDLES = 50_000  # of a series, unless --days asks for more: 34 days of minutes, 14 hours of seconds
SOURCE = "helios quality"


@dataclass(frozen=True)
class Named:
    """A measurement, and whose it is."""

    exchange: str | None
    market: Market | None
    symbol: str | None
    measured: Measured


@click.command(epilog="Example: helios quality BTCUSDT 1m --days 7")
@click.argument("symbol", required=False)
@click.argument("interval", required=False, type=click.Choice([each.value for each in Interval]))
@click.option("--exchange", help="Only this exchange.")
@click.option("--market", type=click.Choice([each.value for each in Market]), help="Only this market.")
@click.option(
    "--days",
    type=click.IntRange(1, 100_000),
    help=f"Days of each series, up to its newest candle; default: {DAYS}, but {MOST_CANDLES:,} candles at most.",
)
@click.option(
    "--until",
    type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]),
    help="Look at the days before this moment (UTC), as if it were now; tickers and orders are left out.",
)
@click.option("--archived", is_flag=True, help="Do not judge how long ago a series ended: nobody feeds it.")
@click.option("--record", is_flag=True, help="Store the verdicts in data_quality_metrics.")
@json_option
def quality(  # noqa: PLR0913 - a parameter for each option
    symbol: str | None,
    interval: str | None,
    *,
    exchange: str | None,
    market: str | None,
    days: int | None,
    until: datetime | None,
    archived: bool,
    record: bool,
    as_json: bool,
) -> None:
    """Score every series, or those of SYMBOL and INTERVAL, from 0 to 1, and say what is wrong.

    Tickers and orders are scored too, unless an interval is asked for. What is bad is no failure: the exit status is 0.
    """
    chosen = Choice(symbol, Interval(interval) if interval else None, exchange, market, days, until, archived)
    found: list[Named] = []
    with db.connect(db.create_engine(Settings.from_environment())) as connection:
        for each in chosen.measured(connection):
            found.append(each)
            if record:
                store(connection, each.measured, source=SOURCE)
    if symbol and not found:
        wanted = f"{symbol} {interval}" if interval else symbol
        raise InputError(f"there is nothing of {wanted!r} to score: `helios klines list` shows every series")
    rows = [row(each) for each in found]
    show(rows, as_json=as_json, nothing="nothing to score yet: helios klines load FILE...", right=("score",))


@dataclass(frozen=True)
class Choice:
    """What was asked for."""

    symbol: str | None
    interval: Interval | None
    exchange: str | None
    market: str | None
    days: int | None
    until: datetime | None
    archived: bool

    def measured(self, connection: Connection) -> Iterator[Named]:
        """Measure one after the other, with a bar."""
        now = self.until.replace(tzinfo=UTC) if self.until else connection.scalar(select(func.clock_timestamp()))
        assert isinstance(now, datetime)  # noqa: S101 - PostgreSQL's clock always tells
        found = [
            each
            for each in series(connection, self.symbol, self.interval)
            if self.exchange in (None, each.exchange) and self.market in (None, each.market)
        ]
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Bars(*columns, console=talk(), transient=True) as bars:
            task = bars.add_task("series", total=len(found))
            for each in found:
                yield self.of_series(connection, each, now)
                bars.advance(task)
        if self.until is None and self.interval is None:
            yield from self.of_others(connection, now)

    def of_series(self, connection: Connection, wanted: Series, now: datetime) -> Named:
        """Measure one series; with --until up to there, else up to its newest candle."""
        end = now if self.until else wanted.end
        span = timedelta(days=self.days or DAYS)
        if self.days is None and wanted.interval.length:
            span = min(span, MOST_CANDLES * wanted.interval.length)
        found = measure(
            connection,
            wanted.instrument_id,
            wanted.interval,
            since=end - span,
            until=end,
            now=None if wanted.rests or self.archived else now,
            market=wanted.market,
        )
        return Named(wanted.exchange, wanted.market, wanted.symbol, found)

    def of_others(self, connection: Connection, now: datetime) -> Iterator[Named]:
        """Measure the tickers, and for everything also the orders."""
        named = {row.id: row for row in connection.execute(select(*Instrument.__table__.columns))}
        for each in tickers(connection, now=now):
            row = named[each.instrument_id]
            wanted = ((self.symbol, row.symbol), (self.exchange, row.exchange), (self.market, row.market))
            if all(asked in (None, there) for asked, there in wanted):
                yield Named(row.exchange, row.market, row.symbol, each)
        if self.symbol is None:
            since = now - timedelta(days=self.days or DAYS)
            orders = measure_orders(connection, since=since, until=now)
            if orders.facts != OrderFacts(orders=0):
                yield Named(None, None, None, orders)


def row(each: Named) -> dict[str, object]:
    """What the table shows of one measurement."""
    found = each.measured
    return {
        "exchange": each.exchange,
        "market": each.market and each.market.value,
        "symbol": each.symbol,
        "what": found.interval.value if found.interval else found.subject.value,
        "since": found.since,
        "until": found.until,
        "score": found.verdict.score,
        "alert": found.verdict.alert_level.value,
        "reasons": found.verdict.reasons,
    }
