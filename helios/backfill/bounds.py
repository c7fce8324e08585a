"""The range of a file's candles, which the loader prepares for before it copies."""

import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import BinaryIO

from helios.backfill import tables
from helios.backfill.source import Source
from helios.backfill.transform.candle import OFFICIAL, WHOLE
from helios.backfill.transform.grid import scale_of
from helios.models import Interval

END = 4096  # bytes looked at, at either end
MOST_YEARS = 2  # a longer span has to be one that the rows fill: one wrong row would make partitions for decades
FILLED = 2  # the candles that fit between the ends, for each row: so many may be missing


@dataclass(frozen=True)
class Bounds:
    """First and last opening time (ms), the years with candles, and whether rows have the official columns."""

    first: int | None
    last: int | None
    years: list[int]
    official: bool

    @property
    def span(self) -> tuple[datetime, datetime] | None:
        """The range as moments; None when the file has no candles."""
        if self.first is None or self.last is None:
            return None
        return moment_of(self.first), moment_of(self.last)

    @property
    def values(self) -> tuple[str, ...]:
        """The columns that the rows have besides their key."""
        return tables.OFFICIAL_VALUES if self.official else tables.PLAIN_VALUES


def moment_of(milliseconds: int) -> datetime:
    """Turn epoch milliseconds into a moment, without a float between."""
    return datetime.fromtimestamp(milliseconds // 1000, UTC).replace(microsecond=milliseconds % 1000 * 1000)


def likely_bounds(source: Source, file: BinaryIO) -> Bounds | None:
    """Tell the range of a plain CSV in the official layout by its two ends; None where it takes more than that."""
    if source.path.suffix.lower() != ".csv" or source.interval is Interval.D3:
        return None
    descriptor = file.fileno()
    size = os.fstat(descriptor).st_size
    os.lseek(descriptor, 0, os.SEEK_SET)
    head = os.read(descriptor, END).splitlines()[:2]
    os.lseek(descriptor, max(0, size - END), os.SEEK_SET)
    tail = os.read(descriptor, END).splitlines()[-1:]
    first = next((at for at in map(opening, head) if at is not None), None)
    last = next((at for at in map(opening, tail) if at is not None), None)
    if first is None or last is None or first > last:
        return None
    years = list(range(moment_of(first).year, moment_of(last).year + 1))
    if len(years) > MOST_YEARS and not filled(source, last - first, size / len(tail[0])):
        return None
    return Bounds(first, last, years, official=True)


def beginning(year: int) -> int:
    """Say when a UTC year begins, in milliseconds."""
    return round(datetime(year, 1, 1, tzinfo=UTC).timestamp()) * 1000


def filled(source: Source, span: int, rows: float) -> bool:
    """Say whether so many rows, more or less, fill a span (ms)."""
    length = source.interval.length
    return length is not None and span <= FILLED * rows * (length / timedelta(milliseconds=1))


def opening(line: bytes) -> int | None:
    """Read the opening time (ms) of a row in the official layout; None when the line is no such row."""
    fields = line.split(b",")
    if len(fields) != OFFICIAL or not WHOLE.fullmatch(fields[0]):
        return None
    written = int(fields[0])
    scale = scale_of(written)
    return written // scale if scale else None
