"""The reader's side: values with their lag, in one round trip; whatever cannot be trusted is told as not there."""

from collections import defaultdict
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, text
from sqlalchemy.orm import Session

from helios.mirrors.keys import HEARTBEAT, Place, bucket_names
from helios.mirrors.nodes import ask
from helios.mirrors.store import ALIVE
from helios.mirrors.values import PRESENT, voucher
from helios.models import metadata
from helios.models.bookkeeping import mirror_state
from helios.names import table_name

if TYPE_CHECKING:
    from redis import Redis

HOME = text(
    "SELECT current_database()::text, (SELECT system_identifier::text FROM pg_control_system()), "
    f"(SELECT count(*) FROM {table_name(mirror_state)})"
)


@dataclass(frozen=True)
class Seen:
    """What Redis holds of some keys, None where it does not, and how old that may be at most."""

    contents: list[Any]
    lag: timedelta


class Mirror:
    """Reads the mirrors of one schema, of one database, of one server; no other's are taken for them.

    Nor are values that a Helios of another version writes in another form.

    Args:
        client: of the Redis that holds them; answers are bytes (`decode_responses` off). An asynchronous one serves
            within `run_sync` of an asynchronous session.
        place: whose mirrors.
        server: the system identifier of that PostgreSQL.

    """

    def __init__(self, client: "Redis", place: Place, server: str) -> None:
        self.client = client
        self.place = place
        self.voucher = voucher(server).encode()

    @classmethod
    def of(cls, reader: Session | Connection, client: "Redis") -> "Mirror":
        """Make a reader of the mirrors of the database that a session or connection reaches; asked once."""
        database, server, buckets = reader.execute(HOME).one()
        return cls(client, Place(database, str(metadata.schema), bucket_names(max(1, buckets))[0]), server)

    def texts(self, *names: str) -> Seen | None:
        """Read the texts of keys (tickers, klines); None where no relay vouches for them: go to PostgreSQL."""
        return self.seen([("GET", name) for name in names])

    def hashes(self, *names: str) -> Seen | None:
        """Read whole hashes (orders, positions) as dictionaries; one that is not whole is None."""
        seen = self.seen([("HGETALL", name) for name in names])
        return seen and Seen([whole(each) for each in seen.contents], seen.lag)

    def seen(self, commands: list[tuple[str, str]]) -> Seen | None:
        """Ask for contents and heartbeats: at once, or where they are of several buckets one after the other."""
        if self.place.buckets == 1:
            return self.seen_at(self.place.heartbeat, commands)
        by_bucket: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for command in commands:
            by_bucket[heartbeat_of(command[1])].append(command)
        contents: dict[tuple[str, str], Any] = {}
        lag = timedelta(0)
        for heartbeat, some in by_bucket.items():
            seen = self.seen_at(heartbeat, some)
            if seen is None:
                return None
            contents |= dict(zip(some, seen.contents, strict=True))
            lag = max(lag, seen.lag)
        return Seen([contents[command] for command in commands], lag)

    def seen_at(self, heartbeat: str, commands: list[tuple[str, str]]) -> Seen | None:
        """Ask for contents and the heartbeat of a bucket at once.

        The heartbeat comes first: a batch that comes between makes the contents newer than it says, never older.
        """
        told = [("GET", heartbeat), ("PTTL", heartbeat), *commands]
        vouched, lives, *contents = ask(self.client, heartbeat, told)
        # Longer than it ever lives: a node took over whose clock is behind.
        if not 0 < lives <= ALIVE or vouched != self.voucher:
            return None
        return Seen(contents, timedelta(milliseconds=ALIVE - lives))


def heartbeat_of(key: str) -> str:
    """Name the heartbeat of the bucket that a key is in."""
    return f"{key.partition('}:')[0]}}}:{HEARTBEAT}"


def whole(content: dict[bytes, bytes]) -> dict[str, str] | None:
    """Give the fields of a hash; None where the field that says "this is all" is lacking."""
    fields = {name.decode(): value.decode() for name, value in content.items()}
    return fields if fields.pop(PRESENT, None) is not None else None
