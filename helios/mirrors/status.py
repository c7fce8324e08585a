"""How the mirrors do: lag, backlog, who rebuilt them last and why; for people, for programs, for Prometheus."""

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from sqlalchemy import Engine

from helios.mirrors.keys import BUCKET
from helios.mirrors.nodes import ask
from helios.mirrors.relay import Relay
from helios.mirrors.source import NEWEST_POINT, Source, statement
from helios.mirrors.spread import Relays
from helios.mirrors.store import ALIVE
from helios.mirrors.values import voucher

if TYPE_CHECKING:
    from redis import Redis

LOOKS = 5  # before the two sides are told to be apart
MOST = 1_000_000  # entries that are counted
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


def status(engine: Engine, client: "Redis", bucket: str = BUCKET) -> Status:
    """Ask both sides; needs no right but to read.

    Raises:
        psycopg2.Error, RedisError, OSError: PostgreSQL or Redis is not reached.

    """
    for _ in range(LOOKS):
        found = look(engine, client, bucket)
        if found.together:
            break
    return found


def look(engine: Engine, client: "Redis", bucket: str) -> Status:
    """Ask one side after the other; between the two a relay may have moved on."""
    source = Source(engine, bucket)
    try:
        token, at, number, leader, rebuilt_at, reason, milliseconds, backlog, size = source.one(STAND)
        place, server = source.home.place, source.home.server
    finally:
        source.close()
    told = [("GET", place.token), ("PTTL", place.heartbeat), ("GET", place.heartbeat)]
    found, lives, of = ask(client, place.token, told)
    alive = 0 < lives <= ALIVE and of == voucher(server).encode()
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


def statuses(engine: Engine, client: "Redis") -> list[Status]:
    """Ask both sides about every bucket, as `status` does about one."""
    return [status(engine, client, each.bucket) for each in Relays(engine, client).every()]


def metrics(relay: Relay | Relays, now: float) -> str:
    """Write what a relay has done as Prometheus reads it; of several, each with its bucket as a label.

    Args:
        relay: the relay, or those of all buckets.
        now: the monotonic clock's seconds.

    """
    relays = relay.relays if isinstance(relay, Relays) else (relay,)
    labels = {each: f'{{bucket="{each.bucket}"}}' if len(relays) > 1 else "" for each in relays}
    lines = []
    for name, help_text in METRICS.items():
        lines += [f"# HELP helios_mirror_{name}_total {help_text}.", f"# TYPE helios_mirror_{name}_total counter"]
        lines += [f"helios_mirror_{name}_total{labels[each]} {asdict(each.counts)[name]}" for each in relays]
    lines += [
        "# HELP helios_mirror_lag_seconds Seconds since this relay knew both sides alike; -1 while it does not.",
        "# TYPE helios_mirror_lag_seconds gauge",
    ]
    for each in relays:
        lag = now - each.beaten if each.proved else -1
        lines.append(f"helios_mirror_lag_seconds{labels[each]} {lag:.3f}")
    return "\n".join(lines) + "\n"
