"""The two logs of a run as one: PostgreSQL's, which holds the lease, and Redis's, where there is a Redis."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import psycopg2
from redis import Redis
from redis.exceptions import RedisClusterException, RedisError
from sqlalchemy import Connection, Table, text
from sqlalchemy.exc import DBAPIError

from helios import db, servers
from helios.errors import HeliosError, UnreachableError
from helios.label.images import RUNS
from helios.mirrors import LostError, Place, Relays
from helios.models import Ticker
from helios.schema.preparation import open_runs
from helios.testing import redis_log, undo
from helios.testing.audit import Unattributed
from helios.testing.audit.keys import RedisAudit
from helios.testing.audit.rows import PostgresAudit
from helios.testing.redis_log.places import patiently, servers_of
from helios.testing.undo import Change
from helios.testing.undo.place import IDENTITY

if TYPE_CHECKING:
    from helios.testing.subject import Subject

TRIES = 100
SHOWN = 4  # tables or keys named in a line
DATABASE = text("SELECT current_database()::text")
VERSION = text("SELECT 'PostgreSQL ' || current_setting('server_version')")


@dataclass(frozen=True)
class Mark:
    """A point to undo back to, on both sides; zero is the run's beginning."""

    postgres: int = 0
    redis: int = 0


@dataclass
class Halves:
    """Both logs, as seen by one direct connection and one plain client (None: no Redis)."""

    connection: Connection
    redis: Redis | None
    owner: str
    place: Place  # of the mirrors: what the relay writes is its own business, and it sets that right by itself
    patience: float  # seconds to wait for a transaction that is still open
    relay: Relays | None = None
    rows: PostgresAudit | None = None
    keys: RedisAudit | None = None
    marked: int = 0  # the latest point, from which on it is looked at what others change

    def begin(self, run: int) -> None:
        """Register a run: first where its lease is."""
        undo.begin(self.connection, run)
        self.marked = undo.mark(self.connection, run, patience=self.patience)
        if self.redis is not None:
            redis_log.begin(self.redis, run, self.owner)

    def mark(self, run: int) -> Mark:
        """Give a point to undo back to."""
        with db.reaching(self.connection.engine.url), reaching_redis():
            self.marked = undo.mark(self.connection, run, patience=self.patience)
            return Mark(self.marked, redis_log.mark(self.redis, run) if self.redis is not None else 0)

    def undo(self, runs: Iterable[int], since: Mark | None = None) -> list[Change]:
        """Undo what runs wrote; where one side fails, the other is undone all the same.

        Raises:
            HeliosError: a side could not be undone; it can be tried again.

        """
        since, chosen = since or Mark(), list(runs)
        failures, changes = [], []
        try:
            with db.reaching(self.connection.engine.url):
                found = undo.undo(self.connection, chosen, since.postgres, patience=self.patience)
                changes += [replace(each, table=each.table.rpartition(".")[2].strip('"')) for each in found]
        except HeliosError as error:
            failures.append(str(error))
        except DBAPIError as error:
            failures.append(f"PostgreSQL said: {' '.join(str(error.orig).split())}")
        try:
            changes += self.undo_keys(chosen, since.redis)
        except HeliosError as error:
            failures.append(str(error))
        try:
            self.follow()
        except HeliosError as error:
            failures.append(str(error))
        if failures:
            raise HeliosError("; ".join(failures))
        return changes

    def follow(self) -> None:
        """Let the mirrors follow what was undone, where there are any; whichever relay leads does no harm.

        Raises:
            HeliosError: the relay of this process fails; the next one sets the mirrors right.

        """
        if self.relay is None or self.redis is None:
            return
        for last in (False, True):  # a server that was restarted meanwhile, or another relay that led, costs one try
            try:
                if any(self.redis.exists(self.place.of(each.bucket).token) for each in self.relay.every()):
                    self.relay.drain()
            except (psycopg2.Error, RedisError, RedisClusterException, LostError, OSError) as error:
                self.relay.close()
                if last:
                    said = " ".join(str(error).split())
                    raise HeliosError(f"the mirrors do not follow what was undone: {said}") from error
            else:
                return

    def undo_keys(self, runs: Iterable[int], since: int) -> list[Change]:
        """Undo what runs wrote to Redis."""
        if self.redis is None:
            return []
        with reaching_redis():
            found = [each for run in runs for each in redis_log.undo(self.redis, run, since)]
        return [Change(f"Redis {each.key}".strip(), each.what, each.count, each.why) for each in found]

    def close(self, run: int) -> None:
        """Take a run out of the registers; last where its lease is.

        Raises:
            HeliosError: a process that outlived the run goes on writing keys.

        """
        if self.redis is not None:
            with reaching_redis():
                for _ in range(TRIES):
                    if not redis_log.close(self.redis, run):
                        break
                    redis_log.undo(self.redis, run)  # somebody labelled has written since
                else:
                    raise HeliosError(f"processes of test run {run} go on writing to Redis: end them, then sweep again")
        undo.close(self.connection, run)

    def forget(self, run: int) -> None:
        """Let stand what a run wrote, and take the run out of the registers.

        Killed in between, rows come back and keys do not: a mirror or a cache is made again from its rows.
        """
        if self.redis is not None:
            with reaching_redis():
                redis_log.forget(self.redis, run)
        undo.forget(self.connection, run)
        self.close(run)

    def dead(self) -> list[int]:
        """List the runs that ended without undoing what they wrote.

        Among them those that only Redis knows: it lost its last moments with their end, or PostgreSQL went back.
        """
        dead = undo.dead(self.connection)
        if self.redis is None:
            return dead
        with reaching_redis():
            known = set(redis_log.runs(self.redis, self.owner))
        return sorted({*dead, *(known.difference(open_runs(self.connection, self.place.schema)))})

    def watch(self, tables: Sequence[Table]) -> None:
        """Look from now on for changes that nobody labelled makes."""
        self.rows = PostgresAudit(self.connection, [each for each in tables if not each.info.get("bookkeeping")])
        if self.redis is not None:
            self.keys = RedisAudit(self.redis, excluding=[self.place.pattern.removesuffix("*")])

    def watch_anew(self) -> None:
        """Forget what was seen."""
        for audit in (self.rows, self.keys):
            if audit is not None:
                audit.begin()

    def undo_and_tell(self, run: int, since: Mark) -> tuple[list[Change], list[str]]:
        """Undo what a run wrote, and tell what others changed: of keys what was seen before it, of rows what after.

        Where another run was at work meanwhile nothing is told: what it wrote, and has undone, cannot be told apart.

        Raises:
            HeliosError: something could not be undone.

        """
        keys = self.keys.report() if self.keys is not None else None
        changes = self.undo([run], since)
        if self.keys is not None:
            self.keys.begin()  # what was just taken back stands in the log no more, and would seem somebody else's
        rows = (
            self.rows.report(undo.transactions(self.connection, run, since.postgres)) if self.rows is not None else None
        )
        if keys is not None and self.redis is not None and patiently(self.redis, partial(self.redis.hlen, RUNS)) > 1:
            keys = None  # they may be keys of another run, which has undone them already
        if rows is not None and undo.beside(self.connection, run, self.marked):
            rows = None
        return changes, [unattributed(each) for each in (keys, rows) if each is not None]

    def versions(self) -> list[str]:
        """Name the servers."""
        found = [str(self.connection.scalar(VERSION))]
        if self.redis is not None:
            info = self.redis.info("server")
            name = "Valkey" if "valkey_version" in info else "Redis"
            masters = len(servers_of(self.redis))
            nodes = f", {masters} masters of a cluster" if masters > 1 else ""
            found.append(f"{name} {info.get('valkey_version', info.get('redis_version'))}{nodes}")
        return found


def unattributed(found: Unattributed) -> str:
    """Tell what nobody labelled changed, and who may have."""
    what = ", ".join(f"{name} {count}" for name, count in list(found.what.items())[:SHOWN])
    more = f" and {len(found.what) - SHOWN} more" if len(found.what) > SHOWN else ""
    who = ", ".join(found.candidates[:SHOWN]) or "somebody who is gone"
    store = "Redis keys" if found.store == "redis" else "rows"
    blind = f" ({found.blind})" if found.blind else ""
    return f"somebody without the label changed {store} ({what}{more}){blind}, which stay; one of: {who}"


@contextmanager
def joined(subject: Subject, connection: Connection) -> Iterator[Halves]:
    """Join both sides: the PostgreSQL of a direct connection, and the Redis of the settings, if there is one."""
    owner = f"{connection.scalar(IDENTITY)}/{subject.schema}"
    client = plain_client(subject)
    place = Place(str(connection.scalar(DATABASE)), subject.schema)
    halves = Halves(connection, client, owner, place, subject.settings.helios_undo_patience)
    if client is not None and subject.helios and subject.schema == Ticker.__table__.schema:
        halves.relay = Relays(connection.engine, client)
    try:
        yield halves
    finally:
        if halves.relay is not None:
            halves.relay.close()
        if halves.keys is not None:
            halves.keys.close()
        if client is not None:
            client.close()


def plain_client(subject: Subject) -> Redis | None:
    """Make a client that records nothing; None where no Redis is set, and either none is embedded or none is wanted."""
    settings = subject.settings
    if settings.redis_url is None and not (subject.helios and embedded(subject)):
        return None
    with reaching_redis():
        client = db.create_unlabelled_redis(settings)
        client.ping()
    return client


def embedded(subject: Subject) -> bool:
    """Tell whether an embedded Redis could serve."""
    try:
        servers.available(subject.settings)
    except HeliosError:
        return False
    return True


@contextmanager
def reaching_redis() -> Iterator[None]:
    """Turn what redis-py says into a sentence.

    Raises:
        UnreachableError: the server does not answer, or refuses.

    """
    try:
        yield
    except (RedisError, RedisClusterException) as error:
        raise UnreachableError(f"Redis said: {error}; check REDIS_URL, and that the server runs") from None
