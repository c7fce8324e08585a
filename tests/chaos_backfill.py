"""Kills loads of klines at random moments: `python tests/chaos_backfill.py 200 [seed]`.

Whatever is killed - the loader, its reader, its connection - no half file may be in the table, nothing may hinder the
next start, and what stands there at the end must equal an undisturbed load. The suite runs a few rounds.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import make_klines
from sqlalchemy import URL, Engine, create_engine, text
from sqlalchemy.pool import NullPool

from helios.backfill import load, recognise

ROWS = 25_000  # on either side of a new year, so that two partitions are at stake
START = datetime(2024, 12, 20, tzinfo=UTC)
DEFECTS = ("gap", "equal-duplicates", "nan", "out-of-order")
PROGRAM = textwrap.dedent("""
    import sys
    from pathlib import Path
    from sqlalchemy import create_engine
    from helios.backfill import load, recognise
    path, tier, how, rejects = sys.argv[2:6]
    engine = create_engine(sys.argv[1], connect_args={"application_name": "chaos"})
    print("begins", flush=True)
    load(engine, recognise(path), tier=tier, rejects=Path(rejects), again=how == "again", initial=how == "initial")
""")
CONTENT = """
    SELECT count(*), md5(string_agg(concat_ws(',', open_time, open, high, low, close, volume, trades,
                                              quote_volume, taker_buy_volume), ';' ORDER BY open_time))
    FROM (SELECT open_time, trim_scale(open) AS open, trim_scale(high) AS high, trim_scale(low) AS low,
                 trim_scale(close) AS close, trim_scale(volume) AS volume, trades,
                 trim_scale(quote_volume) AS quote_volume, trim_scale(taker_buy_volume) AS taker_buy_volume
          FROM helios_trading.klines WHERE interval = '1m') AS candles
"""
TABLES = """
    SELECT array_agg(relname || ' ' || coalesce(relacl::text, '') ORDER BY relname)
    FROM pg_class WHERE relnamespace = 'helios_trading'::regnamespace AND relkind IN ('r', 'p', 'i', 'I')
"""


@dataclass
class Scene:
    """A database, a file, and how the table looks after an undisturbed load."""

    owner: Engine
    folder: Path
    path: Path
    undisturbed: tuple[object, ...] = ()
    tables: object = None
    longest: float = 1.0

    def ask(self, statement: str) -> tuple[object, ...]:
        """Read one row."""
        with self.owner.connect() as connection:
            return tuple(connection.execute(text(statement)).one())

    def emptied(self) -> None:
        """Forget what was loaded."""
        with self.owner.begin() as connection:
            connection.execute(text("TRUNCATE helios_trading.klines, helios_trading.kline_files"))

    def prepare(self) -> None:
        """Load once without disturbance, and remember what that gives and how long it takes."""
        self.tables = self.ask(TABLES)
        self.emptied()
        began = time.monotonic()
        with self.start("base", "first") as process:
            process.communicate()
        self.longest = time.monotonic() - began
        self.undisturbed = self.ask(CONTENT)

    def start(self, tier: str, how: str) -> "subprocess.Popen[bytes]":
        """Start a load in another process."""
        url = self.owner.url.render_as_string(hide_password=False)
        command = [sys.executable, "-c", PROGRAM, url, str(self.path), tier, how, str(self.folder / "rejects")]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def kill_once(scene: Scene, chance: random.Random, tally: Counter[str]) -> None:
    """Kill a load once, look that nothing half is there, and load to the end."""
    tier, how = chance.choice(("base", "fast")), chance.choice(("first", "again", "initial"))
    scene.emptied()
    if how == "again":
        load(scene.owner, recognise(scene.path))
        spoil(scene)
    before = scene.ask(CONTENT)
    process = scene.start(tier, how)
    process.stdout.readline()
    time.sleep(chance.uniform(0, scene.longest))
    target = chance.choice(("loader", "loader", "connection"))
    finished = process.poll() is not None
    if target == "loader":
        process.send_signal(signal.SIGKILL)
    else:
        end_connections(scene)
    process.wait()
    process.stdout.close()
    wait_idle(scene)
    tally["finished before" if finished else f"{target} killed"] += 1
    held = scene.ask(CONTENT)
    if held not in (before, scene.undisturbed):
        tally["half"] += 1
    left = held != before
    again = load(
        scene.owner, recognise(scene.path), tier=tier, initial=how == "initial" and not left, rejects=scene.folder
    )
    if scene.ask(CONTENT) != scene.undisturbed or (left and again.written):
        tally["different"] += 1
    if scene.ask(TABLES) != scene.tables:
        tally["tables left"] += 1


def spoil(scene: Scene) -> None:
    """Change some rows, and forget the file, so that a load again has something to write."""
    with scene.owner.begin() as connection:
        connection.execute(text("UPDATE helios_trading.klines SET volume = volume + 1 WHERE trades % 7 = 0"))
        connection.execute(text("DELETE FROM helios_trading.klines WHERE trades % 11 = 0"))
        connection.execute(text("TRUNCATE helios_trading.kline_files"))


def end_connections(scene: Scene) -> None:
    """End the loader's connection on the server, as an administrator would."""
    with scene.owner.connect() as connection:
        connection.execute(
            text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'chaos'")
        )


def wait_idle(scene: Scene) -> None:
    """Wait until the server has noticed that the loader is gone."""
    deadline = time.monotonic() + 30
    statement = (
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'chaos' AND datname = current_database()"
    )
    while scene.ask(statement) != (0,):
        if time.monotonic() > deadline:
            raise TimeoutError("the server still serves a killed loader")


def chaos(url: URL, rounds: int, seed: int) -> Counter[str]:
    """Kill `rounds` loads in a migrated database; the tally says how that went."""
    chance = random.Random(seed)  # noqa: S311 - moments, not secrets
    tally: Counter[str] = Counter(half=0, different=0, **{"tables left": 0})
    folder = Path(tempfile.mkdtemp(prefix="helios-chaos-"))
    try:
        made = make_klines.make_file(
            folder, "CHAOSUSDT", "1m", start=START, rows=ROWS, name="CHAOSUSDT-1m.csv", defects=DEFECTS
        )
        scene = Scene(create_engine(url, poolclass=NullPool), folder, made.path)
        scene.prepare()
        if scene.undisturbed[0] != made.good:
            raise AssertionError(f"{scene.undisturbed[0]} rows of {made.good} in an undisturbed load")
        for _ in range(rounds):
            kill_once(scene, chance, tally)
    finally:
        shutil.rmtree(folder)
    return tally


def main() -> None:
    """Make a server and the tables, and kill."""
    from helios import schema, servers  # noqa: PLC0415 - the suite brings its own

    count, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else time.time_ns() % 10**6
    home = Path(tempfile.mkdtemp(prefix="hc-"))
    home.chmod(0o755)
    server = servers.Postgres(home, durable=False)
    try:
        url = server.acquire()
        os.environ["DATABASE_URL"] = url.render_as_string(hide_password=False)
        schema.upgrade()
        print(f"seed {seed}", dict(chaos(url, count, seed)))  # noqa: T201
    finally:
        server.release()
        server.wait_ended()
        shutil.rmtree(home)


if __name__ == "__main__":
    main()
