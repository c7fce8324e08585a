"""Blocks of lines become a binary COPY: the checks of `transform.checking`, on whole columns at once.

Whatever pyarrow cannot read exactly as whole numbers and eight decimal places, and whatever a check does not pass, is
left to the careful way. So nothing is decided here that the careful way would decide otherwise.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from struct import pack
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import csv

from helios.backfill.fast.numeric import numeric
from helios.backfill.fast.records import PLACES, POSTGRESQL_EPOCH, Digits, Unsigned, digits_of, records
from helios.backfill.transform.candle import OFFICIAL, Candle
from helios.backfill.transform.checking import Checker, Target
from helios.backfill.transform.findings import Findings
from helios.backfill.transform.grid import scale_of
from helios.backfill.transform.reading import Block
from helios.backfill.transform.refusal import OutOfOrderError

WHOLE = ("open_time", "close_time", "count")
PLAIN_COLUMNS = ("open_time", "open", "high", "low", "close", "volume")
OFFICIAL_COLUMNS = (
    *PLAIN_COLUMNS,
    "close_time",
    "quote_volume",
    "count",
    "taker_buy_volume",
    "taker_buy_quote_volume",
)
TRADES = 6  # place among the stored fields of the official layout
LARGEST = 1 << 23  # bytes of a block that pyarrow is given in one piece
NINE = ord("9")

Whole = npt.NDArray[np.int64]


class FastChecker(Checker):
    """Reads blocks in file order, and writes a binary COPY, or several: one for each section."""

    section = 0

    def __init__(self, findings: Findings, target: Target, width: int, now: int) -> None:
        super().__init__(findings, target, width, now)
        self.on_cut: Callable[[], None] = lambda: None

    def turn(self, moment: int) -> None:
        """Begin the section of a candle, and end those before it."""
        section = bisect_right(self.target.cuts, moment)
        if section < self.section:
            raise OutOfOrderError
        self.end_sections(section)

    def end_sections(self, section: int | None = None) -> None:
        """End the sections before this one; without it, all but the last, which the data's own end closes."""
        last = len(self.target.cuts) if section is None else section
        while self.section < last:
            self.section += 1
            self.on_cut()

    def closely(self, block: Block) -> Iterator[bytes]:
        """Turn a few lines into records, each by itself: a section may end between them."""
        yield from self.rows(block)
        yield b""  # bad rows alone give no record, but whoever reads on has to see how many they are

    def taken(self, line: int, row: bytes, candle: Candle) -> bytes | None:
        """Take a good candle into its section, unless the file has shown it before."""
        record = super().taken(line, row, candle)
        if record is not None:
            self.turn(candle.moment)
        return record

    def whole(self, data: bytes, count: int) -> bytes | None:
        """Turn a block in which nothing is odd into records at once; None when it needs a closer look."""
        table = self.table(data, count)
        if table is None:
            return None
        run = self.times(table, count)
        columns = self.columns(table, data) if run else None
        if run is None or columns is None:
            return None
        first, number = run
        last, cuts = first + self.grid.step * (count - 1), self.target.cuts
        if bisect_right(cuts, first) != bisect_right(cuts, last):
            return None
        quiet = (words(table, "volume") == 0).all(axis=1)
        self.count(first, number, count)
        self.turn(first)
        self.see_quiet(quiet)
        moments = first + self.grid.step * np.arange(count)
        return records(self.target.instrument_id, self.target.interval.encode(), moments, columns)

    def table(self, data: bytes, count: int) -> pa.Table | None:
        """Read a block's columns exactly, or not at all."""
        # Neither letters (pyarrow reads 0x1F) nor a carriage return on its own, which pyarrow takes for a row's end.
        if b"\r" in data or np.frombuffer(data, "u1").max() > NINE:
            return None
        names = OFFICIAL_COLUMNS if self.width == OFFICIAL else PLAIN_COLUMNS
        try:
            table = csv.read_csv(pa.BufferReader(data), *options(self.width))
        except pa.ArrowInvalid:
            return None
        one_piece = table.num_rows == count and table.column(0).num_chunks == 1
        return table if one_piece and not any(table.column(name).null_count for name in names) else None

    def times(self, table: pa.Table, count: int) -> tuple[int, int] | None:
        """Check that the times are an unbroken, closed run behind all before; its first moment and its number."""
        grid = self.grid
        opens = whole(table, "open_time")
        first = int(opens[0])
        scale = scale_of(first)
        if not scale or not grid.step or first % scale:
            return None
        step = grid.step * scale
        wanted = first + step * np.arange(count)
        if not np.array_equal(opens, wanted):
            return None
        if self.width == OFFICIAL and not np.array_equal(whole(table, "close_time"), wanted + (step - 1)):
            return None
        moment = first // scale
        number = grid.number(moment)
        if number is None or moment + grid.step * count > self.now or not self.findings.coverage.later(number):
            return None
        return moment, number

    def columns(self, table: pa.Table, data: bytes) -> list[Digits | npt.NDArray[np.int32]] | None:
        """Check that prices and volumes are those of candles, and take their digits."""
        opened, high, low, closed = (words(table, name) for name in ("open", "high", "low", "close"))
        if any(price[:, 1].any() for price in (opened, high, low, closed)):  # beyond 1.8e11, or negative
            return None
        opened, high, low, closed = opened[:, 0], high[:, 0], low[:, 0], closed[:, 0]
        if not (
            low.min() > 0 and (high >= np.maximum(opened, closed)).all() and (low <= np.minimum(opened, closed)).all()
        ):
            return None
        written = data[: data.find(b"\n")].split(b",")
        columns: list[Digits | npt.NDArray[np.int32]] = []
        for place, name in enumerate(OFFICIAL_COLUMNS[: len(table.column_names)]):
            if name == "count":
                trades = table.column(name).chunk(0).to_numpy()
                if trades.min() < 0:
                    return None
                columns.append(trades)
            elif name not in WHOLE:
                both = words(table, name)
                digits = digits_of(both[:, 0], both[:, 1], decimal_places(written[place]))
                if digits is None:
                    return None
                columns.append(digits)
        return columns

    def see_quiet(self, quiet: npt.NDArray[np.bool_]) -> None:
        """Count the candles without a trade, run by run."""
        turns = np.flatnonzero(quiet[1:] != quiet[:-1]) + 1
        starts = [0, *turns.tolist()]
        for start, end in zip(starts, [*starts[1:], len(quiet)], strict=True):
            self.findings.quiet.see(quiet=bool(quiet[start]), count=end - start)

    def row_text(self, candle: Candle) -> bytes:
        """Write one candle, with digits as many as it has."""
        fields = [pack(">iiiq", 4, self.target.instrument_id, 8, (candle.moment - POSTGRESQL_EPOCH) * 1000)]
        for place, field in enumerate(candle.fields):
            fields.append(pack(">ii", 4, int(field)) if place == TRADES else numeric(field))
        interval = self.target.interval.encode()
        return pack(">h", len(candle.fields) + 3) + b"".join(fields) + pack(">i", len(interval)) + interval


def options(width: int) -> tuple[csv.ReadOptions, csv.ParseOptions, csv.ConvertOptions]:
    """Tell pyarrow to read exactly these columns, and to invent nothing."""
    if width not in OPTIONS:
        names = OFFICIAL_COLUMNS if width == OFFICIAL else PLAIN_COLUMNS
        every = [*names, "ignore"][:width]
        types = {name: pa.int64() if name in WHOLE else pa.decimal128(38, PLACES) for name in names}
        if width == OFFICIAL:
            types["count"] = pa.int32()
        OPTIONS[width] = (
            csv.ReadOptions(column_names=every, use_threads=False, block_size=LARGEST),
            csv.ParseOptions(quote_char=False),
            csv.ConvertOptions(
                include_columns=list(names), column_types=types, null_values=[], strings_can_be_null=False
            ),
        )
    return OPTIONS[width]


OPTIONS: dict[int, tuple[Any, Any, Any]] = {}


def words(table: pa.Table, name: str) -> Unsigned:
    """View a column of 128-bit decimals as pairs of words, the lower first."""
    column = table.column(name).chunk(0)
    pairs = np.frombuffer(column.buffers()[1], "<u8").reshape(-1, 2)
    return pairs[column.offset : column.offset + len(column)]


def whole(table: pa.Table, name: str) -> Whole:
    """View a column of whole numbers."""
    numbers: Whole = table.column(name).chunk(0).to_numpy()
    return numbers


def decimal_places(field: bytes) -> int:
    """Count the decimal places of a number as written, eight at most."""
    return min(PLACES, len(field.partition(b".")[2].rstrip()))
