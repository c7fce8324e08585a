"""Kills test runs at random moments: `python tests/chaos_undo.py 500 [seed]`.

Whatever is killed - the test process (SIGKILL, SIGTERM, SIGINT), its children, an undo, a sweep, PostgreSQL, Valkey -
the next sweep must put back every row and key, with its type and expiry. The suite runs a few rounds.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import kit
import psycopg2
import redis
from installation import ask, rows, run_sql
from sqlalchemy import Column, ForeignKey, Integer, MetaData, Table, Text, create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from helios.errors import HeliosError
from helios.label.images import RUNS

ROUNDS_PER_TEST = 0.15  # seconds of work in each of a victim's tests
LONGEST = 2.5  # seconds that a victim lives
PATIENCE = 60.0  # seconds within which everything has to be as it was
SCHEMA = "helios_trading"
UNTOLD = re.compile(r"^[\w.]+(Error|Exception)\b", re.MULTILINE)  # the last line of a traceback that was not cut off
SURPRISE = "this is no error of a killed server: "

# Tables with whatever makes an undo hard: cascades into the same table, triggers that change their own row, that write
# elsewhere before the row is there, that go on after the statement, and unique values that change places.
NASTY = """
    CREATE TABLE {s}.tree (id int PRIMARY KEY, v int,
        parent int REFERENCES {s}.tree ON DELETE CASCADE ON UPDATE CASCADE);
    CREATE TABLE {s}.echo (id int PRIMARY KEY, v int, seen int NOT NULL DEFAULT 0);
    CREATE TABLE {s}.shadow (id int PRIMARY KEY, v int);
    CREATE TABLE {s}.totals (id int PRIMARY KEY, v int);
    CREATE TABLE {s}.swaps (id int PRIMARY KEY, k text UNIQUE);
    CREATE FUNCTION {s}.echo_back() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF pg_trigger_depth() < 3 THEN UPDATE {s}.echo SET seen = seen + 1 WHERE id = NEW.id; END IF;
        RETURN NULL; END $$;
    CREATE TRIGGER echo_back AFTER INSERT OR UPDATE ON {s}.echo FOR EACH ROW EXECUTE FUNCTION {s}.echo_back();
    CREATE FUNCTION {s}.cast_shadow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO {s}.shadow VALUES (NEW.id, NEW.v) ON CONFLICT (id) DO UPDATE SET v = excluded.v; RETURN NEW; END $$;
    CREATE TRIGGER cast_shadow BEFORE INSERT OR UPDATE ON {s}.tree FOR EACH ROW EXECUTE FUNCTION {s}.cast_shadow();
    CREATE FUNCTION {s}.sum_up() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        UPDATE {s}.totals SET v = (SELECT count(*) FROM {s}.swaps) WHERE id = 1; RETURN NULL; END $$;
    CREATE TRIGGER sum_up AFTER INSERT OR DELETE ON {s}.swaps FOR EACH STATEMENT EXECUTE FUNCTION {s}.sum_up();
    INSERT INTO {s}.totals VALUES (1, 0);
    INSERT INTO {s}.tree SELECT i, i, CASE WHEN i > 10 THEN i % 10 + 1 END FROM generate_series(1, 60) AS i;
    INSERT INTO {s}.echo SELECT i, i FROM generate_series(1, 40) AS i;
    INSERT INTO {s}.swaps SELECT i, 'k' || i FROM generate_series(1, 20) AS i
"""
HARMLESS = (
    "connection",
    "deadlock",
    "violates",
    "could not serialize",
    "lock timeout",
    "closed",
    "terminat",
    "recovery",
    "starting up",
    "has not begun in this redis, or is over",  # a child that lives a moment longer than its run
    "is over, or did not begin here",  # likewise
)


def tables() -> MetaData:
    """Helios's own tables and the nasty ones, as one metadata."""
    from helios.models import metadata as own  # noqa: PLC0415 - read after the victim's environment

    both = MetaData(schema=SCHEMA)
    for table in own.sorted_tables:
        table.to_metadata(both)
    key = lambda: Column("id", Integer, primary_key=True)  # noqa: E731 - a column belongs to one table
    Table("tree", both, key(), Column("parent", ForeignKey(f"{SCHEMA}.tree.id")), Column("v", Integer))
    Table("echo", both, key(), Column("v", Integer), Column("seen", Integer))
    Table("shadow", both, key(), Column("v", Integer))
    Table("totals", both, key(), Column("v", Integer))
    Table("swaps", both, key(), Column("k", Text))
    return both


metadata = tables()


def say(what: str) -> None:
    """Tell whoever watches."""
    print(what, file=sys.stderr, flush=True)  # noqa: T201 - a program


def leave_as_it_is(_connection: object) -> None:
    """Migrate nothing: the tables are there."""


@dataclass
class Work:
    """What one thread or process of a victim does, over and over."""

    chance: random.Random
    engine: Any
    client: redis.Redis
    stop: threading.Event = field(default_factory=threading.Event)

    def until_stopped(self) -> None:
        """Write until the test is over; what collides with the others is tried again differently."""
        while not self.stop.is_set():
            try:
                self.chance.choice((self.raw, self.raw, self.orm, self.copy, self.keys, self.keys))()
            except (DBAPIError, psycopg2.Error, redis.RedisError, HeliosError) as error:
                if not any(each in str(error).lower() for each in HARMLESS) and not isinstance(error, redis.RedisError):
                    say(f"{SURPRISE}{error}")
                self.stop.wait(0.01)

    def raw(self) -> None:
        """Send SQL of every kind in one transaction, with a savepoint."""
        here, there, new = self.chance.randint(1, 60), self.chance.randint(1, 60), self.chance.randint(1000, 10**8)
        statements = (
            f"UPDATE {SCHEMA}.tree SET id = {new} WHERE id = {here}",
            f"DELETE FROM {SCHEMA}.tree WHERE id = {here}",
            f"INSERT INTO {SCHEMA}.tree VALUES ({new}, 1, {there}) ON CONFLICT DO NOTHING",
            f"UPDATE {SCHEMA}.echo SET v = v + 1 WHERE id BETWEEN {here} AND {there}",
            f"INSERT INTO {SCHEMA}.echo VALUES ({here}, 7) ON CONFLICT (id) DO UPDATE SET v = excluded.v",
            f"""WITH gone AS (DELETE FROM {SCHEMA}.swaps WHERE id = {here % 20 + 1} RETURNING *)
                INSERT INTO {SCHEMA}.swaps SELECT id, k || '!' FROM gone""",
            f"UPDATE {SCHEMA}.swaps SET k = 'x{new}' WHERE id = {here % 20 + 1}",
            f"UPDATE {SCHEMA}.swaps SET k = 'k{here % 20 + 1}' WHERE id = {there % 20 + 1}",
            f"UPDATE {SCHEMA}.orders SET status = 'CANCELED', quantity = quantity + 1",
            f"DELETE FROM {SCHEMA}.fills",
            f"UPDATE {SCHEMA}.klines SET volume = volume + 1",
            f"DELETE FROM {SCHEMA}.echo WHERE id = {here}",
            f"TRUNCATE {SCHEMA}.shadow"
            if self.chance.random() < 0.2
            else f"DELETE FROM {SCHEMA}.shadow WHERE v = {here}",
        )
        with self.engine.connect() as connection:
            for _ in range(self.chance.randint(1, 5)):
                savepoint = connection.begin_nested()
                connection.execute(text(self.chance.choice(statements)))
                (savepoint.rollback if self.chance.random() < 0.2 else savepoint.commit)()
            (connection.rollback if self.chance.random() < 0.1 else connection.commit)()

    def orm(self) -> None:
        """Write through a session."""
        from helios.models import Instrument, Ticker  # noqa: PLC0415 - see above

        with Session(self.engine) as session:
            row = Instrument(exchange="chaos", market="spot", symbol=f"C{self.chance.getrandbits(40)}")
            row.ticker = Ticker(last_price=1, event_at=session.scalar(text("SELECT now()")))
            session.add(row)
            session.execute(text(f"UPDATE {SCHEMA}.tickers SET last_price = 7 WHERE last_price > 7"))
            session.commit()

    def copy(self) -> None:
        """Load by COPY."""
        first = self.chance.randint(10**8, 10**9)
        lines = "".join(f"{first + each}\t1\n" for each in range(200))
        with self.engine.connect() as connection:
            driver = connection.connection.driver_connection
            with driver.cursor() as cursor:
                cursor.copy_expert(f"COPY {SCHEMA}.echo (id, v) FROM STDIN", StringIO(lines))
            driver.commit()

    def keys(self) -> None:
        """Write keys of every type."""
        number = self.chance.randint(1, 20)
        commands: tuple[Callable[[], Any], ...] = (
            lambda: self.client.set("price:BTCUSDT", number),
            lambda: self.client.hset("TEST:BTCUSDT", str(number), number),
            lambda: self.client.lpop("queue:TESTUSDT"),
            lambda: self.client.rpush("queue:TESTUSDT", number),
            lambda: self.client.delete("TEST:BTCUSDT"),
            lambda: self.client.rename("price:BTCUSDT", f"price:{number}"),
            lambda: self.client.expire("queue:TESTUSDT", number * 100),
            lambda: (
                self.client.pipeline().set(f"a:{number}", 1).sadd(f"b:{number}", 1, 2).zadd("c", {"x": 1}).execute()
            ),
        )
        with suppress(redis.ResponseError):  # RENAME of a key that is not there
            self.chance.choice(commands)()


def child() -> None:
    """Be a child process of a test: labelled by its environment alone."""
    from helios import db  # noqa: PLC0415 - see above

    Work(random.Random(int(sys.argv[2])), db.create_engine(poolclass=NullPool), db.create_redis()).until_stopped()  # noqa: S311 - chance


def victim() -> None:
    """Be a suite of tests: threads and a child process write, test by test, until somebody kills it."""
    from helios import db  # noqa: PLC0415 - see above
    from helios.testing.run import Run  # noqa: PLC0415 - see above
    from helios.testing.subject import subject_of  # noqa: PLC0415 - see above

    run = Run.begin(subject_of("chaos_undo:metadata", "chaos_undo:leave_as_it_is"))
    try:
        print("begun", flush=True)  # noqa: T201 - a program
        for number in range(1000):
            run.enter(f"test {number}")
            process = subprocess.Popen(
                [sys.executable, __file__, "child", str(random.getrandbits(32))], stdout=subprocess.DEVNULL
            )
            print(json.dumps(process.pid), flush=True)  # noqa: T201 - a program
            works = [Work(random.Random(), db.create_engine(poolclass=NullPool), run.redis) for _ in range(2)]  # noqa: S311 - chance
            threads = [threading.Thread(target=each.until_stopped, daemon=True) for each in works]
            try:
                for each in threads:
                    each.start()
                time.sleep(ROUNDS_PER_TEST + random.random())  # noqa: S311 - chance
            finally:  # a thread that outlives its run has no label any more
                for each in works:
                    each.stop.set()
                for each in threads:
                    if each.is_alive():
                        each.join()
            process.kill()
            process.wait()
            run.leave()
    finally:
        run.end()


class Scene:
    """Servers with real data in them, and how that looks undisturbed."""

    def __init__(self, folder: Path) -> None:
        from helios import servers  # noqa: PLC0415 - see above
        from helios.settings import Settings  # noqa: PLC0415 - see above

        chosen = Settings.from_environment()
        self.postgres = servers.Postgres(folder, binaries=chosen.helios_postgres_bin)
        # what it acknowledged is there after a kill, so that nothing may be missing
        options = {"appendonly": "yes", "appendfsync": "always"}
        self.valkey = servers.Valkey(folder, binaries=chosen.helios_redis_bin, options=options)
        self.use()
        self.prepare()
        self.before = self.state()

    def use(self) -> None:
        """Join the servers, starting them where they were killed, and name them to all that comes."""
        self.url, self.redis_url = self.postgres.acquire(), self.valkey.acquire()
        os.environ["DATABASE_URL"] = self.url.render_as_string(hide_password=False)
        os.environ["REDIS_URL"] = self.redis_url.render_as_string(hide_password=False)

    def prepare(self) -> None:
        """Make the tables, and write what was there before."""
        from helios import schema  # noqa: PLC0415 - see above
        from helios.schema import environment  # noqa: PLC0415 - see above

        schema.upgrade()
        with create_engine(self.url, poolclass=NullPool).begin() as connection:
            environment.mark(connection, SCHEMA, "test")
        kit.seed_rows(self.url)
        kit.seed_keys(self.redis_url)
        owner = ask(self.url, f"SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = '{SCHEMA}'")
        run_sql(self.url, f"SET LOCAL ROLE {owner}", NASTY.format(s=SCHEMA))

    def state(self) -> tuple[object, object]:
        """Read all that may not change."""
        return kit.content(self.url, SCHEMA), kit.keys(self.redis_url)

    def close(self) -> None:
        """Leave the servers."""
        for server in (self.postgres, self.valkey):
            server.release()
            server.wait_ended()


class Victim:
    """A suite in a process of its own."""

    def __init__(self) -> None:
        self.talk = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed at its end; a pipe that nobody reads fills up
        self.process = subprocess.Popen(
            [sys.executable, __file__, "victim"],
            stdout=subprocess.PIPE,
            stderr=self.talk,
            text=True,
            start_new_session=True,  # so that a child of which it had no time to tell is found as well
        )
        self.children: list[int] = []
        self.begun = self.process.stdout.readline() == "begun\n"
        self.listener = threading.Thread(target=self.listen, daemon=True)
        self.listener.start()

    def listen(self) -> None:
        """Hear which children it starts."""
        for line in self.process.stdout:
            self.children.append(json.loads(line))

    def end(self) -> str:
        """See it end, and its children with it."""
        hung = ""
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            hung = f"{SURPRISE}it does not end\n"
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.listener.join(PATIENCE)
        self.process.stdout.close()
        self.talk.seek(0)
        with self.talk:
            return hung + self.talk.read()


def kill_once(scene: Scene, chance: random.Random, tally: Counter[str], most: int) -> None:
    """Let one or two suites run, kill something, and see that a sweep puts everything back."""
    victims = [Victim() for _ in range(min(most, chance.choice((1, 1, 2))))]
    time.sleep(chance.random() ** 2 * LONGEST)
    lost_its_server = strike(scene, victims[0], chance, tally) in {"postgres", "valkey"}
    for each in victims[1:]:
        time.sleep(chance.random() * 0.5)
        each.process.send_signal(chance.choice((signal.SIGKILL, signal.SIGTERM)))
    for each in victims:
        said = each.end()
        if not each.begun:
            tally["unexpected"] += 1
            say(f"did not begin: {said}")
        elif SURPRISE in said or (UNTOLD.search(said) and not lost_its_server):
            tally["unexpected"] += 1
            say(said)
    scene.use()
    tally["dirty at death"] += scene.state() != scene.before
    if chance.random() < 0.5:
        tally["sweeps killed"] += kill_a_sweep(scene, chance)
    recover(scene, tally)


def strike(scene: Scene, target: Victim, chance: random.Random, tally: Counter[str]) -> str:
    """Kill something, and the victim in the end; the answer says what."""
    what = chance.choice(("process", "process", "process", "terminated", "interrupted", "child", "postgres", "valkey"))
    tally[what] += 1
    if what == "child" and target.children:
        with suppress(ProcessLookupError):
            os.kill(target.children[-1], signal.SIGKILL)
        time.sleep(chance.random() * 0.3)
    elif what in ("postgres", "valkey"):
        os.kill(getattr(scene, what).place.state().server, signal.SIGKILL)
        time.sleep(chance.random() * 0.3)
    signals = {"terminated": signal.SIGTERM, "interrupted": signal.SIGINT}
    target.process.send_signal(signals.get(what, signal.SIGKILL))
    if what in signals and chance.random() < 0.5:  # an impatient user: the undo itself is killed
        time.sleep(chance.random() * 0.2)
        target.process.kill()
    return what


def kill_a_sweep(scene: Scene, chance: random.Random) -> int:
    """Kill a sweep at work: its process, and its backend, which would go on alone."""
    sweep = subprocess.Popen([sys.executable, __file__, "sweep"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    sweep.stdout.readline()
    time.sleep(chance.random() * 0.2)
    alive = sweep.poll() is None
    sweep.kill()
    sweep.wait()
    sweep.stdout.close()
    with suppress(DBAPIError):
        rows(
            scene.url,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'helios-migrate' AND pid <> pg_backend_pid()",
        )
    return int(alive)


def sweep() -> object:
    """Undo what is dead."""
    from helios.testing.subject import subject_of  # noqa: PLC0415 - see above
    from helios.testing.sweeping import sweep as undo_dead_runs  # noqa: PLC0415 - see above

    return undo_dead_runs(subject_of("chaos_undo:metadata", "chaos_undo:leave_as_it_is"))


def registered(scene: Scene) -> bool:
    """Say whether a run is still known: a server that was undoing when its client was killed ends a moment later."""
    held = ask(scene.url, f"SELECT count(*) FROM {SCHEMA}_undo._runs")
    with redis.Redis.from_url(scene.redis_url.render_as_string(hide_password=False)) as client:
        return bool(held or client.exists(RUNS))


def recover(scene: Scene, tally: Counter[str]) -> None:
    """Sweep until nothing is dead any more, and compare."""
    began = time.monotonic()
    while True:
        try:
            if not sweep() and not registered(scene):
                break
            if time.monotonic() - began > PATIENCE:
                say("something stays dead, whatever is swept")
                tally["not swept"] += 1
                break
        except (HeliosError, DBAPIError) as error:  # a backend of somebody killed may still be at work
            if time.monotonic() - began > PATIENCE:
                say(f"not swept: {error}")
                tally["not swept"] += 1
                break
        time.sleep(0.05)
    tally["longest ms to recover"] = max(tally["longest ms to recover"], round((time.monotonic() - began) * 1000))
    after = scene.state()
    if after != scene.before:
        tally["wrong"] += 1
        tell_differences(scene, after)
        scene.before = after


def tell_differences(scene: Scene, after: tuple[object, object]) -> None:
    """Say what is wrong, and what the log still holds."""
    for before, now in zip(scene.before, after, strict=True):
        for name in sorted({*before, *now}, key=str):
            if before.get(name) != now.get(name):
                say(f"wrong: {name!r} was {before.get(name)!r}, is {now.get(name)!r}")
    say(f"runs still known: {rows(scene.url, f'SELECT * FROM {SCHEMA}_undo._runs')}")
    for (log,) in rows(scene.url, f"SELECT log FROM {SCHEMA}_undo._tables"):
        if found := rows(scene.url, f"SELECT xmin::text, * FROM {log} LIMIT 5"):
            say(f"still in {log}: {found}")


def chaos(folder: Path, rounds: int, seed: int, most: int = 2) -> Counter[str]:
    """Kill that many times on servers of its own, at most so many runs at once; the tally says how that went."""
    chance = random.Random(seed)  # noqa: S311 - chance, not secrecy
    tally: Counter[str] = Counter({"wrong": 0, "not swept": 0, "unexpected": 0})
    scene = Scene(folder)
    try:
        for number in range(rounds):
            kill_once(scene, chance, tally, most)
            if number % 25 == 24:
                say(f"{number + 1} {dict(tally)}")
    finally:
        scene.close()
    return tally


def main() -> None:
    """Kill, or be killed."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has programs in the background ignore it
    if sys.argv[1] in ("victim", "child"):
        with suppress(KeyboardInterrupt):
            {"victim": victim, "child": child}[sys.argv[1]]()
    elif sys.argv[1] == "sweep":
        print("begun", flush=True)  # noqa: T201 - a program
        sweep()
    else:
        count, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else time.time_ns() % 10**6
        folder = Path(tempfile.mkdtemp(prefix="hu-"))
        folder.chmod(0o755)
        try:
            tally = chaos(folder, count, seed, int(sys.argv[3]) if len(sys.argv) > 3 else 2)
        finally:
            shutil.rmtree(folder)
        print(f"seed {seed}", dict(tally))  # noqa: T201 - a program
        sys.exit(1 if tally["wrong"] or tally["not swept"] or tally["unexpected"] or not tally["dirty at death"] else 0)


if __name__ == "__main__":
    main()
