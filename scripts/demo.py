"""The main job, as a user does it: servers up, schema made, klines loaded, listed and shown; nothing left running.

Run it with `make demo`, or `make demo FILES="a.csv b.zip"` for files of your own. It works in the schema helios_demo of
the embedded server, whatever DATABASE_URL says, and clears what an earlier demo left there.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import make_klines
import psycopg2

from helios import servers
from helios.errors import HeliosError
from helios.settings import Settings

SCHEMA = "helios_demo"
SYMBOLS = ("BTCUSDT", "ETHUSDT", "SOLUSDT")
MONTH = datetime(2025, 1, 1, tzinfo=UTC)
# An empty variable wins over one of a .env file, and means the default.
OWN = {
    "DATABASE_URL": "",
    "DATABASE_MIGRATION_URL": "",
    "DATABASE_ROLE_PREFIX": "",
    "REDIS_URL": "",
    "DATABASE_SCHEMA": SCHEMA,
    "HELIOS_ENVIRONMENT": "development",
}


def main() -> None:
    """Run the demo on the embedded servers, and leave when they are gone."""
    os.environ.update(OWN)
    try:
        settings = Settings.from_environment()
        with both_servers(settings) as url, the_only_one(url), working_folder(settings) as folder:
            files = [str(Path(each).resolve()) for each in sys.argv[1:]]
            run(servers.available(settings).postgres / "pg_dump", url, folder, files)
    except HeliosError as error:
        raise SystemExit(f"demo: {error}") from None
    say(f"Done. To look around: DATABASE_SCHEMA={SCHEMA} .venv/bin/helios klines list")


@contextmanager
def both_servers(settings: Settings) -> Iterator[str]:
    """Use the embedded servers, and wait for their end where nobody else uses them and nobody asked to keep them.

    Gives PostgreSQL's URL as libpq's programs read it.
    """
    held = (
        servers.Postgres(settings.helios_home, binaries=settings.helios_postgres_bin),
        servers.Valkey(settings.helios_home, binaries=settings.helios_redis_bin),
    )
    say("Starting the embedded PostgreSQL and Valkey")
    began = time.monotonic()
    try:
        url, _ = (each.acquire() for each in held)
        print(f"ready after {time.monotonic() - began:.1f} s, their data in {settings.helios_home}", flush=True)
        yield url.set(drivername="postgresql").render_as_string(hide_password=False)
    finally:
        for each in held:
            each.release()
        while any(each.running and not each.kept and not each.users for each in servers.status(settings)):
            time.sleep(0.05)
        ending = {each.name for each in servers.status(settings) if not each.running}
        for each in held:
            if each.place.name in ending:
                each.wait_ended()


@contextmanager
def the_only_one(url: str) -> Iterator[None]:
    """Wait for another demo to end: it works in the same schema."""
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        cursor.execute("SELECT pg_try_advisory_lock(hashtext('helios demo'))")
        if not cursor.fetchone()[0]:
            say("Waiting for another demo to end")
            cursor.execute("SELECT pg_advisory_lock(hashtext('helios demo'))")
        yield


@contextmanager
def working_folder(settings: Settings) -> Iterator[Path]:
    """Make a folder beside the servers' data, which a demo that was killed leaves to the next one."""
    folder = settings.helios_home.resolve() / "demo"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def run(pg_dump: Path, url: str, folder: Path, files: list[str]) -> None:
    """Do the main job."""
    before = checksum_of_public(pg_dump, url)
    helios("upgrade")  # so that there is something to clear, also the first time
    helios("downgrade", "base")
    shown("upgrade")
    expected = None
    if not files:
        say(f"Generating one month of 1m klines of {', '.join(SYMBOLS)}, with the defects of the public archive")
        made = generated(folder)
        files, expected = [str(each.path) for each in made], {each.symbol: each.good for each in made}
    shown("klines", "load", "--rejects", f"{folder}/rejects", *files)
    say("The same again: every row is compared, none is written")
    shown("klines", "load", "--again", "--rejects", f"{folder}/rejects", *files)
    shown("klines", "list")
    series: list[dict[str, Any]] = json.loads(helios("klines", "list", "--json"))
    if expected is not None and expected != {each["symbol"]: each["rows"] for each in series}:
        raise SystemExit(f"demo: the table should hold {expected}")
    for each in series:
        shown("klines", "show", each["symbol"], each["interval"], "--market", each["market"], "--last", "3")
    shown("doctor")
    say("`public` is untouched: the checksum of its dump, before and after")
    after = checksum_of_public(pg_dump, url)
    print(f"{before}\n{after}", flush=True)
    if before != after:
        raise SystemExit("demo: `public` has changed")


def generated(folder: Path) -> list[make_klines.Made]:
    """Write the files, and tell what is in them."""
    made = []
    for symbol in SYMBOLS:
        one = make_klines.make_file(folder / "spot", symbol, "1m", start=MONTH, defects=make_klines.DEMO_DEFECTS)
        defects = ", ".join(f"{name} {count}" for name, count in one.injected.items())
        print(f"{one.path.name}: {one.rows:,} rows, {one.good:,} good candles ({defects})", flush=True)
        made.append(one)
    return made


def checksum_of_public(pg_dump: Path, url: str) -> str:
    """Dump everything in `public` with pg_dump, and give the dump's checksum."""
    command = [pg_dump, "--schema=public", "--dbname", url]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    kept = [line for line in lines if not line.startswith(("\\restrict", "\\unrestrict"))]  # a key made up each time
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()


def shown(*arguments: str) -> None:
    """Show a command, run it as a user would type it, and show what it prints."""
    say("$ helios " + " ".join(arguments))
    done = subprocess.run([sys.executable, "-m", "helios.cli", *arguments], check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


def helios(*arguments: str) -> str:
    """Run a command and give what it prints."""
    done = subprocess.run([sys.executable, "-m", "helios.cli", *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout


def say(line: str) -> None:
    """Print a heading."""
    print(f"\n\033[1m{line}\033[0m" if sys.stdout.isatty() else f"\n{line}", flush=True)


if __name__ == "__main__":
    main()
