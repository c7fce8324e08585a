"""`helios price`: what an instrument costs now, and how old that is."""

from datetime import timedelta

import click

from helios import db, queries
from helios.cli.instruments import exchange_option, market_option, the_instrument
from helios.cli.output import json_option, show, talk
from helios.settings import Settings


@click.command(epilog="Example: helios price BTCUSDT --max-lag 5")
@click.argument("symbol")
@exchange_option
@market_option
@click.option(
    "--max-lag", type=click.FloatRange(min=0), metavar="SECONDS", help="Exit with status 1 where the price is older."
)
@json_option
def price(symbol: str, *, exchange: str | None, market: str | None, max_lag: float | None, as_json: bool) -> int:
    """Show the current price of SYMBOL, its best bid and ask, and how many seconds old they are.

    The price is that of the last trade, or the middle of bid and ask where only these are told.
    """
    settings = Settings.from_environment()
    with db.connect(db.create_engine(settings)) as connection:
        instrument = the_instrument(connection, symbol, exchange, market)
        found = queries.current_price(connection, instrument.id)
    stale = max_lag is not None and found.age > timedelta(seconds=max_lag)
    row = {
        "exchange": instrument.exchange,
        "market": instrument.market.value,
        "symbol": instrument.symbol,
        "price": found.value,
        "bid": found.bid,
        "ask": found.ask,
        "as_of": found.as_of if as_json else f"{found.as_of:%Y-%m-%d %H:%M:%S} UTC",
        "age_seconds": round(found.age.total_seconds(), 3),
        "stale": stale,
    }
    show([row], as_json=as_json, nothing="", right=("price", "bid", "ask", "age_seconds"))
    if stale:
        talk().print(f"helios: {symbol} is older than {max_lag:g} s: check that the feed runs", soft_wrap=True)
    return 1 if stale else 0
