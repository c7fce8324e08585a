"""What a reading of the file found: counted in constant memory, told to the loader as one JSON object."""

import json
from collections import Counter
from itertools import groupby, islice
from typing import Any, TextIO

from .grid import Coverage, Grid, year_of

GAPS_TOLD = 20


class Quiet:
    """Candles without a trade: how many, in how many runs, and the longest run."""

    def __init__(self) -> None:
        self.candles = self.runs = self.longest = self._running = 0

    def see(self, *, quiet: bool, count: int = 1) -> None:
        """Count candles that follow each other in the file."""
        if not quiet:
            self._running = 0
            return
        self.runs += not self._running
        self.candles += count
        self._running += count
        self.longest = max(self.longest, self._running)

    def see_all(self, volumes: list[float]) -> None:
        """Count a block of candles."""
        if self._running or 0.0 in volumes:
            for quiet, group in groupby(volumes, key=lambda volume: volume == 0.0):
                self.see(quiet=quiet, count=sum(1 for _ in group))


class Findings:
    """Counts, gaps and rejected rows of one file; rejected rows are written out as they come."""

    def __init__(self, grid: Grid, notes: TextIO) -> None:
        self.grid = grid
        self.notes = notes
        self.coverage = Coverage()
        self.quiet = Quiet()
        self.lines = self.good = self.rejected = self.duplicates = 0
        self.kinds: Counter[str] = Counter()
        self.warnings: Counter[str] = Counter()
        self.years: set[int] = set()
        self.first_bad: tuple[int, str] | None = None

    def accept(self, moment: int, last: int, count: int = 1) -> None:
        """Count candles that were taken, the first and last by their opening time in milliseconds."""
        self.good += count
        self.years.update(range(year_of(moment), year_of(last) + 1))

    def reject(self, line: int, kind: str, reason: str, row: bytes) -> None:
        """Write out a row that was not taken, and why."""
        self.rejected += 1
        self.kinds[kind] += 1
        if self.first_bad is None or line < self.first_bad[0]:
            self.first_bad = (line, reason)
        shown = row[:1000].decode("utf-8", "backslashreplace").replace("\0", "\\x00")
        self.notes.write(json.dumps({"rejected": [line, reason, shown]}) + "\n")

    def told(self) -> dict[str, Any]:
        """Sum up, for the loader."""
        coverage, moment = self.coverage, self.grid.moment
        seen = coverage.first is not None
        return {
            "rows": self.lines,
            "good": self.good,
            "rejected": self.rejected,
            "duplicates": self.duplicates,
            "first": moment(coverage.first) if coverage.first is not None else None,
            "last": moment(coverage.last) if seen else None,
            "end": moment(coverage.last + 1) if seen else None,
            "span": coverage.last - coverage.first + 1 if coverage.first is not None else 0,
            "missing": coverage.missing,
            "gap_count": len(coverage.starts),
            "gaps": [(moment(start), count) for start, count in islice(coverage.gaps(), GAPS_TOLD)],
            "quiet": [self.quiet.candles, self.quiet.runs, self.quiet.longest],
            "kinds": dict(self.kinds),
            "warnings": dict(+self.warnings),  # those above zero
            "years": sorted(self.years),
            "first_bad": self.first_bad,
        }
