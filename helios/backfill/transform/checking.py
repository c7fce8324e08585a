"""Blocks of lines become COPY text: checked in bulk where nothing is odd, row by row where something is.

A block that fails the bulk checks is halved until the odd rows are alone, so that one gap in a million rows costs a
few rows looked at closely. Every candle that the bulk checks let pass would pass the close look as well.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from operator import ge, le
from typing import NamedTuple

from .candle import MOST_DIGITS, MOST_TRADES, OFFICIAL, PLAIN, Candle, candle_of
from .findings import Findings
from .grid import Grid, scale_of
from .reading import Block
from .refusal import BadRowError, OutOfBoundsError

PLAIN_BYTES = b"0123456789.,\n"
HEADERS = (b"open_time", b"open time", b"timestamp")  # how the line above the rows begins
FEW = 24  # lines that are looked at one by one rather than halved again
EXACT_IN_FLOAT = 16  # a price of 15 digits and a point: floats order such numbers as decimals would


class Target(NamedTuple):
    """What the rows are for: the series, and the range (ms, both ends included) that the loader prepared.

    `cuts` (ms, ascending) part the rows into sections, each for a table of its own; the fast tier alone knows them.
    """

    instrument_id: int
    interval: str
    bounds: tuple[int, int] | None
    cuts: Sequence[int] = ()


class Bulk(NamedTuple):
    """A block in which nothing is odd: its fields in file order, and what is known of them."""

    fields: list[bytes]
    first: int
    number: int
    rows: int
    volumes: list[float]


class Checker:
    """Reads blocks in file order, and keeps what it found."""

    def __init__(self, findings: Findings, target: Target, width: int, now: int) -> None:
        self.findings = findings
        self.target = target
        self.width = width
        self.now = now
        self.grid: Grid = findings.grid
        self.on_duplicate: Callable[[int, bytes, Candle], None] = lambda _line, _row, _candle: None
        self._before = b"%d\t" % target.instrument_id
        self._after = b"\t%s\n" % target.interval.encode()

    def texts(self, block: Block) -> Iterator[bytes]:
        """Turn a block into COPY text; what is not taken goes to the findings."""
        count = block.lines
        if count > FEW:
            text = self.whole(block.data, count)
            if text is not None:
                yield text
                return
            middle = block.data.find(b"\n", len(block.data) // 2) + 1
            if 0 < middle < len(block.data):
                head, tail = block.data[:middle], block.data[middle:]
                above = head.count(b"\n")
                yield from self.texts(Block(block.first_line, head, torn=False, lines=above))
                yield from self.texts(Block(block.first_line + above, tail, block.torn, count - above))
                return
        yield from self.closely(block)

    def closely(self, block: Block) -> Iterator[bytes]:
        """Turn a few lines into one piece of COPY text, row by row."""
        yield b"".join(self.rows(block))

    def whole(self, data: bytes, count: int) -> bytes | None:
        """Turn a block in which nothing is odd into COPY text at once; None when it needs a closer look."""
        bulk = self.bulk(data, count)
        return None if bulk is None else self.bulk_text(bulk)

    def bulk(self, data: bytes, count: int) -> Bulk | None:
        """Check a whole block at once; None when anything in it needs a closer look."""
        if data.translate(None, PLAIN_BYTES) or has_long_line(data):
            return None
        width = self.width
        # Each line feed stays in front of the field behind it, so it is seen if one does not stand before a time.
        fields = data.replace(b"\n", b",\n").split(b",")
        if len(fields) != width * count + 1:
            return None
        try:
            run = self.bulk_times(fields, count)
            volumes = self.bulk_values(fields) if run else None
        except ValueError:  # an empty field, two points, a fraction where a whole number is due
            return None
        if run is None or volumes is None:
            return None
        first, number = run
        return Bulk(fields, first, number, count, volumes)

    def bulk_times(self, fields: list[bytes], count: int) -> tuple[int, int] | None:
        """Check that the times are an unbroken, closed run behind all before; its first moment and its number."""
        width, grid = self.width, self.grid
        times = fields[:-1:width]
        if b"".join(times).count(b"\n") != count - 1:
            return None
        opens = list(map(int, times))
        scale = scale_of(opens[0])
        if not scale or not grid.step:
            return None
        step, first = grid.step * scale, opens[0]
        if opens != list(range(first, first + step * count, step)) or first % scale:
            return None
        if width == OFFICIAL:
            closes = list(map(int, fields[6::width]))
            if closes != list(range(first + step - 1, first + step * (count + 1) - 1, step)):
                return None
        moment = first // scale
        number = grid.number(moment)
        if number is None or moment + grid.step * count > self.now or not self.findings.coverage.later(number):
            return None
        return moment, number

    def bulk_values(self, fields: list[bytes]) -> list[float] | None:
        """Check that prices and volumes are those of candles; the volumes."""
        width = self.width
        columns = [fields[place::width] for place in range(1, 5)]
        if max(map(len, chain.from_iterable(columns))) > EXACT_IN_FLOAT:
            return None
        opened, high, low, closed = (list(map(float, column)) for column in columns)
        in_order = all(map(ge, high, opened)) and all(map(ge, high, closed))
        in_order = in_order and all(map(le, low, opened)) and all(map(le, low, closed)) and min(low) > 0
        volumes = list(map(float, fields[5::width]))
        if width == OFFICIAL:
            for place in (7, 9, 10):
                sum(map(float, fields[place::width]))
            in_order = in_order and max(map(int, fields[8::width])) <= MOST_TRADES
        return volumes if in_order else None

    def bulk_text(self, bulk: Bulk) -> bytes:
        """Write a checked block, and count it."""
        grid = self.grid
        self.count(bulk.first, bulk.number, bulk.rows)
        self.findings.quiet.see_all(bulk.volumes)
        fields, width, after = bulk.fields, self.width, self._after
        del fields[-1]
        if width == OFFICIAL:
            del fields[11::12]  # ignore
            del fields[6::11]  # close_time
            width = 10
        # The end of a row and the beginning of the next are one element, so that a single join writes the block.
        between = after[1:] + self._before
        fields[::width] = grid.texts(bulk.first, bulk.rows, between)
        fields[0] = fields[0][len(after) - 1 :]
        fields.append(after[1:])
        return b"\t".join(fields)

    def count(self, first: int, number: int, rows: int) -> None:
        """Count a checked run of candles: its first moment and number."""
        last = first + self.grid.step * (rows - 1)
        self.stay_within(first, last)
        self.findings.coverage.add(number, rows)
        self.findings.lines += rows
        self.findings.accept(first, last, rows)

    def rows(self, block: Block) -> Iterator[bytes]:
        """Look at a few lines one by one."""
        lines = block.data.split(b"\n")
        del lines[-1]
        for place, line in enumerate(lines):
            row = line.strip()
            if not row or row[:9].lower() in HEADERS:
                continue
            torn = block.torn and place == len(lines) - 1
            self.findings.lines += 1
            try:
                candle = self.candle(row, torn=torn)
            except BadRowError as bad:
                reason = f"{bad}; the file ends inside this row" if torn else str(bad)
                self.findings.reject(block.first_line + place, bad.kind, reason, row)
                continue
            if text := self.taken(block.first_line + place, row, candle):
                yield text

    def candle(self, row: bytes, *, torn: bool = False) -> Candle:
        """Read one row closely; one that the file's end cut off counts only when all its columns are there."""
        fields = [field.strip() for field in row.split(b",")]
        if torn and self.width == PLAIN:
            raise BadRowError("wrong number of columns", "is not complete")
        return candle_of(fields, self.width, self.grid, self.now)

    def taken(self, line: int, row: bytes, candle: Candle) -> bytes | None:
        """Take a good candle, unless the file has shown it before."""
        findings = self.findings
        behind = not findings.coverage.later(candle.number)
        self.stay_within(candle.moment, candle.moment)
        if not findings.coverage.add(candle.number):
            self.on_duplicate(line, row, candle)
            return None
        findings.warnings["out of order"] += behind
        findings.warnings["with a wrong close_time"] += not candle.close_time_agrees
        findings.quiet.see(quiet=not candle.volume)
        findings.accept(candle.moment, candle.moment)
        return self.row_text(candle)

    def row_text(self, candle: Candle) -> bytes:
        """Write one candle."""
        text = self._before + self.grid.text(candle.moment) + b"\t" + b"\t".join(candle.fields)
        return text + self._after

    def stay_within(self, first: int, last: int) -> None:
        """Stop when a good candle lies outside the range that the loader prepared for."""
        bounds = self.target.bounds
        if bounds and not bounds[0] <= first <= last <= bounds[1]:
            raise OutOfBoundsError


def has_long_line(data: bytes) -> bool:
    """Say whether a line is longer than any number may be, which costs one look for each thousand bytes."""
    start = 0
    while start < len(data):
        start = data.rfind(b"\n", start, start + MOST_DIGITS + 1) + 1
        if not start:
            return True
    return False
