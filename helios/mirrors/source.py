"""The side of PostgreSQL: the outbox and where the mirrors stand, on one connection that keeps no state.

The relay that holds the bucket's row of mirror_state leads. It is never updated for a batch: each batch adds a row to
mirror_points, because an old snapshot that somebody holds open would keep every version of an updated row.
"""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine

from helios import db
from helios.errors import HeliosError
from helios.mirrors import values
from helios.mirrors.image import Changes, is_sharded
from helios.mirrors.keys import Place
from helios.mirrors.values import FORM, SCHEMA, literal
from helios.models.bookkeeping import mirror_outbox, mirror_points, mirror_state
from helios.names import function_name, quoted, table_name

NEEDS = "relays of the mirrors, of which one leads at a time,"
LONGEST_IDLE = 10  # seconds that a leader may do nothing in its transaction, stopped or stuck, before another one leads
EVERY = 0.003  # seconds between two looks of the server, where it is asked to wait
TOO_BIG = 1 << 20  # bytes of outbox and points that are worth the lock under which they are emptied
NAMES = {
    "outbox": table_name(mirror_outbox),
    "points": table_name(mirror_points),
    "state": table_name(mirror_state),
    "outbox_literal": literal(table_name(mirror_outbox)),
    "points_literal": literal(table_name(mirror_points)),
    "empty": function_name(mirror_outbox.schema, "empty_mirror_outbox"),
    "spread": function_name(mirror_outbox.schema, "spread_mirrors"),
    "schema": literal(str(mirror_outbox.schema)),
    "channel": quoted(f"helios_mirror_{mirror_outbox.schema}"[:63]),
    "form": literal(FORM),
    "idle": literal(f"{LONGEST_IDLE}s"),
    "bucket": "%(bucket)s",
}


def statement(text: str, **more: str) -> str:
    """Fill the tables' names in."""
    return text.format(**{**NAMES, **more})


NEWEST_POINT = "(SELECT * FROM {points} WHERE bucket = {bucket} ORDER BY number DESC LIMIT 1)"
PLACE = statement("""
    SELECT current_database()::text, {schema}, (SELECT system_identifier::text FROM pg_control_system())
    FROM {state} WHERE bucket = %(bucket)s
""")
# A look at the index for each half: EXISTS would read the whole table, of which the server keeps no statistics.
POLL = """
    SELECT token, coalesce(current_setting('helios.mirror_waited', true), '0'), coalesce(
        (SELECT true FROM {outbox}
         WHERE xid >= CAST(CAST(pg_snapshot_xmax(CAST(snapshot AS pg_snapshot)) AS text) AS bigint)
         ORDER BY xid DESC LIMIT 1),
        (SELECT true FROM pg_snapshot_xip(CAST(snapshot AS pg_snapshot)) AS each
         WHERE EXISTS (SELECT FROM {outbox} WHERE xid = CAST(CAST(each AS text) AS bigint)) LIMIT 1),
        false)
    FROM {newest} AS newest
"""
# The server itself looks every few milliseconds, with plans that it keeps meanwhile: a tenth of what it costs to be
# asked as often. Nothing is left of it in the session, so it may go through a pooler.
WAIT = """
    DO $wait$
    DECLARE
        newest record;
        late bigint[];
    BEGIN
        SELECT CAST(CAST(pg_snapshot_xmax(CAST(snapshot AS pg_snapshot)) AS text) AS bigint) AS xmax, snapshot
            INTO newest FROM {newest} AS newest;
        late := ARRAY(SELECT CAST(CAST(each AS text) AS bigint)
                      FROM pg_snapshot_xip(CAST(newest.snapshot AS pg_snapshot)) AS each);
        WHILE clock_timestamp() < transaction_timestamp() + %(longest)s * interval '1 second' LOOP
            EXIT WHEN (SELECT true FROM {outbox} WHERE xid >= newest.xmax ORDER BY xid DESC LIMIT 1)
                OR (cardinality(late) > 0
                    AND (SELECT true FROM {outbox} WHERE xid = ANY (late) ORDER BY xid LIMIT 1));
            PERFORM pg_sleep(%(every)s);
        END LOOP;
        PERFORM set_config('helios.mirror_waited',
                           CAST(extract(epoch FROM clock_timestamp() - transaction_timestamp()) AS text), true);
    END
    $wait$;
"""
# For as long as the connection lives. Moments are written in UTC. Numbers are found by index: the server keeps no
# statistics of the outbox, and what was planned while it was empty has to hold when it is full. Without JIT: with a
# hundred partitions it compiles for half a minute what runs for a millisecond.
SETTINGS = """
    SET TimeZone TO 'UTC'; SET DateStyle TO ISO; SET jit TO off; SET enable_seqscan TO off;
    SET plan_cache_mode TO force_generic_plan;
"""
# Two statements in one round trip. The second sees what was committed before the lock was had; the first may not.
# A select list is computed before its rows are locked: only that of an outer query tells that the lock is held.
LEAD = """
    WITH held AS MATERIALIZED (SELECT bucket FROM {state} WHERE bucket = {bucket} FOR UPDATE {skip})
    SELECT -- a token that a crash loses costs a rebuild, no data
           set_config('synchronous_commit', 'off', true),
           set_config('idle_in_transaction_session_timeout', {idle}, true),
           set_config('helios.mirror_leads', bucket, true)
    FROM held
"""
POINT = """
    SELECT token, number, server::text, form FROM {newest} AS newest JOIN {state} USING (bucket)
    WHERE current_setting('helios.mirror_leads', true) = bucket
"""
# What a snapshot, the newest point's, did not hold: what began after it, and what was under way then. The keys of a
# subject come as one text, which takes half the time of a row each; none has a line break in it.
CHANGED = """
    WITH seen AS MATERIALIZED (SELECT pg_current_snapshot()::text AS now)
    SELECT subject, string_agg(key, E'\\n'), count(*) FROM (
        SELECT subject, key FROM {newest} AS newest JOIN {outbox}
            ON xid >= CAST(CAST(pg_snapshot_xmax(CAST(snapshot AS pg_snapshot)) AS text) AS bigint)
        UNION
        SELECT subject, key FROM {newest} AS newest, pg_snapshot_xip(CAST(snapshot AS pg_snapshot)) AS each
        JOIN {outbox} ON xid = CAST(CAST(each AS text) AS bigint)
    ) AS entries GROUP BY subject
    UNION ALL SELECT NULL, now, 0 FROM seen
"""
ADVANCE = "INSERT INTO {points} (bucket, number, token, snapshot) VALUES ($1, $2, $3, $4)"
# What is asked with each look and each batch is planned once for a connection; planning costs more than running it.
PREPARED = {
    "lead (text)": LEAD.replace("{skip}", ""),
    "lead_or_not (text)": LEAD.replace("{skip}", "SKIP LOCKED"),
    "point (text)": POINT,
    "poll (text)": POLL,
    "changed (text)": CHANGED,
    "advance (text, bigint, text, text)": ADVANCE,
}
PREPARE = (
    SETTINGS
    + values.PREPARE
    + ";".join(
        statement(f"PREPARE helios_{name} AS {text}", bucket="$1", newest=statement(NEWEST_POINT, bucket="$1"))
        for name, text in PREPARED.items()
    )
)
LEAD_OR_WAIT = "EXECUTE helios_lead (%(bucket)s); EXECUTE helios_point (%(bucket)s)"
LEAD_OR_NOT = "EXECUTE helios_lead_or_not (%(bucket)s); EXECUTE helios_point (%(bucket)s)"
SINCE = "EXECUTE helios_changed (%(bucket)s)"
NEXT_POINT = "EXECUTE helios_advance (%(bucket)s, %(number)s, %(token)s, %(snapshot)s)"
POLL_NOW = "EXECUTE helios_poll (%(bucket)s)"
WAIT_AND_POLL = statement(WAIT, newest=statement(NEWEST_POINT)) + POLL_NOW
REBUILT = statement("""
    UPDATE {state} SET server = (SELECT system_identifier FROM pg_control_system()), form = {form},
        leader = %(leader)s, rebuilt_at = clock_timestamp(), rebuild_reason = %(reason)s,
        rebuild_milliseconds = %(milliseconds)s
    WHERE bucket = %(bucket)s
""")
SIZE = statement("""
    SELECT pg_total_relation_size({outbox_literal}::regclass) + pg_total_relation_size({points_literal}::regclass)
""")
EMPTY = statement("SELECT {empty}()")
CHANNEL = statement("LISTEN {channel}")
# A notification that a crash loses is no loss, and so waits for no disk.
CALL = statement("BEGIN; SET LOCAL synchronous_commit TO off; NOTIFY {channel}; COMMIT")
PATIENCE = "SET LOCAL lock_timeout TO '2s'"  # for another relay that leads
READS_ALL = "SET LOCAL enable_seqscan TO on"
# Of what is committed here and not on the workers of Citus yet.
SETTLED = f"SELECT {SCHEMA}.await_klines()"
SNAPSHOT = statement("SELECT pg_current_snapshot()::text")


class GoneError(HeliosError):
    """There is no such bucket: the mirrors were spread over another number of them."""


@dataclass(frozen=True)
class Point:
    """Where the mirrors stand, as PostgreSQL knows it; which server and form of values they were made from and in."""

    token: str
    number: int
    made_from: str
    form: str


@dataclass(frozen=True)
class Home:
    """Which database this is, of which server."""

    place: Place
    server: str


class Source:
    """A connection to PostgreSQL; `home` tells where it leads to."""

    def __init__(self, engine: Engine, bucket: str) -> None:
        self.bucket = {"bucket": bucket}
        self.connection = connected(engine)
        try:
            self.connection.autocommit = True
            db.refuse_pooler(self.connection, engine.url, NEEDS)
            database, schema, server = self.refuse_gone()
            self.run(PREPARE)
        except BaseException:
            self.close()
            raise
        self.home = Home(Place(database, schema, bucket), server)

    def close(self) -> None:
        """Give the connection up; a transaction that is open is rolled back."""
        self.connection.close()

    def one(self, query: str, **values: object) -> Any:  # noqa: ANN401 - a row of any kind
        """Ask for a row; None where there is none."""
        with self.connection.cursor() as cursor:
            cursor.execute(query, {**self.bucket, **values})
            return cursor.fetchone()

    def run(self, command: str, **values: object) -> None:
        """Do what gives no rows."""
        with self.connection.cursor() as cursor:
            cursor.execute(command, {**self.bucket, **values})

    def refuse_gone(self) -> Any:  # noqa: ANN401 - a row
        """Ask where this is.

        Raises:
            GoneError: there is no such bucket, any more or at all.

        """
        found = self.one(PLACE)
        if found is None:
            raise GoneError(f"mirror_state has no bucket {self.bucket['bucket']!r}: the mirrors are spread otherwise")
        return found

    def poll(self, longest: float = 0.0) -> tuple[str, bool, float]:
        """Tell the newest point's token, whether anything changed since, and how long ago that was so at most.

        Args:
            longest: how many seconds to wait for a change; the server looks meanwhile.

        """
        began = time.monotonic()
        found = self.one(WAIT_AND_POLL, longest=longest, every=EVERY) if longest > 0 else self.one(POLL_NOW)
        took = time.monotonic() - began
        if found is None:
            self.refuse_gone()  # else the points were just emptied: who looked before sees none
            return "", True, 0.0
        token, waited, changed = found
        return token, changed, took - min(float(waited or 0), took)

    @contextmanager
    def leading(self, *, wait: bool = False) -> Iterator[Point | None]:
        """Lead for a transaction, committed at the end; None where another relay leads and `wait` is not set."""
        self.connection.autocommit = False
        try:
            if wait:
                self.run(PATIENCE)
            stands = self.one(LEAD_OR_WAIT if wait else LEAD_OR_NOT)
            yield Point(*stands) if stands else None
            self.connection.commit()
        finally:
            if not self.connection.closed:
                self.connection.rollback()
                self.connection.autocommit = True

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Read in a transaction, without leading."""
        self.connection.autocommit = False
        try:
            self.run(READS_ALL)
            yield
        finally:
            if not self.connection.closed:
                self.connection.rollback()
                self.connection.autocommit = True

    def changes(self) -> tuple[Changes, str, int]:
        """Read what changed since the newest point, the snapshot it was seen in, and how many entries that were."""
        with self.connection.cursor() as cursor:
            cursor.execute(SINCE, self.bucket)
            changes, snapshot, entries = told(cursor)
        if changes.series:
            self.settle()
        return changes, snapshot, entries

    def settle(self) -> None:
        """Wait until all candles can be read of which the outbox tells; only those on workers of Citus come later."""
        with self.connection.cursor() as cursor:
            if is_sharded(cursor):
                cursor.execute(SETTLED)

    def snapshot(self) -> str:
        """Take a snapshot: what is in it is seen by everything that is read afterwards."""
        return str(self.one(SNAPSHOT)[0])

    def all_to_read(self) -> str:
        """Take a snapshot before everything is read, which tables are then read as a whole for."""
        self.run(READS_ALL)
        snapshot = self.snapshot()
        self.settle()
        return snapshot

    def advance(self, point: Point, token: str, snapshot: str) -> None:
        """Write where the mirrors stand now; it counts once the transaction is committed."""
        self.run(NEXT_POINT, number=point.number + 1, token=token, snapshot=snapshot)

    def rebuilt(self, reason: str, seconds: float) -> None:
        """Write that everything was mirrored anew."""
        self.run(REBUILT, reason=reason, milliseconds=round(seconds * 1000), leader=here())

    def empty(self) -> bool:
        """Empty outbox and points where they have grown; False where they are small, in use, or much waits."""
        return bool(self.one(SIZE)[0] > TOO_BIG and self.one(EMPTY)[0])


def told(cursor: Any) -> tuple[Changes, str, int]:  # noqa: ANN401 - a driver's cursor
    """Read what CHANGED tells: the changes, the snapshot they were seen in, and how many entries they were."""
    changes, snapshot, entries = Changes(), "", 0
    for subject, text, number in cursor.fetchall():
        if subject is None:
            snapshot = text
        else:
            changes.take(subject, text.split("\n"))
            entries += number
    return changes, snapshot, entries


def connected(engine: Engine) -> Any:  # noqa: ANN401 - a driver's connection
    """Connect as the engine does, past its pool."""
    pooled = engine.raw_connection()
    connection = pooled.dbapi_connection
    pooled.detach()
    return connection


def here() -> str:
    """Name this process."""
    return f"{socket.gethostname()} process {os.getpid()}"
