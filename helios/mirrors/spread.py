"""The mirrors of all buckets: a relay for each, run, asked and moved together.

How many there are says mirror_state, so all relays and readers of a database are of one mind.
"""

import logging
import time
from threading import Event, Thread
from typing import TYPE_CHECKING

from sqlalchemy import Engine

from helios import db
from helios.errors import InputError, SchemaError
from helios.mirrors.keys import MOST_BUCKETS, Place, bucket_names
from helios.mirrors.lookout import Lookout
from helios.mirrors.nodes import strays
from helios.mirrors.relay import BEAT, PASSING, Relay
from helios.mirrors.service import APART, FIRST_WAIT, LAST_WAIT, Service
from helios.mirrors.source import GoneError, connected, statement

if TYPE_CHECKING:
    from redis import Redis

log = logging.getLogger("helios.mirrors")
# A bucket is there if both its rows are, which a dump may lack.
BUCKETS = statement("""
    SELECT current_database()::text, {schema}, bucket FROM (SELECT) AS here
    LEFT JOIN {state} ON EXISTS (SELECT FROM {points} AS each WHERE each.bucket = mirror_state.bucket)
""")
SPREAD = statement("SELECT {spread}(%s)")


class Relays:
    """The relays of all buckets of a database's mirrors.

    Args:
        engine: of a login that is a member of the group role `relay`, on psycopg2. Its pool is not used.
        client: of the Redis that holds the mirrors.

    """

    def __init__(self, engine: Engine, client: "Redis") -> None:
        self.engine = engine
        self.client = client
        self.relays: tuple[Relay, ...] = ()
        self.lookout: Lookout | None = None

    def every(self) -> tuple[Relay, ...]:
        """Give the relay of each bucket; which there are is asked once, until `close`.

        Raises:
            psycopg2.Error: PostgreSQL is not reached.
            SchemaError: some bucket's rows are lost, as where a dump without them was restored.

        """
        if not self.relays:
            _, told = where(self.engine)
            names = bucket_names(max(1, len(told)))
            if told != set(names):
                raise SchemaError(
                    "mirror_state or mirror_points has lost a row: run `helios mirror buckets 1` (or how many it shall "
                    "be), and the relay mirrors everything anew"
                )
            self.relays = tuple(Relay(self.engine, self.client, each) for each in names)
        return self.relays

    def close(self) -> None:
        """Give all connections up."""
        for each in (*self.relays, self.lookout):
            if each is not None:
                each.close()
        self.relays, self.lookout = (), None

    def drain(self) -> None:
        """Relay until nothing is left that was committed before the call; buckets of which nothing is are left alone.

        Raises:
            psycopg2.Error, RedisError, LostError, OSError: as of `Relay.step`, once the other buckets are done.

        """
        relays = self.every()
        if len(relays) == 1:
            relays[0].drain()
            return
        if self.lookout is None:
            self.lookout = Lookout(self.engine, len(relays))
        concerned, failed = self.lookout.look(), None
        for each in relays:
            try:
                if each.bucket in concerned:
                    each.drain()
            except PASSING as error:
                failed = failed or error
        if failed:
            raise failed

    def rebuild(self, reason: str, *, take_over: bool = False) -> None:
        """Mirror everything anew, as `Relay.rebuild` does."""
        for each in self.every():
            each.rebuild(reason, take_over=take_over)

    def spread(self, buckets: int) -> None:
        """Have the mirrors stand in so many buckets, and remove the keys of any others; whoever relays makes them anew.

        Readers are sent to PostgreSQL until then.

        Raises:
            InputError: it is not a number of buckets.
            psycopg2.Error, RedisError, OSError: PostgreSQL or Redis is not reached; run it again.

        """
        if not 1 <= buckets <= MOST_BUCKETS:
            raise InputError(f"{buckets} is no number of buckets: choose 1 to {MOST_BUCKETS}")
        wanted = bucket_names(buckets)
        place, told = where(self.engine)
        if told != set(wanted):
            connection = connected(self.engine)
            try:
                with connection, connection.cursor() as cursor:
                    cursor.execute(SPREAD, [list(wanted)])
            finally:
                connection.close()
        self.close()
        for some in strays(self.client, place, wanted):
            pipeline = self.client.pipeline(transaction=False)
            for name in some:
                pipeline.unlink(name)
            pipeline.execute()


class Services:
    """Runs the relays of all buckets until `stop` is set; where the mirrors are spread anew, it goes on with those.

    Args:
        relays: the relays.
        listen: as of `Service`.
        stop: ends it when set.

    """

    def __init__(self, relays: Relays, *, listen: bool = False, stop: Event | None = None) -> None:
        self.relays = relays
        self.listen = listen
        self.stop = stop or Event()

    def run(self) -> None:
        """Relay until `stop` is set; what is down is waited for, with one sentence when it begins and ends.

        Raises:
            HeliosError: a relay must not go on, as where another server's mirrors are in its place.

        """
        pause, waits = FIRST_WAIT, False
        try:
            while not self.stop.is_set():
                try:
                    self.run_all(self.relays.every())
                except GoneError as error:
                    log.warning("the mirrors are spread anew: %s", error)
                    self.relays.close()
                    pause, waits = FIRST_WAIT, False
                except PASSING as error:
                    if not waits:
                        log.warning("the mirrors wait: %s", db.hide(told_by(error), self.relays.engine.url))
                    waits = True
                    self.stop.wait(pause)
                    pause = min(pause * 2, LAST_WAIT)
        finally:
            self.relays.close()

    def run_all(self, relays: tuple[Relay, ...]) -> None:
        """Run relays until `stop` is set, or one of them must not go on."""
        if len(relays) == 1:
            alone = Service(relays[0], listen=self.listen)
            alone.stop = self.stop
            alone.run()
            return
        runs = [Run(each) for each in relays]
        lookout = Lookout(self.relays.engine, len(relays), listen=self.listen)
        for each in runs:
            each.thread.start()
        try:
            while not self.stop.is_set() and not any(each.failure for each in runs):
                tell(lookout, runs)
        finally:
            for each in runs:
                each.service.stop.set()
            for each in runs:
                each.thread.join()
            lookout.close()
        for each in runs:
            if each.failure:
                raise each.failure


class Run:
    """A relay that runs in a thread of its own; `failure` says why it ended, if it did by itself."""

    def __init__(self, relay: Relay) -> None:
        self.service = Service(relay, told=Event())
        self.failure: Exception | None = None
        self.thread = Thread(target=self.work, name=f"helios-mirrors-{relay.bucket}", daemon=True)

    def work(self) -> None:
        """Run the relay."""
        try:
            self.service.run()
        except Exception as error:  # noqa: BLE001 - raised again in the thread that started this one
            self.failure = error


def tell(lookout: Lookout, runs: list[Run]) -> None:
    """Wait a moment for changes, and wake the relays of the buckets they are of."""
    try:
        changed = lookout.look(BEAT)
    except PASSING as error:
        if lookout.connection is not None:  # once, and not again while it is down
            log.warning("changes wait for up to %g s: %s", APART, db.hide(told_by(error), lookout.engine.url))
        lookout.close()
        time.sleep(BEAT)
        return
    for each in runs:
        if each.service.relay.bucket in changed and each.service.told_by is not None:
            each.service.told_by.set()


def told_by(error: BaseException) -> str:
    """Write what an error says in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def where(engine: Engine) -> tuple[Place, set[str]]:
    """Ask where the mirrors stand, and the names of their buckets.

    Raises:
        psycopg2.Error: PostgreSQL is not reached.

    """
    connection = connected(engine)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(BUCKETS)
            found = cursor.fetchall()
    finally:
        connection.close()
    database, schema, _ = found[0]
    return Place(database, schema), {bucket for *_, bucket in found if bucket is not None}
