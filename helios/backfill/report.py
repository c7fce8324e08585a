"""What a load tells: while it runs, and at its end."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from itertools import count
from pathlib import Path
from urllib.parse import quote

from helios import rejects
from helios.backfill.source import Source

REJECTS_HEADER = ("line", "reason", "row")
LONGEST_NAME = 200  # bytes of the 255 that file systems take: there are marks before and behind


class Mode(StrEnum):
    """How a file came into the table."""

    UNCHANGED = "unchanged"  # its checksum was known: nothing was read further
    DIRECT = "direct"  # the table held nothing of its range
    COMPARED = "compared"  # only what differs was written
    INITIAL = "initial"  # into an empty partition, whose key was built afterwards


class Stage(StrEnum):
    """What a load is doing."""

    LOOKING = "looking"  # reading the file once before anything is written
    LOADING = "loading"
    COMPARING = "comparing"


@dataclass(frozen=True)
class Progress:
    """How far a load has come: rows handed to the server, and bytes of the file read."""

    stage: Stage
    rows: int
    bytes_read: int
    bytes_in_all: int


@dataclass(frozen=True)
class Gap:
    """Candles that the file lacks between its first and its last."""

    start: datetime
    candles: int


@dataclass(kw_only=True)
class Report:
    """What became of one file."""

    source: Source
    mode: Mode
    rows: int = 0  # lines that should be candles
    good: int = 0  # distinct candles among them
    inserted: int = 0
    changed: int = 0
    rejected: int = 0
    duplicates: int = 0  # rows that say once more what an earlier one said; like the gaps not counted where UNCHANGED
    missing: int = 0  # candles lacking between the first and the last
    gap_count: int = 0
    gaps: list[Gap] = field(default_factory=list)  # the first ones
    first: datetime | None = None
    last: datetime | None = None
    expected: int = 0  # candles of the period in the file's name, else between first and last
    quiet: tuple[int, int, int] = (0, 0, 0)  # candles without a trade, runs of them, the longest run
    reasons: list[str] = field(default_factory=list)  # what is wrong with the file, as sentences
    rejects: Path | None = None  # the file that holds the rejected rows
    seconds: float = 0.0

    @property
    def written(self) -> int:
        """Rows that the table did not hold like this before."""
        return self.inserted + self.changed

    @property
    def unchanged(self) -> int:
        """Rows that the table held already."""
        return self.good - self.written

    @property
    def completeness(self) -> float:
        """Share of the expected candles that the file holds."""
        return min(1.0, self.good / self.expected) if self.expected else 1.0


def write_rejects(folder: Path, source: Source, rows: Iterable[tuple[int, str, str]]) -> Path:
    """Write rejected rows to a CSV file named after series and file; only a file like it is replaced."""
    return rejects.write(rejects_path(folder, source), REJECTS_HEADER, rows)


def remove_rejects(folder: Path, source: Source) -> None:
    """Remove the rejected rows of an earlier load of the file, which has none any more; others' files stay."""
    rejects.remove(rejects_path(folder, source))


def rejects_path(folder: Path, source: Source) -> Path:
    """Name the file for rejected rows; where another's file has the name, one with a number."""
    stem = file_name(f"{source.exchange}-{source.market}-{source.symbol}-{source.interval}-{source.name}")
    for number in count(1):
        path = folder / (f"{stem}.rejects.csv" if number == 1 else f"{stem}.rejects.{number}.csv")
        if not path.exists() or is_rejects(path):
            return path
    raise AssertionError  # count() does not end


def file_name(told: str) -> str:
    """Make a file's name of any text: what may mean something to a file system becomes %2F, as in addresses."""
    name = re.sub(r"[^\w.-]", lambda found: quote(found[0], safe="", errors="surrogateescape"), told)
    if len(name.encode()) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    return f"{name.encode()[: LONGEST_NAME - len(digest) - 1].decode(errors='ignore')}-{digest}"


def is_rejects(path: Path) -> bool:
    """Say whether a file is one that write_rejects wrote."""
    try:
        with path.open("rb") as file:
            return file.readline(100).rstrip() == ",".join(REJECTS_HEADER).encode()
    except OSError:
        return False
