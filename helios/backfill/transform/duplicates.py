"""Rows whose candle the file had shown before: the same once more, or something else.

The first reading knows only that a row is late. They are spooled, and the file is read again to compare each with the
row that was taken; a hundred thousand at a time, so that a file that holds everything twice takes time, not memory.
"""

import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from decimal import Decimal
from itertools import islice
from typing import BinaryIO, Self

from .candle import Candle
from .checking import Checker
from .grid import MICROSECONDS_FROM
from .reading import Block
from .refusal import BadRowError

AT_ONCE = 100_000


class Duplicates:
    """Collects late rows during the reading, and sorts them out behind it."""

    def __init__(self, checker: Checker, blocks: Callable[[BinaryIO], Iterator[Block]]) -> None:
        self.checker = checker
        self.blocks = blocks
        self.spool = tempfile.TemporaryFile("w+", encoding="ascii")  # noqa: SIM115 - it lives as long as the reading
        self.count = 0
        checker.on_duplicate = self.keep

    def __enter__(self) -> Self:
        """Be used in a with statement."""
        return self

    def __exit__(self, *_: object) -> None:
        """Forget the rows."""
        self.spool.close()

    def keep(self, line: int, row: bytes, candle: Candle) -> None:
        """Put a row aside."""
        self.count += 1
        self.spool.write(json.dumps([candle.moment, line, row.decode("latin-1")]) + "\n")

    def settle(self, file: BinaryIO) -> None:
        """Drop what says the same as the row that was taken, and reject what says something else."""
        if not self.count:
            return
        self.spool.seek(0)
        while some := list(islice(self.spool, AT_ONCE)):
            self.settle_some(file, [json.loads(each) for each in some])

    def settle_some(self, file: BinaryIO, some: list[tuple[int, int, str]]) -> None:
        """Compare some of the rows with those that were taken."""
        waiting: dict[int, list[tuple[int, bytes]]] = defaultdict(list)
        for moment, line, row in some:
            waiting[moment].append((line, row.encode("latin-1")))
        for moment, line, taken in self.first_rows(file, set(waiting)):
            for late_line, late_row in waiting[moment]:
                self.settle_one(taken, line, late_line, late_row)

    def first_rows(self, file: BinaryIO, wanted: set[int]) -> Iterator[tuple[int, int, Candle]]:
        """Find the first good row of each moment."""
        for block in self.blocks(file):
            for place, row in enumerate(block.data.split(b"\n")):
                moment = moment_of(row)
                if moment not in wanted:
                    continue
                try:
                    candle = self.checker.candle(row.strip())
                except BadRowError:
                    continue
                wanted.remove(moment)
                yield moment, block.first_line + place, candle
            if not wanted:
                return

    def settle_one(self, taken: Candle, line: int, late_line: int, late_row: bytes) -> None:
        """Compare one late row, by value, with the row of the same moment that was taken."""
        findings = self.checker.findings
        if values(taken) == values(self.checker.candle(late_row)):
            findings.duplicates += 1
            return
        reason = f"differs from line {line}, which has the same open_time and was taken"
        findings.reject(late_line, "contradicting duplicate", reason, late_row)


def moment_of(row: bytes) -> int | None:
    """Read a row's opening time, in milliseconds, or None when it has none."""
    try:
        written = int(row[: row.find(b",")])
    except ValueError:
        return None
    return written if written < MICROSECONDS_FROM else written // 1000


def values(candle: Candle) -> list[object]:
    """Read the fields of a candle as numbers, so that 1.50 equals 1.5."""
    return [Decimal(field.decode()) for field in candle.fields]
