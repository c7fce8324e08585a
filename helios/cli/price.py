"""`helios price`: what an instrument costs now, and how old that is."""

from datetime import timedelta

import click
from redis import Redis

from helios import db, queries, servers
from helios.cli.instruments import exchange_option, market_option, the_instrument
from helios.cli.output import json_option, say, show
from helios.errors import StaleError, UnreachableError
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

    The price is that of the last trade, or the middle of bid and ask where only these are told. The mirror in Redis
    answers where a relay runs, else PostgreSQL.
    """
    settings = Settings.from_environment()
    youngest = None if max_lag is None else timedelta(seconds=max_lag)
    with db.connect(db.create_engine(settings)) as connection:
        instrument = the_instrument(connection, symbol, exchange, market)
        with queries.Live(mirror_client(settings)) as live:
            try:
                found = live.price(connection, (instrument.exchange, instrument.market, symbol), max_lag=youngest)
            except StaleError:
                found = queries.current_price(connection, instrument.id)
    stale = youngest is not None and found.age > youngest
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
        "answered_by": "mirror" if found.mirrored else "postgresql",
    }
    show([row], as_json=as_json, nothing="", right=("price", "bid", "ask", "age_seconds"))
    if stale:
        say(f"helios: {symbol} is older than {max_lag:g} s: check that the feed runs")
    return 1 if stale else 0


def mirror_client(settings: Settings) -> Redis | None:
    """Make a client of the Redis that is set, or of the embedded one if it runs: none is started for a price."""
    runs = settings.redis_url or any(each.running and "postgres" not in each.name for each in servers.status(settings))
    try:
        return db.create_redis(settings) if runs else None
    except UnreachableError:  # of a Redis Cluster; where a single Redis is down, the reader finds out
        return None
