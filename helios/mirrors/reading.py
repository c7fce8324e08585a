"""The reader's side: values with their lag, in one round trip; whatever cannot be trusted is told as not there."""

from dataclasses import dataclass
from datetime import timedelta
from inspect import isawaitable
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, text
from sqlalchemy.orm import Session
from sqlalchemy.util import await_only

from helios.mirrors.keys import Place
from helios.mirrors.store import ALIVE
from helios.mirrors.values import PRESENT, voucher
from helios.models import metadata

if TYPE_CHECKING:
    from redis import Redis

HOME = text("SELECT current_database()::text, (SELECT system_identifier::text FROM pg_control_system())")


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
        database, server = reader.execute(HOME).one()
        return cls(client, Place(database, str(metadata.schema)), server)

    def texts(self, *names: str) -> Seen | None:
        """Read the texts of keys (tickers, klines); None where no relay vouches for them: go to PostgreSQL."""
        return self.seen([("GET", name) for name in names])

    def hashes(self, *names: str) -> Seen | None:
        """Read whole hashes (orders, positions) as dictionaries; one that is not whole is None."""
        seen = self.seen([("HGETALL", name) for name in names])
        return seen and Seen([whole(each) for each in seen.contents], seen.lag)

    def seen(self, commands: list[tuple[str, str]]) -> Seen | None:
        """Ask for contents and the heartbeat at once.

        The heartbeat comes first: a batch that comes between makes the contents newer than it says, never older.
        """
        pipeline = self.client.pipeline(transaction=False)
        for command in (("GET", self.place.heartbeat), ("PTTL", self.place.heartbeat), *commands):
            pipeline.execute_command(*command)  # type: ignore[no-untyped-call]
        answers = pipeline.execute()
        vouched, lives, *contents = await_only(answers) if isawaitable(answers) else answers
        if lives <= 0 or vouched != self.voucher:
            return None
        return Seen(contents, timedelta(milliseconds=ALIVE - lives))


def whole(content: dict[bytes, bytes]) -> dict[str, str] | None:
    """Give the fields of a hash; None where the field that says "this is all" is lacking."""
    fields = {name.decode(): value.decode() for name, value in content.items()}
    return fields if fields.pop(PRESENT, None) is not None else None
