"""Names of the mirrors' keys in Redis: `helios:<database>.<schema>:{<bucket>}:<table>:<natural key>`.

The natural key is what people call a thing: exchange, market and symbol of an instrument; exchange and name of an
account. Whatever is no letter, digit or one of `_.-~` is written as %XX, so no name can break out of its place.

A single Redis holds one bucket. A Redis Cluster can spread several, each with its own token and heartbeat; which one a
key is in, the natural key of the instrument or account alone tells. A bucket's name tells how many there are: of
another number, all have other names.
"""

import binascii
import zlib
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import count
from urllib.parse import quote, unquote

TICKER, KLINES, ORDERS, POSITIONS, RUNNING = "ticker", "klines", "orders", "positions", "running"
TOKEN, HEARTBEAT = "token", "heartbeat"
BUCKET = "0"  # the name of the only one
MOST_BUCKETS = 64  # each costs the relay a thread and a connection to either side
SLOTS = 1 << 14  # of a Redis Cluster

Name = tuple[str, ...]


@dataclass(frozen=True, order=True)
class Key:
    """What a key is of: its table, and the natural key, such as ("ticker", ("binance", "spot", "BTCUSDT"))."""

    table: str
    name: Name


@dataclass(frozen=True)
class Place:
    """Where the mirrors of one schema stand in Redis; two schemas, or two databases, have no key in common.

    `bucket` is the one whose token and heartbeat are named; `key` names keys of all.
    """

    database: str
    schema: str
    bucket: str = BUCKET

    @property
    def buckets(self) -> int:
        """Tell among how many buckets the keys are spread."""
        return number_of_buckets(self.bucket)

    def of(self, bucket: str) -> "Place":
        """Give another bucket's."""
        return self if self.bucket == bucket else replace(self, bucket=bucket)

    def at(self, name: Name) -> "Place":
        """Give the bucket that holds what is of an instrument or account, by its name or one that begins with it."""
        return self if self.bucket == BUCKET else self.of(bucket_of(name[:3], self.buckets))

    def holds(self, name: Name) -> bool:
        """Tell whether what is of an instrument or account is in this bucket."""
        return self.bucket == BUCKET or self.bucket == bucket_of(name[:3], self.buckets)

    @property
    def prefix(self) -> str:
        """Begin every key of the bucket; the braces make a Redis Cluster keep them together."""
        return f"helios:{escaped(self.database)}.{self.schema}:{{{self.bucket}}}:"

    @property
    def pattern(self) -> str:
        """Match every key of the schema, in all buckets, as an ACL's `~` and SCAN's MATCH do."""
        return f"helios:{escaped(self.database)}.{self.schema}:*"

    @property
    def token(self) -> str:
        """Name the key of the token, which tells at which batch the bucket stands."""
        return f"{self.prefix}{TOKEN}"

    @property
    def heartbeat(self) -> str:
        """Name the key of the heartbeat: its remaining time to live tells how old all the rest may be."""
        return f"{self.prefix}{HEARTBEAT}"

    def key(self, table: str, *name: str) -> str:
        """Name a key, as in `place.key("klines", "binance", "spot", "BTCUSDT", "1m")`."""
        return f"{self.at(name).prefix}{table}:{joined(name)}"

    def parse(self, key: str) -> Key | None:
        """Tell what a key is of; None for one that is no mirror of a row: token, heartbeat, a running candle."""
        table, _, name = key.removeprefix(self.prefix).partition(":")
        if table not in PARTS or not key.startswith(self.prefix):
            return None
        parts = tuple(unquote(part) for part in name.split(":"))
        return Key(table, parts) if len(parts) == PARTS[table] else None


PARTS = {TICKER: 3, KLINES: 4, ORDERS: 2, POSITIONS: 2}


@cache
def bucket_names(buckets: int) -> tuple[str, ...]:
    """Name all buckets, of so many; each stands in its own part of a Redis Cluster's slots, so they spread evenly."""
    if buckets == 1:
        return (BUCKET,)
    return tuple(bucket_name(number, buckets) for number in range(buckets))


def bucket_name(number: int, buckets: int) -> str:
    """Find a name whose slot lies in its share of all slots."""
    names = (f"{buckets}x{number}x{salt}" for salt in count())
    return next(each for each in names if slot_of(each) * buckets // SLOTS == number)


@cache
def number_of_buckets(bucket: str) -> int:
    """Tell of how many buckets one is, by its name."""
    return 1 if bucket == BUCKET else int(bucket.partition("x")[0])


def slot_of(tag: str) -> int:
    """Tell in which slot a Redis Cluster keeps the keys that have a tag in braces."""
    return binascii.crc_hqx(tag.encode(), 0) % SLOTS


@lru_cache(1 << 17)
def bucket_of(name: Name, buckets: int) -> str:
    """Name the bucket of an instrument or account; the same in every process, for ever."""
    return bucket_names(buckets)[zlib.crc32(joined(name).encode()) % buckets]


def is_heartbeat(key: str) -> bool:
    """Tell whether a key is a heartbeat, of whatever database's mirrors: a relay that lives renews it all the time."""
    return key.startswith("helios:") and key.endswith(f":{HEARTBEAT}") and key.count(":") == 3  # noqa: PLR2004 - database, bucket


def escaped(name: str) -> str:
    """Write a name so that it holds neither a colon, a brace, a star nor a blank."""
    return quote(name, safe="")


@lru_cache(1 << 17)
def joined(name: Name) -> str:
    """Write a natural key."""
    return ":".join(map(escaped, name))
