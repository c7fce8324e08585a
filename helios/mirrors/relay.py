"""The relay: what changed in PostgreSQL into Redis, batch after batch, and everything anew where the two parted.

A batch is a transaction in which the relay leads: it reads what changed and the rows as they are now, writes them to
Redis with a new random token in one MULTI, then writes the token to PostgreSQL and commits. Equal tokens prove that
both sides stand at the same batch. They are unequal where Redis lost data or went back, PostgreSQL went back or is
another one, or a relay died between the two; then everything is mirrored anew. Reading the rows as they are now, and
not as they were when they changed, makes late entries harmless: whatever changes afterwards has an entry of its own.
"""

import logging
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import psycopg2
from sqlalchemy import Engine

from helios.errors import HeliosError
from helios.mirrors import image
from helios.mirrors.image import Writes
from helios.mirrors.keys import BUCKET, number_of_buckets
from helios.mirrors.nodes import UNREACHED
from helios.mirrors.owners import Owners
from helios.mirrors.source import Point, Source
from helios.mirrors.store import LostError, Store, commands_of, packed
from helios.mirrors.values import FORM, age_of, voucher

if TYPE_CHECKING:
    from redis import Redis

log = logging.getLogger("helios.mirrors")
# What another attempt may overcome, with new connections.
PASSING = (psycopg2.Error, *UNREACHED, LostError)


class ForeignError(HeliosError):
    """Redis holds the mirrors of another server's database of the same name."""


class NewerError(HeliosError):
    """A newer version of Helios relays these mirrors, in a form that this one does not know."""


AT_ONCE = 5_000  # keys and fields of one MULTI, during which Redis answers nobody else
BEAT = 0.1  # seconds between heartbeats while nothing changes


@dataclass
class Counts:
    """What a relay has done since it started."""

    batches: int = 0
    entries: int = 0
    written: int = 0
    rebuilds: int = 0
    repaired: int = 0
    audits: int = 0
    failures: int = 0
    leads: bool = False


class Relay:
    """Carries one bucket's changes from PostgreSQL to Redis; several may run, of which one leads at a time.

    Args:
        engine: of a login that is a member of the group role `relay`, on psycopg2. Its pool is not used.
        client: of the Redis that holds the mirrors.

    """

    def __init__(self, engine: Engine, client: "Redis", bucket: str = BUCKET) -> None:
        self.engine = engine
        self.client = client
        self.bucket = bucket
        self.counts = Counts()
        self.owners = Owners(number_of_buckets(bucket))
        self.source: Source | None = None
        self.store: Store | None = None
        self.proved = False  # that both sides stood at the same batch since the connections were made
        self.beaten = 0.0

    def close(self) -> None:
        """Give the connections up; the next step makes new ones."""
        for side in (self.source, self.store):
            if side is not None:
                side.close()
        self.source = self.store = None
        self.owners = Owners(self.owners.buckets)  # it may be another PostgreSQL by then, or one that went back
        self.proved = self.counts.leads = False

    def every(self) -> "tuple[Relay, ...]":
        """Give the relay of each bucket: this one."""
        return (self,)

    def step(self, *, wait: bool = False, idle: bool = False, told: bool = False) -> bool:
        """Look once, and relay what changed; True where there was something.

        Args:
            idle: stay until something changes, or the next heartbeat is due.
            told: somebody said that something changed, so it is not asked first.
            wait: for another relay that leads; else nothing is done where one does.

        Raises:
            psycopg2.Error, RedisError, LostError, OSError: PostgreSQL or Redis is not reached, or another relay
                took over; nothing is half done, and `close` prepares another attempt.
            ForeignError, NewerError, GoneError: these mirrors are not this relay's to write.

        """
        source, store = self.sides()
        began = time.monotonic()
        if self.proved and not told:
            token, changed, age = source.poll(BEAT - (began - self.beaten) if idle else 0.0)
            if not changed and token == store.token:
                if (seen := time.monotonic() - age) - self.beaten > BEAT:
                    self.beat(store, source, seen)
                return False
            began = time.monotonic()
        with source.leading(wait=wait) as point:
            self.counts.leads = point is not None
            if point is None:
                self.proved = False
                source.refuse_gone()
                return False
            if reason := self.parted(source, store, point):
                self.rebuild_now(source, store, point, reason)
                return True
            self.proved = True
            return self.relay(source, store, point, began)

    def drain(self) -> None:
        """Relay until nothing is left that was committed before the call, waiting for another relay that leads."""
        self.step(wait=True)

    def rebuild(self, reason: str, *, take_over: bool = False) -> None:
        """Mirror everything anew, once this relay leads; with `take_over` also where another server's mirrors are.

        Raises:
            ForeignError: Redis holds the mirrors of another server's database of the same name.

        """
        source, store = self.sides()
        with source.leading(wait=True) as point:
            if point is None:
                raise LostError("mirror_state has lost its row: run `helios mirror buckets 1`")
            store.watch()
            if not take_over:
                refuse_foreign(source, store)
            self.rebuild_now(source, store, point, reason)

    def sides(self) -> tuple[Source, Store]:
        """Give both connections, made where they are not there."""
        if self.source is None:
            self.source = Source(self.engine, self.bucket)
        if self.store is None:
            self.store = Store(self.client, self.source.home.place)
        return self.source, self.store

    def parted(self, source: Source, store: Store, point: Point) -> str | None:
        """Tell why everything has to be mirrored anew; None where both sides stand at the same batch.

        Asked while this relay leads, so that no other one moves the tokens meanwhile.
        """
        refuse_newer(point)
        if store.token != point.token:
            store.watch()
        if store.token is None:
            return "Redis holds no mirrors"
        refuse_foreign(source, store)
        if store.token != point.token:
            return "Redis and PostgreSQL stand at different batches"
        if point.made_from != source.home.server:
            return "the mirrors were made from another server"
        return None if point.form == FORM else "the mirrors were made by another version of Helios"

    def relay(self, source: Source, store: Store, point: Point, began: float) -> bool:
        """Relay what changed since a point."""
        changes, snapshot, entries = source.changes()
        if not entries:
            return False
        if changes.everything:
            self.rebuild_now(source, store, point, "a table or a partition was changed as a whole")
            return True
        waiting: list[Writes] = []
        with source.connection.cursor() as cursor:
            if store.place.buckets > 1:
                self.owners.learn(cursor, changes)
                changes = self.owners.of_bucket(changes, self.bucket)
            read = image.of_changes(cursor, store.place, changes, packed=True)
            with closing(image.ahead(read) if entries > image.AT_ONCE else read) as parts:
                for writes in parts:
                    if waiting and sum(map(len, waiting)) + len(writes) > AT_ONCE:
                        # Half a batch under the old token would stay for good, were PostgreSQL to go back just then.
                        store.write(all_commands(waiting), token=new_token(source, "moving-"))
                        waiting = []
                    waiting.append(writes)
                    self.counts.written += len(writes)
        # Where nothing is of this bucket, Redis stands at the new batch as it did at the one before.
        token = new_token(source) if any(waiting) or store.token != point.token else point.token
        if token != store.token or began - self.beaten > BEAT:
            moved = None if token == store.token else token  # set anew, it would refuse whoever watches it
            store.write(all_commands(waiting), token=moved, voucher=voucher(source.home.server), seen=began)
            self.beaten = began
        source.advance(point, token, snapshot)
        self.counts.batches += 1
        self.counts.entries += entries
        return True

    def rebuild_now(self, source: Source, store: Store, point: Point, reason: str) -> None:
        """Mirror everything anew, while this relay leads.

        First the heartbeat goes, so that no reader takes for fresh what it finds meanwhile.
        """
        began = time.monotonic()
        log.info("mirroring everything anew: %s", reason)
        store.write([packed("DEL", store.place.heartbeat)], token=new_token(source, "rebuilding-"))
        for names in store.found():
            source.snapshot()  # whose only use is that the server sees this relay alive
            if names:
                store.write([packed("UNLINK", *names)])
        read = time.monotonic()
        snapshot = source.all_to_read()
        with closing(image.ahead(image.everything(source.connection, store.place))) as parts:
            for writes in parts:
                store.write(commands_of(writes))
                self.counts.written += len(writes)
        token = new_token(source)
        store.write([], token=token, voucher=voucher(source.home.server), seen=read)
        source.advance(point, token, snapshot)
        source.rebuilt(reason, time.monotonic() - began)
        self.counts.rebuilds += 1
        self.proved, self.beaten = True, time.monotonic()
        log.info("mirrored everything in %.1f s", time.monotonic() - began)

    def beat(self, store: Store, source: Source, began: float) -> None:
        """Say in Redis that both sides still stand at the same batch; where another relay just moved on, it says so."""
        try:
            store.write([], voucher=voucher(source.home.server), seen=began)
        except LostError:
            self.proved = False
        self.beaten = began


def all_commands(of: Iterable[Writes]) -> Iterator[bytes]:
    """Write the commands of all that waits."""
    return chain.from_iterable(map(commands_of, of))


def new_token(source: Source, kind: str = "") -> str:
    """Make a token; it begins with the server whose mirrors it stands for."""
    return f"{source.home.server}:{kind}{secrets.token_hex(8)}"


def refuse_newer(point: Point) -> None:
    """Refuse to touch values of a newer form: an older relay beside a newer one would make them anew in turns."""
    if age_of(point.form) > age_of(FORM):
        raise NewerError(
            f"the mirrors have form {point.form!r}, and this Helios knows up to {FORM!r}: end this one and run the "
            "newer version, or, to go back to this one, end the newer relay and run `helios mirror rebuild`"
        )


def refuse_foreign(source: Source, store: Store) -> None:
    """Refuse to touch the mirrors of another server's database that has the same name."""
    if store.token is not None and store.token.partition(":")[0] != source.home.server:
        place = source.home.place
        raise ForeignError(
            f"Redis holds mirrors of schema {place.schema!r}, database {place.database!r} of another PostgreSQL: "
            "give each its own Redis (REDIS_URL, another number of database does), or, where that server is no more, "
            "run `helios mirror rebuild --take-over`"
        )
