"""One look at the outbox for the relays of all buckets: it waits for what changes, and tells whose it is.

What it tells is a hint that saves the others work: each relay looks for itself too, though not as often.
"""

import select
from typing import Any

from sqlalchemy import Engine

from helios.mirrors import source
from helios.mirrors.keys import bucket_names
from helios.mirrors.owners import Owners
from helios.mirrors.source import CHANNEL, EVERY, SETTINGS, connected, statement, told

SINCE = "(SELECT %(snapshot)s AS snapshot)"
WAIT, CHANGED = (statement(text, newest=SINCE) for text in (source.WAIT, source.CHANGED))
SEEN = "SELECT NULL, pg_current_snapshot()::text, 0"


class Lookout:
    """A connection that sees what changes, and names the buckets of it.

    Args:
        engine: of a login that is a member of the group role `relay`.
        buckets: how many there are.
        listen: wait for NOTIFY; else PostgreSQL itself looks every 3 ms.

    """

    def __init__(self, engine: Engine, buckets: int, *, listen: bool = False) -> None:
        self.engine = engine
        self.buckets = buckets
        self.listens = listen
        self.connection: Any = None
        self.snapshot = ""
        self.owners = Owners(buckets)

    def close(self) -> None:
        """Give the connection up; the next look names all buckets."""
        if self.connection is not None:
            self.connection.close()
        self.connection, self.snapshot, self.owners = None, "", Owners(self.buckets)

    def look(self, longest: float = 0.0) -> set[str]:
        """Name the buckets of what was committed since the last look; all at the first.

        Args:
            longest: how many seconds to wait for something.

        Raises:
            psycopg2.Error: PostgreSQL is not reached.

        """
        first = not self.snapshot
        if self.connection is None:
            self.connect()
        waits = longest > 0 and not first
        if waits and self.listens:
            self.listen(longest)
        with self.connection.cursor() as cursor:
            query = SEEN if first else WAIT + CHANGED if waits and not self.listens else CHANGED
            cursor.execute(query, {"snapshot": self.snapshot, "longest": longest, "every": EVERY})
            changes, self.snapshot, _ = told(cursor)
            self.owners.learn(cursor, changes)
        return set(bucket_names(self.buckets)) if first else self.owners.buckets_of(changes)

    def connect(self) -> None:
        """Connect, and listen where that is wanted."""
        self.connection = connected(self.engine)
        self.connection.autocommit = True
        with self.connection.cursor() as cursor:
            cursor.execute(SETTINGS + (CHANNEL if self.listens else ""))

    def listen(self, longest: float) -> None:
        """Wait until somebody announces a commit, or it has been long enough."""
        if select.select([self.connection], [], [], longest)[0]:
            self.connection.poll()
            self.connection.notifies.clear()
