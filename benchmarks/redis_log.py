"""What recording costs a labelled Redis client, beside redis-py's own; and how fast a run is undone.

Example: python -m benchmarks.redis_log --json redis_log.json

Both clients take turns in short rounds; a ratio is the median of the rounds' ratios. The server is one of the
benchmark's own unless --url names another, of which then only keys that begin with `helios-bench:` are written.
"""

import argparse
import json
import os
import secrets
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from redis import Redis
from rich.console import Console
from rich.table import Table

from helios import label, servers
from helios.label.clients import RecordedRedis
from helios.settings import Settings
from helios.testing import redis_log

PREFIX = "helios-bench:"
VALUE = "v" * 50
PIPELINE = 100
Job = Callable[[Redis, str, int], None]


def write_one(client: Redis, name: str, number: int) -> None:
    """Write a key that the run knows already."""
    client.set(f"{PREFIX}{name}:{number % 50}", VALUE)


def write_new(client: Redis, name: str, number: int) -> None:
    """Write a key for the first time."""
    client.set(f"{PREFIX}{name}:new:{number}", VALUE)


def write_hash(client: Redis, name: str, number: int) -> None:
    """Write two fields of a hash."""
    client.hset(f"{PREFIX}{name}:hash:{number % 50}", mapping={"a": 1, "b": number})


def pipeline(client: Redis, name: str, number: int) -> None:
    """Write 100 new keys as one transaction."""
    with client.pipeline() as pipe:
        for each in range(PIPELINE):
            pipe.set(f"{PREFIX}{name}:piped:{number}:{each}", VALUE)
        pipe.execute()


def loose_pipeline(client: Redis, name: str, number: int) -> None:
    """Write 100 new keys together, but not as a transaction."""
    with client.pipeline(transaction=False) as pipe:
        for each in range(PIPELINE):
            pipe.set(f"{PREFIX}{name}:loose:{number}:{each}", VALUE)
        pipe.execute()


def read(client: Redis, name: str, number: int) -> None:
    """Read a key."""
    client.get(f"{PREFIX}{name}:{number % 50}")


def pop(client: Redis, name: str, _number: int) -> None:
    """Take the least of a sorted set: a reply that no script can give, so WATCH and MULTI."""
    client.zpopmin(f"{PREFIX}{name}:sorted")


JOBS: dict[str, tuple[Job, int]] = {
    "SET of a known key": (write_one, 100),
    "SET of a new key": (write_new, 100),
    "HSET": (write_hash, 100),
    "pipeline of 100 SET, a transaction": (pipeline, 3),
    "pipeline of 100 SET, none": (loose_pipeline, 3),
    "GET": (read, 100),
    "ZPOPMIN": (pop, 50),
}


def timed(job: Job, client: Redis, name: str, numbers: range) -> float:
    """Give the seconds that a round takes."""
    start = time.perf_counter()
    for number in numbers:
        job(client, name, number)
    return time.perf_counter() - start


def compare(job: Job, size: int, rounds: int, one: tuple[Redis, str], other: tuple[Redis, str]) -> dict[str, Any]:
    """Let two clients take turns."""
    times: list[tuple[float, float]] = []
    for number in range(rounds):
        numbers = range(number * size, (number + 1) * size)
        times.append((timed(job, *one, numbers), timed(job, *other, numbers)))
    first, second = ([each[side] / size * 1e6 for each in times] for side in (0, 1))
    ratio = statistics.median(mine / theirs for theirs, mine in times)
    return {"plain_us": statistics.median(first), "recorded_us": statistics.median(second), "ratio": ratio}


def undone(plain: Redis, recorded: Redis, run: int, keys: int) -> float:
    """Give the keys that are undone in a second."""
    redis_log.undo(plain, run)
    for first in range(0, keys, 1000):
        with recorded.pipeline(transaction=False) as pipe:
            for each in range(first, min(first + 1000, keys)):
                pipe.set(f"{PREFIX}undone:{each}", VALUE)
            pipe.execute()
    start = time.perf_counter()
    redis_log.undo(plain, run)
    return keys / (time.perf_counter() - start)


def measure(url: str, rounds: int, keys: int) -> dict[str, Any]:
    """Run everything once; nothing is left behind."""
    run = secrets.randbits(62) + 1
    plain, same, recorded = Redis.from_url(url), RecordedRedis.from_url(url), RecordedRedis.from_url(url)
    redis_log.begin(plain, run, "benchmark")
    found: dict[str, Any] = {}
    try:
        found["unlabelled SET"] = compare(write_one, 100, rounds, (plain, "plain"), (same, "same"))
        os.environ[label.VARIABLE] = str(run)
        for name, (job, size) in JOBS.items():
            found[name] = compare(job, size, rounds, (plain, "plain"), (recorded, "recorded"))
        found["undo"] = {"keys_per_second": undone(plain, recorded, run, keys)}
    finally:
        os.environ.pop(label.VARIABLE, None)
        redis_log.undo(plain, run)
        redis_log.close(plain, run)
        for name in plain.scan_iter(f"{PREFIX}*", count=1000):
            plain.unlink(name)
    return found


@contextmanager
def served(url: str | None) -> Iterator[str]:
    """Give the URL of a Redis: the one named, or one of our own."""
    if url:
        yield url
        return
    home = Path(tempfile.mkdtemp(prefix="helios-bench-"))
    home.chmod(0o755)
    server = servers.Valkey(home, binaries=Settings.from_environment().helios_redis_bin, durable=False)
    try:
        yield server.acquire().render_as_string(hide_password=False)
    finally:
        server.release()
        server.wait_ended()
        shutil.rmtree(home)


def show(found: dict[str, Any]) -> None:
    """Print a table."""
    table = Table("what", "redis-py, us", "recorded, us", "ratio", title="Recording in Redis")
    for name, each in found.items():
        if "ratio" in each:
            table.add_row(name, f"{each['plain_us']:.1f}", f"{each['recorded_us']:.1f}", f"{each['ratio']:.2f}")
    console = Console()
    console.print(table)
    console.print(f"undo: {found['undo']['keys_per_second']:,.0f} keys/s")


def main() -> None:
    """Measure, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a Redis to measure on")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--keys", type=int, default=50_000, help="how many are undone")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    with served(arguments.url) as url:
        found = measure(url, arguments.rounds, arguments.keys)
    show(found)
    if arguments.json:
        arguments.json.write_text(json.dumps({"results": found}, indent=2))


if __name__ == "__main__":
    main()
