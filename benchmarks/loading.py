"""The loading part: files of klines into the same checked, partitioned table, each way in turn, round after round."""

import argparse
import functools
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

import make_klines

from benchmarks import peers
from benchmarks.place import COLUMNS, KLINES, Place
from helios import backfill

ANCHOR = "psql \\copy of ready rows"
START = datetime(2024, 1, 1, tzinfo=UTC)
LISTED = ", ".join(f'"{name}"' for name in COLUMNS)


@dataclass
class Files:
    r"""One series: its raw file as the archive has it, and its rows as \copy takes them."""

    raw: Path
    ready: Path
    rows: int
    symbol: str
    interval: str
    instrument_id: int
    content: str = ""  # checksum of the table's content, by value


@dataclass
class Way:
    """One way to load, with what each round took."""

    name: str
    run: Callable[[], object]
    rows: int
    anchor: str
    prepare: Callable[[], object] = lambda: None
    check: Callable[[], str] = lambda: ""
    seconds: list[float] = field(default_factory=list)
    wal: list[int] = field(default_factory=list)
    growth: list[int] = field(default_factory=list)
    content: str = ""
    error: str = ""

    @property
    def rate(self) -> float:
        """Rows a second, in the median."""
        return self.rows / median(self.seconds) if self.seconds else 0.0


def loading(place: Place, options: argparse.Namespace, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Run every way `rounds` times, interleaved, and sum up."""
    rows, sample, rounds, raw, only = options.rows, options.sample, options.rounds, options.files, options.only
    say(f"writing files of {rows:,} and {sample:,} rows")
    one, two = made(place, "BENCHUSDT", "1m", rows, raw[:1]), made(place, "OTHERUSDT", "3m", rows, raw[1:2])
    few = made(place, "SMALLUSDT", "1m", sample, [])
    found = [way for way in ways(place, one, two, few) if not only or only in way.name or way.name == way.anchor]
    for number in range(rounds):
        for way in found:
            if way.error:
                continue
            say(f"round {number + 1} of {rounds}: {way.name}")
            measure(place, way)
    return summed(found)


def measure(place: Place, way: Way) -> None:
    """Time one way once, from a table that is as it wants it."""
    place.emptied()
    try:
        way.prepare()
        place.ask("CHECKPOINT")
        wal, size = place.wal(), place.size()
        began = time.perf_counter()
        way.run()
    except Exception as error:  # noqa: BLE001 - a peer that fails is a line of the table
        way.error = f"{type(error).__name__}: {error}".splitlines()[0][:120]
        return
    way.seconds.append(time.perf_counter() - began)
    way.wal.append(place.wal() - wal)
    way.growth.append(place.size() - size)
    way.content = way.check()


def ways(place: Place, one: Files, two: Files, few: Files) -> Iterator[Way]:
    """List the ways: Helios's own and the anchor at full size, the slow ones with an anchor of their own size."""
    both = one.rows + two.rows
    engine = place.engine()

    def helios(files: Files, **options: object) -> backfill.Report:
        source = backfill.recognise(files.raw, symbol=files.symbol, interval=files.interval, market="spot")
        return backfill.load(engine, source, **options)

    def at_once(run: Callable[[Files], object]) -> None:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(run, (one, two)))

    def same() -> str:
        return compared(place, one)

    yield Way(ANCHOR, lambda: copied(place, one), one.rows, ANCHOR, check=same)
    yield Way("helios, fast tier", lambda: helios(one, tier="fast"), one.rows, ANCHOR, check=same)
    yield Way("helios, base tier", lambda: helios(one, tier="base"), one.rows, ANCHOR, check=same)
    yield Way("helios --initial", lambda: helios(one, initial=True), one.rows, ANCHOR, check=same)
    yield Way("two \\copy at once", lambda: at_once(lambda each: copied(place, each)), both, "two \\copy at once")
    yield Way("two helios at once", lambda: at_once(helios), both, "two \\copy at once")
    yield Way("two helios --initial", lambda: at_once(lambda each: helios(each, initial=True)), both, ANCHOR)

    def loaded() -> None:
        """Load, and clean up as autovacuum does; else the next to read writes hint bits, and so WAL."""
        helios(one)
        place.ask(f"VACUUM ANALYZE {KLINES}")

    for name, changed in (
        ("helios, loaded again", {"again": True}),
        ("helios, base, again", {"again": True, "tier": "base"}),
        ("helios, file unchanged", {}),
    ):
        run = functools.partial(helios, one, **changed)
        yield Way(name, run, one.rows, ANCHOR, prepare=loaded, check=same)
    anchor = f"{ANCHOR}, {few.rows:,}"
    yield Way(anchor, lambda: copied(place, few), few.rows, anchor, check=lambda: compared(place, few))
    for name, peer in peers.all_of_them():
        run = peers.ready(peer, place, few)
        yield Way(name, run, few.rows, anchor, check=lambda: compared(place, few))
        if name in peers.REPEATABLE:
            yield Way(f"{name}, again", run, few.rows, anchor, prepare=run, check=lambda: compared(place, few))


def made(place: Place, symbol: str, interval: str, rows: int, raw: list[Path]) -> Files:
    r"""Write a raw file, or take one given, and write its rows as \copy takes them, by way of the table."""
    path = raw[0] if raw else place.folder / f"{symbol}-{interval}.csv"
    if not raw:
        start = START if interval == "1m" else START - timedelta(days=4 * 365)
        make_klines.append_rows(path, symbol, interval, start, rows)
    source = backfill.recognise(path, symbol=symbol, interval=interval, market="spot")
    report = backfill.load(place.engine(), source)
    number = place.ask(f"SELECT id FROM helios_trading.instruments WHERE symbol = '{symbol}'")[0]
    ready = place.folder / f"{symbol}.ready"
    connection = place.connect()
    with ready.open("wb") as file, connection.cursor() as cursor:
        cursor.copy_expert(f"COPY (SELECT {LISTED} FROM {KLINES} WHERE instrument_id = {number}) TO STDOUT", file)
    connection.close()
    files = Files(path, ready, report.good, symbol, interval, int(str(number)))
    files.content = digest(place, files)
    place.emptied()
    return files


def copied(place: Place, files: Files) -> None:
    """Send ready rows by psql."""
    command = f"\\copy {KLINES} ({LISTED}) FROM '{files.ready}'"
    subprocess.run([place.programs / "psql", "-q", "-X", "-d", place.dsn, "-c", command], check=True)


def digest(place: Place, files: Files) -> str:
    """Take a checksum of a series by value: trailing zeros do not count."""
    numbers = ", ".join(f"trim_scale({name})" for name in COLUMNS[3:] if name != "trades")
    row = f"concat_ws(',', open_time, trades, {numbers})"
    statement = (
        f"SELECT md5(string_agg(hash, '' ORDER BY open_time)) FROM "
        f"(SELECT open_time, md5({row}) AS hash FROM {KLINES} WHERE instrument_id = {files.instrument_id}) AS rows"
    )
    return str(place.ask(statement)[0])


def compared(place: Place, files: Files) -> str:
    """Say whether the table holds exactly what the file says; else in how many rows it does not."""
    if digest(place, files) == files.content:
        return "exact"
    connection = place.connect()
    with files.ready.open("rb") as file, connection.cursor() as cursor:
        cursor.execute(f"CREATE TEMPORARY TABLE wanted AS SELECT {LISTED} FROM {KLINES} LIMIT 0")
        cursor.copy_expert(f"COPY wanted ({LISTED}) FROM STDIN", file)
        cursor.execute(
            f"SELECT count(*) FROM (SELECT {LISTED} FROM wanted EXCEPT SELECT {LISTED} FROM {KLINES}) AS rest"
        )
        count = cursor.fetchone()[0]
    connection.close()
    return f"{count:,} rows differ"


def summed(found: list[Way]) -> list[dict[str, Any]]:
    """Sum up: medians, and the ratio to the anchor of the same run."""
    rates = {way.name: way.rate for way in found}
    return [
        {
            "way": way.name,
            "rows": way.rows,
            "rounds": len(way.seconds),
            "seconds": round(median(way.seconds), 3) if way.seconds else None,
            "rows_per_second": round(way.rate),
            "ratio": round(way.rate / rates[way.anchor], 4) if rates[way.anchor] else None,
            "anchor": way.anchor,
            "wal_bytes": round(median(way.wal)) if way.wal else None,
            "growth_bytes": round(median(way.growth)) if way.growth else None,
            "bytes_per_row": round(median(way.growth) / way.rows, 1) if way.growth else None,
            "content": way.error or way.content,
            "all_seconds": [round(each, 3) for each in way.seconds],
        }
        for way in found
    ]
