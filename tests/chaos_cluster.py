"""Mirrors on a Redis Cluster whose masters are killed: `python tests/chaos_cluster.py KILLS [--seed N] [--buckets N]`.

Beside a writer and readers, a relay mirrors to six nodes. Again and again a master is killed with SIGKILL, its replica
takes over, and the old master comes back, now and then before its replica noticed: empty. Measured is how long it takes
until the mirror of every price is fresh again. Meanwhile no reader may get a price that is older than it allows; after
each kill both sides must be equal. Exit status 1 where they are not. The suite does it twice.
"""

import argparse
import contextlib
import random
import shutil
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import own_servers
from cluster import SLOTS, Cluster, redis_cluster
from installation import finish, start, variables
from mirroring import SCHEMA, Scene, scene_of
from server_user import until
from sqlalchemy import Connection

from helios import db, mirrors, queries
from helios.mirrors.nodes import UNREACHED
from helios.mirrors.patience import impatient
from helios.settings import Settings

INSTRUMENTS = 30
LAST_OF_FIVE = 4
MAX_LAG = timedelta(seconds=0.5)
SYMBOLS = [f"S{number}" for number in range(INSTRUMENTS)]


class Trading:
    """Prices that only rise, written and read; it knows what a reader may get at any moment."""

    def __init__(self, scene: Scene, settings: Settings) -> None:
        self.scene, self.settings = scene, settings
        self.committed: dict[str, list[tuple[float, int]]] = {each: [(0.0, 0)] for each in SYMBOLS}
        self.begun = dict.fromkeys(SYMBOLS, 0)
        self.wrong: list[str] = []
        self.reads = {True: 0, False: 0}  # by the mirror; by PostgreSQL
        self.stop, self.paused, self.idle = threading.Event(), threading.Event(), threading.Event()
        self.threads = [threading.Thread(target=self.work, args=(each,)) for each in (self.write, self.read)]

    def begin(self) -> None:
        """Make the instruments, and begin."""
        named = ", ".join(f"('binance', 'spot', '{each}')" for each in SYMBOLS)
        self.scene.run(
            f"INSERT INTO {SCHEMA}.accounts (exchange, market, name) VALUES ('binance', 'spot', 'main')",
            f"INSERT INTO {SCHEMA}.instruments (exchange, market, symbol) VALUES {named}",
            f"INSERT INTO {SCHEMA}.tickers (instrument_id, last_price, event_at) "
            f"SELECT id, 1, now() FROM {SCHEMA}.instruments WHERE symbol LIKE 'S%'",
        )
        for each in self.threads:
            each.start()

    def end(self) -> None:
        """End."""
        self.stop.set()
        for each in self.threads:
            each.join()

    def work(self, what: Any) -> None:
        """Do something again and again; a failure is wrong too."""
        try:
            with self.scene.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                what(connection)
        except Exception as error:  # noqa: BLE001 - told at the end
            self.wrong.append(repr(error))

    def write(self, connection: Connection) -> None:
        """Raise one price after the other."""
        while not self.stop.is_set():
            if self.paused.is_set():
                self.idle.set()
                time.sleep(0.01)
                continue
            self.idle.clear()
            for symbol in random.sample(SYMBOLS, 5):
                value = self.begun[symbol] = self.begun[symbol] + 1
                connection.exec_driver_sql(
                    f"UPDATE {SCHEMA}.tickers SET last_price = {value} FROM {SCHEMA}.instruments AS i "
                    f"WHERE i.id = instrument_id AND symbol = '{symbol}'"
                )
                self.committed[symbol].append((time.monotonic(), value))
            time.sleep(0.01)

    def read(self, connection: Connection) -> None:
        """Read one price after the other; each at least as new as the reader asked for, and none of the future."""
        live = queries.Live(db.create_redis(self.settings), max_lag=MAX_LAG)
        while not self.stop.is_set():
            symbol = random.choice(SYMBOLS)  # noqa: S311 - chance, not secrecy
            began = time.monotonic()
            price = live.price(connection, ("binance", "spot", symbol))
            oldest = began - (MAX_LAG.total_seconds() if price.mirrored else 0.0)
            least = next((value for at, value in reversed(self.committed[symbol]) if at <= oldest), 0)
            self.reads[price.mirrored] += 1
            if not least <= price.value <= max(1, self.begun[symbol]):
                self.wrong.append(f"{symbol}: {price.value} (mirrored: {price.mirrored}), not {least}")
            time.sleep(0.001)

    @contextlib.contextmanager
    def still(self) -> Iterator[None]:
        """Let the writer pause."""
        self.paused.set()
        until(self.idle.is_set)
        yield
        self.paused.clear()


class Fresh:
    """Asks whether the mirror of every price is fresh."""

    def __init__(self, scene: Scene, settings: Settings) -> None:
        client = impatient(db.create_redis(settings), 0.2)
        with scene.engine.connect() as connection:
            self.mirror = mirrors.Mirror.of(connection, client)
        self.keys = [self.mirror.place.key("ticker", "binance", "spot", each) for each in SYMBOLS]

    def __call__(self) -> bool:
        """Tell so."""
        try:
            seen = [self.mirror.texts(each) for each in self.keys]
        except UNREACHED:
            return False
        return all(each is not None and each.contents[0] is not None and each.lag < MAX_LAG for each in seen)


class Stage:
    """A cluster, a database, a relay that runs, and trading."""

    def __init__(self, cluster: Cluster, scene: Scene, buckets: int) -> None:
        self.cluster, self.scene = cluster, scene
        url = cluster.url.render_as_string(hide_password=False)
        self.settings = Settings(
            database_url=scene.url, redis_url=Settings.from_environment({"REDIS_URL": url}).redis_url
        )
        self.env = variables(scene.url, REDIS_URL=url)
        self.relays = mirrors.Relays(scene.engine, db.create_redis(self.settings))
        self.relays.spread(buckets)
        self.trading = Trading(scene, self.settings)
        self.relay: Any = None

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Trade, and relay."""
        self.relay = start("helios.cli", "mirror", "run", env=self.env)
        self.trading.begin()
        try:
            until(Fresh(self.scene, self.settings))
            yield
        finally:
            self.trading.end()
            self.relay.terminate()
            self.said = finish(self.relay)
            self.relays.close()

    def kill(self, slot: int, *, returns: bool = False) -> tuple[float, float]:
        """Kill the master of a slot; after how many seconds the slot had a master again, and all mirrors were fresh.

        Args:
            slot: whose master.
            returns: it is started again at once, and empty.

        """
        fresh = Fresh(self.scene, self.settings)
        killed = self.cluster.kill_master(slot)
        began = time.monotonic()
        until(lambda: not fresh())
        if returns:
            killed.start()
        else:
            until(lambda: self.cluster.master_of(slot) is not killed)
        served = time.monotonic() - began
        until(fresh)
        return served, time.monotonic() - began

    def differences(self) -> tuple[mirrors.Difference, ...]:
        """Compare both sides, nobody writing."""
        with self.trading.still():
            self.relays.close()  # connected before the kill
            return mirrors.check(self.relays, wait=10).differences


@contextlib.contextmanager
def database() -> Iterator[Scene]:
    """Start a server of its own, for the run by hand; afterwards nothing is left."""
    home = Path(mkdtemp(prefix="ht-"))
    home.chmod(0o755)
    server = own_servers.postgres(home)
    try:
        with scene_of(server.acquire().set(database="postgres")) as scene:
            yield scene
    finally:
        own_servers.end(server)
        shutil.rmtree(home)


def say(what: str) -> None:
    """Print at once."""
    print(what, flush=True)  # noqa: T201 - a program


def main() -> int:
    """Kill masters, and tell how long it took."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kills", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--buckets", type=int, default=16)
    given = parser.parse_args()
    chance = random.Random(given.seed)  # noqa: S311 - chance, not secrecy
    took: list[tuple[float, float]] = []
    with redis_cluster() as cluster, database() as scene:
        stage = Stage(cluster, scene, given.buckets)
        with stage.running():
            for number in range(given.kills):
                took.append(stage.kill(chance.randrange(SLOTS), returns=number % 5 == LAST_OF_FIVE))
                cluster.settle()
                differing, wrong = stage.differences(), stage.trading.wrong
                say(f"{number + 1}: a master after {took[-1][0]:.2f} s, fresh after {took[-1][1]:.2f} s")
                if differing or wrong:
                    say(f"{len(differing)} differences: {differing[:3]}; {len(wrong)} wrong reads: {wrong[:3]}")
                    return 1
    reads, (served, fresh) = stage.trading.reads, zip(*took, strict=True)
    say(
        f"{given.kills} kills: a master again after {statistics.median(served):.2f} s (median), {max(served):.2f} s "
        f"(longest); all fresh after {statistics.median(fresh):.2f} s, {max(fresh):.2f} s; {reads[True]:,} reads by "
        f"the mirror, {reads[False]:,} by PostgreSQL, none wrong"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
