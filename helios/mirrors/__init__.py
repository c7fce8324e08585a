"""Mirrors in Redis of what readers cannot wait for: tickers, the newest candles, open orders, positions.

Triggers (revision 0002) write what changed to an outbox, in the writing transaction; a relay carries it over.

Writing side::

    relays = Relays(engine, client)               # of all buckets, of which a single Redis has one
    Services(relays).run()                        # `helios mirror run`; relays until .stop is set
    relays.rebuild("asked for")                   # everything anew
    relays.spread(16)                             # over so many buckets
    check(relays, wait=10)                        # -> Comparison(differences, compared, seconds), or BehindError
    statuses(engine, client)                      # -> [Status(bucket, lag_seconds, backlog, together, ...)]
    follow(session_factory)                       # commits of its sessions are in Redis when commit() returns
    announce(session_factory)                     # commits wake the relay that runs with --listen
    publish_candles(mirror, {series: candle})     # running candles, ten seconds long: Feed(..., redis=client) does it

Reading side::

    mirror = Mirror.of(session, client)           # asks PostgreSQL once who it is; keep it
    key = mirror.place.key("ticker", "binance", "spot", "BTCUSDT")
    seen = mirror.texts(key)                      # one round trip; None: no relay vouches for anything
    seen.lag                                      # timedelta: the contents are PostgreSQL's of so long ago, or newer
    seen.contents[0]                              # bytes, or None: not there, which is never "none": go to PostgreSQL

Keys, by `Place.key(table, *natural key)`:

- `ticker` exchange, market, symbol: JSON object of the columns of `tickers`
- `klines` exchange, market, symbol, interval: at most `values.NEWEST` lines of `values.CANDLE`, oldest first; fewer
  lines than asked for do not say that the series has no more: go to PostgreSQL, unless NEWEST or more were asked for
- `orders` exchange, account name: hash, order id -> JSON object of the columns of `orders`, market and symbol; the open
  ones only. Read it by `Mirror.hashes`, which gives None where the hash is not whole
- `positions` exchange, account name: hash, `instrument id|side` -> JSON object of the columns of `positions`, market,
  symbol; flat ones too
- `running` exchange, market, symbol, interval: `values.voucher`, then one line of `values.CANDLE`; outside the
  heartbeat's promise

In JSON exact numbers are texts, moments ISO 8601 in UTC, what is not told null; in lines open_time is milliseconds.
"""

from helios.mirrors.candles import publish_candles, read_candle
from helios.mirrors.checking import BehindError, Comparison, Difference, check
from helios.mirrors.following import Follower, announce, follow
from helios.mirrors.keys import Place
from helios.mirrors.reading import Mirror, Seen
from helios.mirrors.relay import ForeignError, NewerError, Relay
from helios.mirrors.service import Service
from helios.mirrors.source import NEEDS, GoneError
from helios.mirrors.spread import Relays, Services
from helios.mirrors.status import Status, metrics, status, statuses
from helios.mirrors.store import CLUSTER_COMMANDS, READER_COMMANDS, RELAY_COMMANDS, LostError

__all__ = [
    "CLUSTER_COMMANDS",
    "NEEDS",
    "READER_COMMANDS",
    "RELAY_COMMANDS",
    "BehindError",
    "Comparison",
    "Difference",
    "Follower",
    "ForeignError",
    "GoneError",
    "LostError",
    "Mirror",
    "NewerError",
    "Place",
    "Relay",
    "Relays",
    "Seen",
    "Service",
    "Services",
    "Status",
    "announce",
    "check",
    "follow",
    "metrics",
    "publish_candles",
    "read_candle",
    "status",
    "statuses",
]
