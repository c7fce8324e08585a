"""What the exchange says, turned into rows: recorded, never refused, and the same in whatever order it comes.

    feed = Feed(create_session_factory(create_engine()), market=Market.SPOT, account="main")
    feed.take(message)         the decoded JSON of Binance, answer or stream, or a dictionary of ccxt
    feed.take_all(messages)    many in one transaction; of a burst of tickers the newest of each symbol

With `redis=` candles that still run are told to Redis, for `Live.klines(..., running=True)`; else they are ignored.
`parse` reads a message without a database. Of what is known but not kept (order books, public trades, balance changes
that a balance follows) `Taken.ignored` says why; a type that nobody knows is refused with its name.
"""

from helios.feed.feed import AsyncFeed, Feed
from helios.feed.parsing import Sender, parse
from helios.feed.recording import Taken
from helios.feed.reports import (
    BalanceReport,
    FillReport,
    Ignored,
    InstrumentReport,
    KlineReport,
    OrderReport,
    Report,
    TickerReport,
)

__all__ = [
    "AsyncFeed",
    "BalanceReport",
    "Feed",
    "FillReport",
    "Ignored",
    "InstrumentReport",
    "KlineReport",
    "OrderReport",
    "Report",
    "Sender",
    "Taken",
    "TickerReport",
    "parse",
]
