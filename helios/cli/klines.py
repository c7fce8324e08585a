"""Commands of klines: load files, list the series, draw or print candles, move them to another layout."""

import os
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from helios import db, queries
from helios.cli import charts
from helios.cli.convert import convert
from helios.cli.instruments import Moment, exchange_option, market_option, the_instrument
from helios.cli.load import INTERVALS, load
from helios.cli.output import json_option, out, say, show
from helios.cli.retain import retain_klines
from helios.errors import InputError
from helios.models import Interval
from helios.settings import Settings


@click.group(epilog="Example: helios klines load BTCUSDT-1m-2025-01.zip && helios klines list")
def klines() -> None:
    """Load, list, show, retain and convert klines (candles)."""


klines.add_command(load)
klines.add_command(retain_klines)
klines.add_command(convert)


@klines.command("list", epilog="Example: helios klines list --json")
@json_option
def list_series(*, as_json: bool) -> None:
    """List every series: its rows, first and last candle (UTC), and the gaps between, with a bar of what is there.

    Each block of the bar is a sixteenth of the time from the first candle to the last: full where nothing is missing,
    blank where everything is. Only series that lack candles are searched for gaps.
    """
    settings = Settings.from_environment()
    with db.connect(db.create_engine(settings)) as connection:
        found = [
            (each, queries.gaps(each.instrument_id, each.interval).rows(connection) if each.missing else ())
            for each in queries.coverage(connection)
        ]
    rows = [
        {
            "exchange": each.exchange,
            "market": each.market.value,
            "symbol": each.symbol,
            "interval": each.interval.value,
            "rows": each.rows,
            "first": each.first,
            "last": each.last,
            "gaps": len(gaps),
            "missing": each.missing,
            **({} if as_json else {"coverage": charts.coverage_bar(each, gaps)}),
        }
        for each, gaps in found
    ]
    show(rows, as_json=as_json, nothing="no klines yet: helios klines load FILE...", right=("rows", "gaps", "missing"))


@klines.command("show", epilog="Example: helios klines show BTCUSDT 1h --last 24")
@click.argument("symbol")
@click.argument("interval", type=INTERVALS)
@exchange_option
@market_option
@click.option(
    "--since", type=Moment(), help="Show candles opened at this time (UTC) or later, such as 2025-01-31T12:00."
)
@click.option("--until", type=Moment(), help="Show candles opened before this time (UTC).")
@click.option(
    "--last",
    type=click.IntRange(1, 100_000),
    help="How many candles, the newest; without --since, 100 where they are drawn and 10 elsewhere.",
)
@click.option("--table", is_flag=True, help="Print a table, also in a terminal.")
@click.option("--png", type=click.Path(dir_okay=False, path_type=Path), help="Draw into this PNG file instead.")
@json_option
def show_candles(  # noqa: PLR0913 - a parameter for each option
    symbol: str,
    interval: str,
    *,
    exchange: str | None,
    market: str | None,
    since: datetime | None,
    until: datetime | None,
    last: int | None,
    table: bool,
    png: Path | None,
    as_json: bool,
) -> None:
    """Draw the candles of SYMBOL at INTERVAL; times are UTC.

    In a terminal they are drawn, where helios[charts] is installed; elsewhere they are a table, oldest first.
    """
    drawn = png is not None or (sys.stdout.isatty() and not (table or as_json))
    if drawn and png is None and not charts.installed("plotext"):
        say("a table, because drawing needs plotext: install the extra helios[charts]")
        drawn = False
    if last is None and since is None:
        last = 100 if drawn else 10
    of = Interval(interval)
    settings = Settings.from_environment()
    with db.connect(db.create_engine(settings)) as connection:
        instrument = the_instrument(connection, symbol, exchange, market)
        candles = queries.klines(instrument.id, of, since=since, until=until, last=last).rows(connection)
    name = f"{instrument.exchange} {instrument.market.value} {instrument.symbol}"
    nothing = f"{symbol} has no klines at {interval}{' then' if since or until else ''}: helios klines list"
    if png is not None and not candles:
        raise InputError(f"nothing was drawn, because {nothing}")
    if not (drawn and candles):
        show([shown(row) for row in candles], as_json=as_json, nothing=nothing, right=tuple(SHOWN[1:]))
    elif png is not None:
        charts.as_png(candles, of, name, png)
        say(f"{len(candles):,} candles drawn into {png}")
    else:
        size = out().size
        picture = charts.in_terminal(candles, of, name, width=size.width, height=min(size.height - 3, 40))
        click.echo(click.unstyle(picture) if os.environ.get("NO_COLOR") else picture)


SHOWN = ("open_time", "open", "high", "low", "close", "volume", "trades")


def shown(row: Any) -> dict[str, Any]:  # noqa: ANN401 - a row of klines
    """What the table of candles shows of one."""
    return {name: getattr(row, name) for name in SHOWN}
