"""One look at the outbox for the relays of all buckets: it waits for what changes, and tells whose it is.

What it tells is a hint that saves the others work: each relay looks for itself too, though not as often.
"""

import select
from typing import Any

from sqlalchemy import Engine

from helios.mirrors.image import Changes
from helios.mirrors.keys import bucket_names
from helios.mirrors.owners import Owners
from helios.mirrors.source import CHANNEL, EVERY, connected, statement

# As the relay of a single bucket waits and reads, but from a snapshot of its own and not from the newest point's.
WAIT = statement("""
    DO $wait$
    DECLARE
        first bigint := CAST(CAST(pg_snapshot_xmax(CAST(%(snapshot)s AS pg_snapshot)) AS text) AS bigint);
        late bigint[] := ARRAY(SELECT CAST(CAST(each AS text) AS bigint)
                               FROM pg_snapshot_xip(CAST(%(snapshot)s AS pg_snapshot)) AS each);
    BEGIN
        PERFORM set_config('enable_seqscan', 'off', true), set_config('jit', 'off', true);
        WHILE clock_timestamp() < transaction_timestamp() + %(longest)s * interval '1 second' LOOP
            EXIT WHEN (SELECT true FROM {outbox} WHERE xid >= first ORDER BY xid DESC LIMIT 1)
                OR (cardinality(late) > 0 AND (SELECT true FROM {outbox} WHERE xid = ANY (late) ORDER BY xid LIMIT 1));
            PERFORM pg_sleep(%(every)s);
        END LOOP;
    END
    $wait$;
""")
CHANGED = statement("""
    SELECT set_config('enable_seqscan', 'off', true);
    WITH seen AS MATERIALIZED (SELECT pg_current_snapshot()::text AS now)
    SELECT subject, key, NULL FROM (
        SELECT subject, key FROM {outbox}
        WHERE xid >= CAST(CAST(pg_snapshot_xmax(CAST(%(snapshot)s AS pg_snapshot)) AS text) AS bigint)
        UNION
        SELECT subject, key FROM pg_snapshot_xip(CAST(%(snapshot)s AS pg_snapshot)) AS each
        JOIN {outbox} ON xid = CAST(CAST(each AS text) AS bigint)
    ) AS entries
    UNION ALL SELECT NULL, NULL, now FROM seen
""")
SEEN = "SELECT NULL, NULL, pg_current_snapshot()::text"


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
        changes = Changes()
        with self.connection.cursor() as cursor:
            query = SEEN if first else WAIT + CHANGED if waits and not self.listens else CHANGED
            cursor.execute(query, {"snapshot": self.snapshot, "longest": longest, "every": EVERY})
            for subject, key, seen in cursor.fetchall():
                if subject is None:
                    self.snapshot = seen
                else:
                    changes.take(subject, key)
            self.owners.learn(cursor, changes)
        return set(bucket_names(self.buckets)) if first else self.owners.buckets_of(changes)

    def connect(self) -> None:
        """Connect, and listen where that is wanted."""
        self.connection = connected(self.engine)
        self.connection.autocommit = True
        if self.listens:
            with self.connection.cursor() as cursor:
                cursor.execute(CHANNEL)

    def listen(self, longest: float) -> None:
        """Wait until somebody announces a commit, or it has been long enough."""
        if select.select([self.connection], [], [], longest)[0]:
            self.connection.poll()
            self.connection.notifies.clear()
