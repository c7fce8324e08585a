"""Commands of klines: load files, list the series, show the newest candles."""

import click

from helios import db, queries
from helios.cli.load import INTERVALS, MARKETS, load
from helios.cli.output import json_option, show
from helios.errors import InputError
from helios.models import Interval
from helios.settings import Settings


@click.group(epilog="Example: helios klines load BTCUSDT-1m-2025-01.zip && helios klines list")
def klines() -> None:
    """Load, list and show klines (candles)."""


klines.add_command(load)


@klines.command("list", epilog="Example: helios klines list --json")
@json_option
def list_series(*, as_json: bool) -> None:
    """List every series: its rows, first and last candle (UTC), and how many are missing between."""
    settings = Settings.from_environment()
    with db.connect(db.create_engine(settings)) as connection:
        found = queries.coverage(connection)
    rows = [
        {
            "exchange": each.exchange,
            "market": each.market.value,
            "symbol": each.symbol,
            "interval": each.interval.value,
            "rows": each.rows,
            "first": each.first,
            "last": each.last,
            "missing": each.missing,
        }
        for each in found
    ]
    show(rows, as_json=as_json, nothing="no klines yet: helios klines load FILE...", right=("rows", "missing"))


@klines.command("show", epilog="Example: helios klines show BTCUSDT 1h --last 24")
@click.argument("symbol")
@click.argument("interval", type=INTERVALS)
@click.option("--exchange", help="Exchange, where the symbol is on several.")
@click.option("--market", type=MARKETS, help="Market, where the symbol is in several.")
@click.option("--last", default=10, show_default=True, type=click.IntRange(1, 100_000), help="How many candles.")
@json_option
def show_candles(  # noqa: PLR0913 - a parameter for each option
    symbol: str, interval: str, *, exchange: str | None, market: str | None, last: int, as_json: bool
) -> None:
    """Show the newest candles of SYMBOL at INTERVAL, oldest first; times are UTC."""
    settings = Settings.from_environment()
    with db.connect(db.create_engine(settings)) as connection:
        instrument_id = the_instrument(connection, symbol, exchange, market)
        candles = queries.latest_klines(connection, instrument_id, Interval(interval), last)
    rows = [
        {
            "open_time": row.open_time,
            "open": row.open,
            "high": row.high,
            "low": row.low,
            "close": row.close,
            "volume": row.volume,
            "trades": row.trades,
        }
        for row in candles
    ]
    right = ("open", "high", "low", "close", "volume", "trades")
    show(rows, as_json=as_json, nothing=f"{symbol} has no klines at {interval}: helios klines list", right=right)


def the_instrument(reader: queries.Reader, symbol: str, exchange: str | None, market: str | None) -> int:
    """Find the one instrument that is meant.

    Raises:
        InputError: there is none, or the symbol alone does not tell which.

    """
    found = [
        row
        for row in queries.instruments_named(reader, symbol)
        if exchange in (None, row.exchange) and market in (None, row.market)
    ]
    if not found:
        raise InputError(f"there is no instrument {symbol!r} here: `helios klines list` shows those with klines")
    if len(found) > 1:
        places = ", ".join(f"{row.exchange} {row.market.value}" for row in found)
        raise InputError(f"{symbol!r} is on {places}: choose with --exchange and --market")
    return int(found[0].id)
