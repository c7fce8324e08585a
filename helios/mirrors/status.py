"""How the mirrors do: lag, backlog, who rebuilt them last and why; for people, for programs, for Prometheus."""

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine, text

from helios.errors import SchemaError
from helios.mirrors.keys import BUCKET
from helios.mirrors.relay import Relay
from helios.mirrors.source import NEWEST_POINT, Source, statement
from helios.mirrors.store import ALIVE
from helios.mirrors.values import literal, voucher
from helios.models import mirror_state

if TYPE_CHECKING:
    from redis import Redis

MOST = 1_000_000  # entries that are counted
# What revision 0002 began with, and a dump without these tables' rows leaves out.
STATE = statement("INSERT INTO {state} (bucket, server, form) VALUES ({of}, 0, '')", of=literal(BUCKET))
POINT = statement(
    "INSERT INTO {points} (bucket, number, token, snapshot) VALUES ({of}, 0, 'nothing yet', '1:1:')", of=literal(BUCKET)
)
STANDS = text(
    statement(
        "SELECT EXISTS (SELECT FROM {state} WHERE bucket = {of}), EXISTS (SELECT FROM {points} WHERE bucket = {of})",
        of=literal(BUCKET),
    )
)
STAND = statement(f"""
    SELECT token, relayed_at, number, leader, rebuilt_at, rebuild_reason, rebuild_milliseconds,
           (SELECT count(*) FROM (
               SELECT FROM {{outbox}} WHERE NOT pg_visible_in_snapshot(CAST(CAST(xid AS text) AS xid8),
                                                                      CAST(newest.snapshot AS pg_snapshot))
               LIMIT {MOST}
           ) AS waiting),
           pg_total_relation_size({{outbox_literal}}::regclass) + pg_total_relation_size({{points_literal}}::regclass)
    FROM {NEWEST_POINT} AS newest JOIN {{state}} AS state USING (bucket)
""")


@dataclass(frozen=True, kw_only=True)
class Status:
    """How one bucket does; `lag_seconds` is on Redis's clock, None where no relay has run for a minute."""

    bucket: str
    relayed: bool
    together: bool
    lag_seconds: float | None
    backlog: int
    backlog_bytes: int
    last_batch: int
    last_batch_at: datetime
    rebuilt_at: datetime | None
    rebuilt_by: str | None
    rebuild_reason: str | None
    rebuild_seconds: float | None


def refuse_lost_rows(connection: Connection) -> None:
    """Let a program go on only where PostgreSQL knows where the mirrors stand, as a dump without these rows does not.

    Raises:
        SchemaError: a row is lost; the message holds the SQL that puts it back.

    """
    lost = [row for row, there in zip((STATE, POINT), connection.execute(STANDS).one(), strict=True) if not there]
    if lost:
        raise SchemaError(
            f"schema {mirror_state.schema!r} has lost the rows that say where the mirrors stand: "
            f"run as its owner: {'; '.join(lost)}; and then `helios mirror rebuild`"
        )


def status(engine: Engine, client: "Redis", bucket: str = BUCKET) -> Status:
    """Ask both sides; needs no right but to read.

    Raises:
        psycopg2.Error, RedisError, OSError: PostgreSQL or Redis is not reached.

    """
    source = Source(engine, bucket)
    try:
        token, at, number, leader, rebuilt_at, reason, milliseconds, backlog, size = source.one(STAND)
        place, server = source.home.place, source.home.server
    finally:
        source.close()
    pipeline = client.pipeline(transaction=False)
    for command in (("GET", place.token), ("PTTL", place.heartbeat), ("GET", place.heartbeat)):
        pipeline.execute_command(*command)  # type: ignore[no-untyped-call]
    found, lives, of = pipeline.execute()
    alive = lives > 0 and of == voucher(server).encode()
    return Status(
        bucket=bucket,
        relayed=alive,
        together=found == token.encode(),
        lag_seconds=(ALIVE - lives) / 1000 if alive else None,
        backlog=backlog,
        backlog_bytes=size,
        last_batch=number,
        last_batch_at=at,
        rebuilt_at=rebuilt_at,
        rebuilt_by=leader,
        rebuild_reason=reason,
        rebuild_seconds=None if milliseconds is None else milliseconds / 1000,
    )


METRICS = {
    "batches": "Batches relayed",
    "entries": "Entries of the outbox relayed",
    "written": "Keys and fields written to Redis, or found gone",
    "rebuilds": "Times that everything was mirrored anew",
    "repaired": "Keys written again that Redis had lost or changed by itself",
    "audits": "Times that all keys were compared, slice by slice",
    "failures": "Times that PostgreSQL or Redis failed, or another relay took over",
}


def metrics(relay: Relay, now: float) -> str:
    """Write what a relay has done as Prometheus reads it.

    Args:
        relay: the relay.
        now: the monotonic clock's seconds.

    """
    counts = asdict(relay.counts)
    lines = []
    for name, help_text in METRICS.items():
        lines += [
            f"# HELP helios_mirror_{name}_total {help_text}.",
            f"# TYPE helios_mirror_{name}_total counter",
            f"helios_mirror_{name}_total {counts[name]}",
        ]
    lines += [
        "# HELP helios_mirror_lag_seconds Seconds since this relay knew both sides alike; -1 while it does not.",
        "# TYPE helios_mirror_lag_seconds gauge",
        f"helios_mirror_lag_seconds {now - relay.beaten if relay.proved else -1:.3f}",
    ]
    return "\n".join(lines) + "\n"
