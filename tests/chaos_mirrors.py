"""Mirrors while everything dies: `python tests/chaos_mirrors.py ROUNDS [--seed N] [--keys 100000] [--hook]`.

Four writers write; writers, relays, Valkey and PostgreSQL are killed, paused, emptied, put back to older copies,
replaced by a standby that lagged. After each round the writers pause, and both sides must come to be equal: exit
status 1 where they are not. A key that was evicted may be lacking until the relay's audit comes by, because readers
then ask PostgreSQL; it may not be wrong. `--hook` does the same to the usual hook, in which a service's after_commit
writes Redis, and counts the rows that stay wrong. The suite runs a round or two.
"""

import argparse
import contextlib
import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psycopg2
from chaos_mirror_servers import Postgres, Valkey
from chaos_mirror_writers import fill, write

from helios import db, mirrors, schema
from helios.mirrors.keys import KLINES, ORDERS, POSITIONS, TICKER
from helios.mirrors.relay import PASSING
from helios.settings import Settings

WRITERS = 4
PLACE = mirrors.Place("helios", "helios_trading")
LIMIT = 30.0  # seconds within which both sides are equal after a round
FORK = multiprocessing.get_context("fork")  # a new interpreter for each would cost more than the round
Process = multiprocessing.process.BaseProcess


def relay(log: Path) -> None:
    """Relay until SIGTERM, as `helios mirror run` does."""
    logging.basicConfig(filename=log, format="%(asctime)s %(process)d %(message)s", level=logging.INFO)
    settings = Settings.from_environment()
    service = mirrors.Service(mirrors.Relay(db.create_engine(settings), db.create_redis(settings)))
    signal.signal(signal.SIGTERM, lambda *_: service.stop.set())
    service.run()


@dataclass
class Scene:
    """Both servers, and the processes that work with them."""

    postgres: Postgres
    valkey: Valkey
    top: Path
    keys: int
    chance: random.Random
    writes: Callable[[str, int, int], None] = write
    relays: bool = True
    place: mirrors.Place = PLACE
    writers: list[Process] = field(default_factory=list)
    relaying: list[Process] = field(default_factory=list)
    sleeping: list[Process] = field(default_factory=list)
    evicted: set[str] = field(default_factory=set)
    done: Counter[str] = field(default_factory=Counter)

    def begin(self, what: Callable[..., None], *arguments: object) -> Process:
        """Start a process."""
        process = FORK.Process(target=what, args=arguments, daemon=True)
        process.start()
        return process

    def new_writer(self) -> None:
        """Have one more writer."""
        self.writers.append(self.begin(self.writes, self.postgres.dsn, self.chance.getrandbits(32), self.keys))

    def new_relay(self) -> None:
        """Have one more relay."""
        if self.relays:
            self.relaying.append(self.begin(relay, self.top / "relay.log"))

    def pause(self, least: float = 0.05, most: float = 0.4) -> None:
        """Let them work for a moment."""
        time.sleep(self.chance.uniform(least, most))

    def chosen(self, processes: list[Process]) -> Process:
        """Take one of some processes out of their list."""
        return processes.pop(self.chance.randrange(len(processes)))

    # --- what happens ------------------------------------------------------------------------------------------

    def writer_killed(self) -> None:
        """Kill a writer wherever it stands."""
        ended(self.chosen(self.writers))
        self.new_writer()

    def relay_killed(self) -> None:
        """Kill a relay, and start another."""
        ended(self.chosen(self.relaying))
        self.new_relay()

    def second_relay(self) -> None:
        """Have two relays at once, or three."""
        self.new_relay()

    def zombie_relay(self) -> None:
        """Stop a relay wherever it stands; another one works on, and the first wakes up later, in the round's end."""
        zombie = self.chosen(self.relaying)
        os.kill(zombie.pid, signal.SIGSTOP)
        self.sleeping.append(zombie)
        self.new_relay()
        self.pause()

    def wake(self) -> None:
        """Wake those that were stopped."""
        while self.sleeping:
            zombie = self.sleeping.pop()
            os.kill(zombie.pid, signal.SIGCONT)
            self.relaying.append(zombie)

    def valkey_paused(self) -> None:
        """Stop Valkey for up to a second."""
        self.valkey.tell(signal.SIGSTOP)
        self.pause(0.1, 1)
        self.valkey.tell(signal.SIGCONT)

    def valkey_emptied(self) -> None:
        """Empty it."""
        self.valkey.client.flushall()

    def valkey_restarted_empty(self) -> None:
        """Kill it, and start it empty."""
        self.valkey.restart(older=False)

    def valkey_restarted_with_old_dump(self) -> None:
        """Kill it, and start it with what it held a moment ago."""
        self.valkey.keep_copy()
        self.pause()
        self.valkey.restart(older=True)

    def keys_evicted(self) -> None:
        """Evict hot keys and others, one of a hash, now and then the token or the heartbeat."""
        hot = [f"C{each}" for each in range(1, 11)] + [f"C{self.chance.randint(1, self.keys)}" for _ in range(20)]
        gone = [self.place.key(TICKER, "chaos", "spot", each) for each in hot]
        gone += [self.place.key(KLINES, "chaos", "spot", each, "1m") for each in hot]
        gone.append(self.place.key(self.chance.choice((ORDERS, POSITIONS)), "chaos", "a1"))
        special = self.chance.choice([[], [], [self.place.token], [self.place.heartbeat]])
        self.valkey.client.delete(*gone, *special)
        self.evicted.update(gone)

    def postgres_restarted(self) -> None:
        """Restart PostgreSQL in order."""
        self.postgres.stop(crash=False)
        self.postgres.start()

    def postgres_crashed(self) -> None:
        """End it at once: commits that were not flushed are lost."""
        self.postgres.stop(crash=True)
        self.postgres.start()

    def postgres_put_back(self) -> None:
        """Put a copy back that is older than what was mirrored."""
        self.postgres.keep_copy()
        self.pause()
        self.postgres.put_back()

    def standby_promoted(self) -> None:
        """Promote a standby that lagged."""
        self.postgres.follow()
        self.pause()
        self.postgres.cut()
        self.pause()
        self.postgres.promote()

    # --- a round -----------------------------------------------------------------------------------------------

    def round(self) -> None:
        """Write, and let one to three things happen; at the end nobody writes."""
        while len(self.writers) < WRITERS:
            self.new_writer()
        while self.relays and not self.relaying:
            self.new_relay()
        self.pause()
        chosen = self.chance.choices([each for each, _ in EVENTS], [weight for _, weight in EVENTS], k=9)
        for what in chosen[: self.chance.randint(1, 3)]:
            if self.relays or "relay" not in what:
                getattr(self, what)()
                self.done[what] += 1
                self.pause()
        late = self.chance.random() < 0.5
        if not late:
            self.wake()
            self.pause()
        self.quiet()
        if late:  # a zombie that wakes after the newest write of all
            self.pause()
            self.wake()
        while len(self.relaying) > 1:
            ended(self.relaying.pop(0))

    def quiet(self) -> None:
        """Have the writers end, and end the two-phase transactions that some left behind."""
        for each in self.writers:
            each.terminate()
        for each in self.writers:
            each.join(timeout=LIMIT)
        self.writers.clear()
        with contextlib.closing(psycopg2.connect(self.postgres.dsn)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("SELECT gid FROM pg_prepared_xacts")
                for (name,) in cursor.fetchall():
                    cursor.execute(self.chance.choice(("COMMIT PREPARED %s", "ROLLBACK PREPARED %s")), (name,))
                    self.done["two-phase transactions ended for a killed writer"] += 1

    def close(self) -> None:
        """End everything that was started."""
        for each in (*self.writers, *self.relaying, *self.sleeping):
            ended(each)
        self.valkey.close()
        self.postgres.close()


EVENTS = (
    ("writer_killed", 4),
    ("relay_killed", 5),
    ("second_relay", 3),
    ("zombie_relay", 4),
    ("valkey_paused", 2),
    ("valkey_emptied", 2),
    ("valkey_restarted_empty", 2),
    ("valkey_restarted_with_old_dump", 2),
    ("keys_evicted", 2),
    ("postgres_restarted", 1),
    ("postgres_crashed", 2),
    ("postgres_put_back", 1),
    ("standby_promoted", 1),
)


def ended(process: Process) -> None:
    """Kill a process, and wait until it is gone."""
    process.kill()
    process.join()


@contextlib.contextmanager
def scene(seed: int, keys: int, **differing: object) -> Iterator[Scene]:
    """Start everything in a folder of its own; afterwards nothing is left."""
    top = Path(tempfile.mkdtemp(prefix="helios-chaos-")).resolve()
    top.chmod(0o755)
    sockets = top / "s"
    sockets.mkdir()
    sockets.chmod(0o1777)
    made = Scene(Postgres(top, sockets), Valkey(top, sockets), top, keys, random.Random(seed), **differing)  # noqa: S311
    try:
        made.postgres.start()
        made.valkey.start()
        os.environ.update(DATABASE_URL=made.postgres.url, REDIS_URL=made.valkey.url)
        os.environ.pop("DATABASE_MIGRATION_URL", None)
        schema.upgrade()
        fill(made.postgres.dsn, keys)
        yield made
    finally:
        made.close()
        shutil.rmtree(top)


def compared(at: Scene) -> tuple[list[mirrors.Difference], float]:
    """Compare both sides until they are equal, or have had their time; what differs, and how long it took."""
    began = time.monotonic()
    settings = Settings.from_environment()
    while True:
        checking = mirrors.Relay(db.create_engine(settings), db.create_redis(settings))
        left = LIMIT - (time.monotonic() - began)
        try:
            found = mirrors.check(checking, wait=max(left, 0)).differences
        except PASSING:  # the checker's own connection met a server that had just been replaced
            if left <= 0:
                raise
            continue
        finally:
            checking.close()
        # An evicted hash comes back whole by the audit, an account a second; the rows of other keys are written again.
        wrong = [
            each
            for each in found
            if each.key not in at.evicted
            or each.kind != "missing"
            or at.place.parse(each.key).table in {ORDERS, POSITIONS}
        ]
        if not wrong or left <= 0 or any(each.key not in at.evicted for each in wrong):
            at.done["evicted keys that were still lacking"] += len(found) - len(wrong)
            return wrong, time.monotonic() - began
        time.sleep(0.2)


def written_again(at: Scene) -> None:
    """Write the rows of evicted keys again, so that they may lack no longer; hashes are whole by now."""
    with contextlib.closing(psycopg2.connect(at.postgres.dsn)) as connection, connection, connection.cursor() as cursor:
        names = [at.place.parse(each).name for each in at.evicted]
        symbols = [name[2] for name in names if len(name) > 2]
        cursor.execute(
            "UPDATE helios_trading.tickers SET recorded_at = now() WHERE instrument_id IN "
            "(SELECT id FROM helios_trading.instruments WHERE symbol = ANY (%s))",
            (symbols,),
        )
        cursor.execute(
            "UPDATE helios_trading.klines SET trades = 1 WHERE interval = '1m' AND instrument_id IN "
            "(SELECT id FROM helios_trading.instruments WHERE symbol = ANY (%s))",
            (symbols,),
        )
    at.evicted.clear()


def chaos(rounds: int, seed: int, keys: int, say: Callable[[str], object] = lambda _: None) -> dict[str, object]:
    """Run the rounds, and tell what was done, what differed, and how long equality took."""
    took: list[float] = []
    wrong: list[dict[str, object]] = []
    with scene(seed, keys) as at:
        for number in range(1, rounds + 1):
            before = at.done.copy()
            try:
                at.round()
                found, seconds = compared(at)
            except mirrors.BehindError as error:
                found, seconds = [mirrors.Difference(key="", kind=str(error), expected=None, found=None)], LIMIT
            except KeyboardInterrupt:  # what was done so far counts
                break
            took.append(seconds)
            happened = ", ".join((at.done - before).keys())
            wrong += [{"round": number, "after": happened, **asdict(each)} for each in found]
            say(f"round {number}: {happened}: {len(found)} wrong, equal after {seconds:.1f} s")
            if found:
                shutil.copy(at.top / "relay.log", Path(tempfile.gettempdir()) / f"helios-chaos-{seed}-{number}.log")
            written_again(at)
        return {
            "seed": seed,
            "rounds": len(took),
            "keys": keys,
            "rounds_wrong": len({each["round"] for each in wrong}),
            "median_seconds": round(statistics.median(took), 2),
            "longest_seconds": round(max(took), 2),
            "done": dict(sorted(at.done.items())),
            "rebuilds": (at.top / "relay.log").read_text().count("mirroring everything anew"),
            "wrong": wrong[:20],
        }


def main() -> int:
    """Run as a program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rounds", type=int)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**6)
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--hook", action="store_true", help="the usual after-commit hook instead of a relay")
    options = parser.parse_args()
    say = lambda words: print(words, file=sys.stderr, flush=True)  # noqa: E731, T201
    say(f"seed {options.seed}")
    if options.hook:
        from chaos_mirror_hook import chaos_of_hook  # noqa: PLC0415 - the peer needs the ORM

        print(json.dumps(chaos_of_hook(options.rounds, options.seed, options.keys, say), indent=2))  # noqa: T201
        return 0
    told = chaos(options.rounds, options.seed, options.keys, say)
    print(json.dumps(told, indent=2, default=str))  # noqa: T201
    return 1 if told["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
