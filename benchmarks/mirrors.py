"""Mirrors: what a commit costs, how fast the relay is, how soon and how cheaply a price is read, what all of it weighs.

Beside: a plain commit, the usual after_commit hook, redis-benchmark with values of the same length over one connection
(Debian's package redis-tools; REDIS_BENCHMARK names the program), an ORM get and a plain read by the driver.
"""

import argparse
import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

from redis import Redis
from redis.client import Monitor
from sqlalchemy import create_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from benchmarks.hook import hook
from benchmarks.place import Place
from helios import db, mirrors, servers
from helios.mirrors import image
from helios.mirrors.store import commands_of
from helios.models import Ticker
from helios.queries import Live
from helios.settings import Settings

TICKERS, SERIES, ORDERS, ACCOUNTS = 50_000, 1_000, 20_000, 20
FORK = multiprocessing.get_context("fork")
ANCHOR = "redis-benchmark, SET, -c 1 -P 1000"
Say = Callable[[str], None]
Row = dict[str, Any]
FILL = f"""
    INSERT INTO helios_trading.instruments (exchange, market, symbol)
        SELECT 'bench', 'spot', 'S' || n FROM generate_series(1, {TICKERS}) AS n;
    INSERT INTO helios_trading.accounts (exchange, market, name)
        SELECT 'bench', 'spot', 'a' || n FROM generate_series(1, {ACCOUNTS}) AS n;
    INSERT INTO helios_trading.tickers (instrument_id, last_price, bid_price, bid_quantity, ask_price, ask_quantity,
                                        volume_24h, event_at)
        SELECT id, 100 + id / 100.0, 99.5, 3.25, 100.5, 1.75, 12345.678, now() FROM helios_trading.instruments;
    ANALYZE
"""
FILL_SERIES = f"""
    SELECT helios_trading.make_kline_partition('1m', 2025);
    INSERT INTO helios_trading.klines (instrument_id, interval, open_time, open, high, low, close, volume, trades)
        SELECT i, '1m', timestamptz '2025-01-01Z' + n * interval '1 minute', 100.25, 101.5, 99.75, 100.5, 12.345, 99
        FROM generate_series(1, {SERIES}) AS i, generate_series(1, 220) AS n
"""
FILL_ORDERS = f"""
    INSERT INTO helios_trading.orders (id, account_id, instrument_id, client_order_id, side, type, time_in_force,
                                       status, price, quantity, submitted_at)
        SELECT gen_random_uuid(), 1 + n % {ACCOUNTS}, 1 + n % {SERIES}, 'order-' || n, 'BUY', 'LIMIT', 'GTC', 'NEW',
               100.25, 0.5, now() FROM generate_series(1, {ORDERS}) AS n
"""


def mirrors_part(at: Place, options: argparse.Namespace, say: Say) -> list[Row]:
    """Measure everything, in a Valkey of its own."""
    valkey = servers.Valkey(at.folder.parent / "home", binaries=Settings.from_environment().helios_redis_bin)
    client = Redis.from_url(valkey.acquire().render_as_string(hide_password=False))
    os.environ["REDIS_URL"] = valkey.acquire().render_as_string(hide_password=False)
    relay = mirrors.Relay(at.engine(), client)
    rows: list[Row] = []
    try:
        relay.rebuild("empty")  # of nothing: what Valkey itself needs
        for name, part in PARTS.items():
            if options.only is None or options.only in name or name in ("memory", "rebuild"):
                say(f"mirrors: {name}")
                rows += part(at, client, relay, options)
    finally:
        relay.close()
        client.close()
        del os.environ["REDIS_URL"]
        valkey.release()
        valkey.wait_ended()
    return rows


def figure(what: str, way: str, value: float | str, unit: str, **more: Any) -> Row:  # noqa: ANN401 - a ratio, a goal
    """Make a row."""
    shown = round(value, 3 if value < 100 else 1) if isinstance(value, float) else value  # noqa: PLR2004 - digits
    return {"what": what, "way": way, "figure": shown, "unit": unit, "ratio": "", "goal": "", **more}


def memory(at: Place, client: Redis, relay: mirrors.Relay, _options: argparse.Namespace) -> list[Row]:
    """Fill the tables, and see what each kind of mirror weighs."""
    rows = []
    for what, fill, count in (
        ("1,000 tickers", FILL, TICKERS),
        ("1,000 series of 200 candles", FILL_SERIES, SERIES),
        ("1,000 open orders", FILL_ORDERS, ORDERS),
    ):
        before = client.info("memory")["used_memory"]
        with contextlib.closing(at.connect()) as connection, connection.cursor() as cursor:
            for statement in fill.split(";"):
                cursor.execute(statement)
        relay.rebuild("filled")
        used = client.info("memory")["used_memory"] - before
        rows.append(figure("memory", what, used / count * 1000 / 1024, "KiB"))
    return rows


def rebuild(at: Place, client: Redis, relay: mirrors.Relay, _options: argparse.Namespace) -> list[Row]:
    """Mirror everything anew while somebody reads prices: nobody waits for it."""
    ended = threading.Event()
    waits: list[tuple[float, bool]] = []

    def read() -> None:
        live, chance = Live(client), random.Random(1)  # noqa: S311 - chance, not secrecy
        with create_engine(at.url, isolation_level="AUTOCOMMIT").connect() as connection:
            while not ended.is_set():
                began = time.perf_counter()
                price = live.price(connection, ("bench", "spot", f"S{chance.randint(1, TICKERS)}"))
                waits.append((time.perf_counter() - began, price.mirrored))
                time.sleep(0.001)

    reader = threading.Thread(target=read)
    reader.start()
    time.sleep(0.3)
    began = time.perf_counter()
    try:
        relay.rebuild("asked for")
    finally:
        took = time.perf_counter() - began
        ended.set()
        reader.join()
    what = f"rebuild of {TICKERS:,} tickers, {SERIES:,} series, {ORDERS:,} orders"
    longest = max(wait for wait, _ in waits) * 1000
    by_tables = sum(not mirrored for _, mirrored in waits)
    return [
        figure(what, "the relay", took, "s"),
        figure(what, f"longest of {len(waits)} reads beside, {by_tables} by PostgreSQL", longest, "ms"),
    ]


def commits(at: Place, client: Redis, _relay: mirrors.Relay, options: argparse.Namespace) -> list[Row]:
    """Commit a new price through the ORM: plain, mirrored, and with the usual hook; blocks in turn."""
    engine = create_engine(at.url)
    plain, hooked = db.create_session_factory(engine), db.create_session_factory(engine)
    hook(hooked, client)
    ways = {"plain": ("DISABLE", plain), "mirrored": ("ENABLE", plain), "after_commit hook": ("DISABLE", hooked)}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    chance = random.Random(1)  # noqa: S311 - chance, not secrecy
    for _ in range(options.rounds * 4):
        for name in random.Random(len(taken["plain"])).sample(list(ways), len(ways)):  # noqa: S311 - the order of turns
            switch, factory = ways[name]
            at.ask(f"ALTER TABLE helios_trading.tickers {switch} TRIGGER USER")
            for each in range(60):
                with factory() as session:
                    ticker = session.get(Ticker, chance.randint(1, TICKERS))
                    began = time.perf_counter()
                    ticker.last_price = Decimal(chance.randint(1, 10**6))
                    session.commit()
                    if each >= 10:  # noqa: PLR2004 - the first ones warm up
                        taken[name].append(time.perf_counter() - began)
    at.ask("ALTER TABLE helios_trading.tickers ENABLE TRIGGER USER")
    engine.dispose()
    medians = {name: statistics.median(each) * 1000 for name, each in taken.items()}
    goals = {"mirrored": "<= 1.06"}
    return [
        figure("commit", name, each, "ms", ratio=round(each / medians["plain"], 3), goal=goals.get(name, ""))
        for name, each in medians.items()
    ]


def throughput(at: Place, client: Redis, relay: mirrors.Relay, options: argparse.Namespace) -> list[Row]:
    """Write all tickers: redis-benchmark, the relay's half at Redis, the relay from commit to token."""
    source, store = relay.sides()
    relay.rebuild("before")
    length = client.strlen(store.place.key("ticker", "bench", "spot", "S1"))
    every = image.Changes(tickers=set(range(1, TICKERS + 1)))
    with source.connection.cursor() as cursor:
        batches = list(image.of_changes(cursor, store.place, every, packed=True))
        texts = list(image.of_changes(cursor, store.place, every))
    halves = {"Redis half": batches, "Redis half, of several buckets": texts}
    taken: dict[str, list[float]] = {name: [] for name in (ANCHOR, *halves, "whole relay")}
    for number in range(options.rounds):
        if rate := anchor(client, length):
            taken[ANCHOR].append(rate)
            for each in batches:  # lets Redis tidy up after its 50,000 keys
                store.write(commands_of(each), token=store.token)
        for name, parts in halves.items():
            began = time.perf_counter()
            for each in parts:
                store.write(commands_of(each), token=store.token)
            taken[name].append(TICKERS / (time.perf_counter() - began))
        at.ask(f"UPDATE helios_trading.tickers SET last_price = last_price + {number}")
        began = time.perf_counter()
        relay.step(wait=True)
        taken["whole relay"].append(TICKERS / (time.perf_counter() - began))
    medians = {name: statistics.median(each) for name, each in taken.items() if each}
    base = medians.get(ANCHOR)
    goals = {"Redis half": ">= 1.0", "whole relay": ">= 0.25"}
    return [
        figure(
            f"tickers of {length} bytes", name, round(each), "per second",
            ratio=round(each / base, 2) if base else "no redis-benchmark", goal=goals.get(name, ""),
        )
        for name, each in medians.items()
    ]  # fmt: skip


def anchor(client: Redis, length: int) -> float | None:
    """Ask redis-benchmark how many values of a length one connection sets in a second; None where it is not there."""
    program = os.environ.get("REDIS_BENCHMARK") or shutil.which("redis-benchmark") or shutil.which("valkey-benchmark")
    if not program:
        return None
    socket = str(client.connection_pool.connection_kwargs["path"])
    command = [program, "-s", socket, "-c", "1", "-P", "1000", "-n", "300000", "-r", "50000", "-d", str(length)]
    said = subprocess.run([*command, "-t", "set", "--csv"], check=True, capture_output=True, text=True).stdout
    client.delete(*(f"key:{number:012}" for number in range(50_000)))
    return float(said.splitlines()[-1].split(",")[1].strip('"'))


@contextlib.contextmanager
def running(*, listen: bool) -> Iterator[int]:
    """Run a relay in a process of its own; gives its pid."""

    def run() -> None:
        settings = Settings.from_environment()
        service = mirrors.Service(mirrors.Relay(db.create_engine(settings), db.create_redis(settings)), listen=listen)
        signal.signal(signal.SIGTERM, lambda *_: service.stop.set())
        service.run()

    process = FORK.Process(target=run)
    process.start()
    time.sleep(1)
    try:
        yield int(process.pid or 0)
    finally:
        process.terminate()
        process.join()


def latency(at: Place, client: Redis, relay: mirrors.Relay, options: argparse.Namespace) -> list[Row]:
    """Commit a price, and wait until Redis has it; polling, and with NOTIFY after the commit.

    Waits for what Redis's MONITOR tells: to ask for the value again and again takes half a core from the relay.
    """
    rows = []
    relay.close()
    for way, listen, goal in (("polling", False, "4 / 8 ms"), ("NOTIFY after commit", True, "1.5 / 4 ms")):
        engine = create_engine(at.url)
        factory = db.create_session_factory(engine)
        caller = mirrors.announce(factory) if listen else None
        with running(listen=listen), client.monitor() as seen:
            taken = sorted(one_commit(factory, seen, number) for number in range(options.rounds * 100))
        if caller:
            caller.close()
        engine.dispose()
        p50, p99 = (taken[int(len(taken) * share)] * 1000 for share in (0.5, 0.99))
        rows.append(figure("commit to Redis, p50", way, p50, "ms", goal=goal))
        rows.append(figure("commit to Redis, p99", way, p99, "ms", goal=goal))
    return rows


def one_commit(factory: Callable[[], Session], seen: Monitor, number: int) -> float:
    """Commit once, and wait until it is seen."""
    time.sleep(0.002 + number % 17 / 1000)
    with factory() as session:
        ticker = session.get(Ticker, 7)
        ticker.last_price = Decimal(10**9 + number)
        session.flush()
        session.commit()
        began = time.perf_counter()
    while str(10**9 + number) not in seen.next_command()["command"]:
        pass
    return time.perf_counter() - began


def idle(at: Place, _client: Redis, relay: mirrors.Relay, _options: argparse.Namespace) -> list[Row]:
    """Let a relay do nothing for five seconds, and see what it used, and what PostgreSQL used for it."""
    relay.close()
    rows = []
    for way, listen in (("polling", False), ("NOTIFY after commit", True)):
        with running(listen=listen) as pid:
            at_work = {"the relay": [pid], "PostgreSQL for it": backends(at)}
            before = {who: sum(map(used, pids)) for who, pids in at_work.items()}
            began = time.monotonic()
            time.sleep(5)
            took = time.monotonic() - began
            shares = {who: (sum(map(used, pids)) - before[who]) / took * 100 for who, pids in at_work.items()}
        goals = {"the relay": "<= 2"}
        rows += [
            figure(f"idle, {who}", way, share, "% of a core", goal=goals.get(who, "")) for who, share in shares.items()
        ]
    return rows


def backends(at: Place) -> list[int]:
    """Name the server's processes that work for others of this database."""
    with contextlib.closing(at.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
            "AND backend_type = 'client backend'"
        )
        return [pid for (pid,) in cursor.fetchall()]


def used(pid: int) -> float:
    """Tell the seconds of processor that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def reading(at: Place, client: Redis, relay: mirrors.Relay, options: argparse.Namespace) -> list[Row]:
    """Read a price: by the mirror, by PostgreSQL with the same function, by an ORM get, by the driver as such."""
    relay.rebuild("before")
    engine = create_engine(at.url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    live, nobody, chance = Live(client), Live(None), random.Random(1)  # noqa: S311 - chance, not secrecy
    taken: dict[str, list[float]] = {}
    with engine.connect() as connection, Session(engine) as session, contextlib.closing(at.connect()) as plain:
        cursor = plain.cursor()
        cursor.execute("PREPARE price (integer) AS SELECT last_price, bid_price, ask_price, event_at, recorded_at "
                       "FROM helios_trading.tickers WHERE instrument_id = $1")  # fmt: skip

        def by_driver(number: int) -> object:
            cursor.execute("EXECUTE price (%s)", (number,))
            return cursor.fetchone()

        def by_orm(number: int) -> object:
            session.expunge_all()
            return session.get(Ticker, number)

        ways: dict[str, Callable[[int], object]] = {
            "driver, prepared": by_driver,
            "mirror, Live.price": lambda number: live.price(connection, ("bench", "spot", f"S{number}")),
            "PostgreSQL, Live.price": lambda number: nobody.price(connection, ("bench", "spot", f"S{number}")),
            "ORM get": by_orm,
        }
        for sample in range(options.rounds * 100):
            relay.step()  # its heartbeat
            number = chance.randint(1, TICKERS)
            for name in chance.sample(list(ways), len(ways)):
                began = time.perf_counter()
                ways[name](number)
                if sample > 20:  # noqa: PLR2004 - the first ones warm up
                    taken.setdefault(name, []).append(time.perf_counter() - began)
    medians = {name: statistics.median(taken[name]) * 1_000_000 for name in ways}
    base = medians["ORM get"]
    return [
        figure("read a price", name, each, "us", ratio=f"{each / base:.2f} of ORM get")
        for name, each in medians.items()
    ]


def outbox(at: Place, _client: Redis, relay: mirrors.Relay, options: argparse.Namespace) -> list[Row]:
    """Write many entries, relayed and emptied between as the service does, while an old snapshot is held open."""
    rows = []
    for way, held in (("nobody else", False), ("an old snapshot held open", True)):
        with contextlib.closing(at.connect()) as old, contextlib.closing(at.connect()) as connection:
            if held:
                old.autocommit = False
                old.cursor().execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                old.cursor().execute("SELECT count(*) FROM helios_trading.accounts")
            largest, size = 0, 0
            for _ in range(max(1, options.rows // TICKERS)):
                with connection.cursor() as cursor:
                    cursor.execute("UPDATE helios_trading.tickers SET last_price = last_price + 1")
                relay.step(wait=True)
                source, _ = relay.sides()
                largest = max(largest, outbox_size(at))
                source.empty()
                size = outbox_size(at)
        what = f"outbox after {max(1, options.rows // TICKERS) * TICKERS:,} entries"
        rows += [figure(what, way, size / 2**20, "MiB"), figure(f"{what}, largest", way, largest / 2**20, "MiB")]
    return rows


def outbox_size(at: Place) -> int:
    """Measure the outbox and the points, with their indexes, in bytes."""
    tables = ("helios_trading.mirror_outbox", "helios_trading.mirror_points")
    return sum(int(at.ask(f"SELECT pg_total_relation_size('{each}')")[0]) for each in tables)


PARTS: dict[str, Callable[[Place, Redis, mirrors.Relay, argparse.Namespace], list[Row]]] = {
    "memory": memory,  # which fills the tables, and so comes first
    "rebuild": rebuild,
    "commit": commits,
    "throughput": throughput,
    "latency": latency,
    "idle": idle,
    "reading": reading,
    "outbox": outbox,
}
