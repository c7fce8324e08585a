"""Kills loads of klines at random moments: `python tests/chaos_backfill.py 200 [seed]`.

Whatever is killed - the loader, its connection - no half file may be in the table, nothing may hinder the next start,
and what stands there at the end must equal an undisturbed load. A load that had ended when its moment came is looked at
as well, but is no kill: the rounds go on until there were as many kills as asked for. The suite runs a few.
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
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import product
from pathlib import Path

import make_klines
from server_user import until
from sqlalchemy import URL, Engine, create_engine, text
from sqlalchemy.pool import NullPool

from helios.backfill import load, recognise

ROWS = 25_000  # on either side of a new year, so that two partitions are at stake
START = datetime(2024, 12, 20, tzinfo=UTC)
KINDS = tuple(product(("base", "fast"), ("first", "again", "initial")))
ROUNDS_FOR_A_KILL = 5  # at most: a chaos that kills nothing is to fail, not to go on for ever
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
    print("ends", flush=True)
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
    SELECT array_agg(concat_ws(' ', relname, relacl, (
        SELECT string_agg(pg_get_triggerdef(oid), ' ' ORDER BY tgname) FROM pg_trigger WHERE tgrelid = c.oid
    )) ORDER BY relname)
    FROM pg_class AS c WHERE relnamespace = 'helios_trading'::regnamespace AND relkind IN ('r', 'p', 'i', 'I')
"""


@dataclass
class Scene:
    """A database, a file, and how the table looks after an undisturbed load."""

    owner: Engine
    folder: Path
    path: Path
    undisturbed: tuple[object, ...] = ()
    tables: object = None
    lengths: dict[tuple[str, str], float] = field(default_factory=dict)  # how long each kind of load takes, in seconds

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
        with self.start("base", "first") as process:
            process.stdout.readline()
            began = time.monotonic()
            process.communicate()
        self.lengths = dict.fromkeys(KINDS, time.monotonic() - began)
        self.undisturbed = self.ask(CONTENT)

    def start(self, tier: str, how: str) -> "subprocess.Popen[bytes]":
        """Start a load in another process."""
        url = self.owner.url.render_as_string(hide_password=False)
        command = [sys.executable, "-c", PROGRAM, url, str(self.path), tier, how, str(self.folder / "rejects")]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def kill_once(scene: Scene, chance: random.Random, tally: Counter[str]) -> bool:
    """Kill a load once, look that nothing half is there, and load to the end; False where it had ended before."""
    tier, how = kind = chance.choice(KINDS)
    scene.emptied()
    if how == "again":
        load(scene.owner, recognise(scene.path))
        spoil(scene)
    before = scene.ask(CONTENT)
    target = chance.choice(("loader", "loader", "connection"))
    killed = disturbed(scene, kind, chance.uniform(0, 1.2 * scene.lengths[kind]), target)
    wait_idle(scene)
    tally[f"{target} killed" if killed else "ended before"] += 1
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
    return killed


def disturbed(scene: Scene, kind: tuple[str, str], moment: float, target: str) -> bool:
    """Start a load, and kill it at a moment (s after it began); False where it ended in spite of that, or before."""
    with scene.start(*kind) as process:
        process.stdout.readline()
        began, struck = time.monotonic(), False
        try:
            process.wait(moment)
            scene.lengths[kind] = time.monotonic() - began
        except subprocess.TimeoutExpired:
            struck = True
            scene.lengths[kind] *= 1.05  # slowly longer, until one ends before: so the last moments have their turn
            if target == "loader":
                process.send_signal(signal.SIGKILL)
            else:
                end_connections(scene)
        ended = b"ends" in process.stdout.read()
    if not (ended or struck):
        raise AssertionError(f"a load that nobody disturbed failed: {' '.join(kind)}, status {process.returncode}")
    return not ended


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
    statement = (
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'chaos' AND datname = current_database()"
    )
    until(lambda: (0,) == scene.ask(statement), 30)


def chaos(url: URL, rounds: int, seed: int) -> Counter[str]:
    """Kill `rounds` loads that run, in a migrated database; the tally says how that went."""
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
        kills = 0
        for _ in range(ROUNDS_FOR_A_KILL * rounds):
            if kills < rounds:
                kills += kill_once(scene, chance, tally)
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
