"""Names of the mirrors' keys in Redis: `helios:<database>.<schema>:{<bucket>}:<table>:<natural key>`.

The natural key is what people call a thing: exchange, market and symbol of an instrument; exchange and name of an
account. Whatever is no letter, digit or one of `_.-~` is written as %XX, so no name can break out of its place.
"""

from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote, unquote

TICKER, KLINES, ORDERS, POSITIONS, RUNNING = "ticker", "klines", "orders", "positions", "running"
TOKEN, HEARTBEAT = "token", "heartbeat"
BUCKET = "0"  # a single Redis holds one; a Redis Cluster can spread several, each with its own token and heartbeat

Name = tuple[str, ...]


@dataclass(frozen=True)
class Key:
    """What a key is of: its table, and the natural key, such as ("ticker", ("binance", "spot", "BTCUSDT"))."""

    table: str
    name: Name


@dataclass(frozen=True)
class Place:
    """Where the mirrors of one schema stand in Redis; two schemas, or two databases, have no key in common."""

    database: str
    schema: str
    bucket: str = BUCKET

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
        return f"{self.prefix}{table}:{joined(name)}"

    def parse(self, key: str) -> Key | None:
        """Tell what a key is of; None for one that is no mirror of a row: token, heartbeat, a running candle."""
        table, _, name = key.removeprefix(self.prefix).partition(":")
        if table not in PARTS or not key.startswith(self.prefix):
            return None
        parts = tuple(unquote(part) for part in name.split(":"))
        return Key(table, parts) if len(parts) == PARTS[table] else None


PARTS = {TICKER: 3, KLINES: 4, ORDERS: 2, POSITIONS: 2}


def escaped(name: str) -> str:
    """Write a name so that it holds neither a colon, a brace, a star nor a blank."""
    return quote(name, safe="")


@lru_cache(1 << 17)
def joined(name: Name) -> str:
    """Write a natural key."""
    return ":".join(map(escaped, name))
