"""One reading of a file, whoever does it: what COPY reads from, and what the reading told at its end."""

import json
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from helios.backfill.transform.refusal import OutOfBoundsError, OutOfOrderError
from helios.errors import InputError


class Reading(ABC):
    """A file on its way to COPY; `read` fails when the reading did."""

    form = ""  # what COPY is told of the data's form

    def __init__(self, path: Path, on_rows: Callable[[int], None]) -> None:
        self.path = path
        self.rows = 0
        self.error: BaseException | None = None
        self.told: dict[str, Any] = {}
        self.notes: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self.on_rows = on_rows
        self._ahead: bytes | None = None

    @abstractmethod
    def more(self, size: int) -> tuple[bytes, int]:
        """Wait for the next data, and say how many rows it holds; no data at the end, when all is told."""

    @abstractmethod
    def wait(self) -> None:
        """Wait for a reading that writes nothing."""

    @abstractmethod
    def close(self) -> None:
        """End the reading if it still runs, and forget its notes."""

    def peek(self) -> None:
        """Wait for the first rows, or for the refusal: until then nothing needs to be written anywhere."""
        self._ahead, self.rows = self.more(1 << 20)

    def read(self, size: int = 1 << 18) -> bytes:
        """Read COPY data; an error is kept, because psycopg2 replaces it by its own."""
        try:
            data, self._ahead = self._ahead, None
            if data is None:
                data, rows = self.more(size)
                self.rows += rows
            self.on_rows(self.rows)
        except BaseException as error:
            self.error = error
            raise
        return data

    def take(self, told: dict[str, Any]) -> bool:
        """Take what the reading told at its end; False when that is not all."""
        if "refusal" in told:
            raise InputError(f"{self.path} {told['refusal']}")
        if "out_of_bounds" in told:
            raise OutOfBoundsError
        if "out_of_order" in told:
            raise OutOfOrderError
        self.told = told
        return "found" in told

    def noted(self) -> Iterator[dict[str, Any]]:
        """List the notes: JSON, one a line."""
        self.notes.seek(0)
        for line in self.notes:
            with suppress(ValueError):
                note = json.loads(line)
                if isinstance(note, dict):
                    yield note

    def rejected(self) -> Iterator[tuple[int, str, str]]:
        """List the rows that were not taken: line, reason, row."""
        for note in self.noted():
            if "rejected" in note:
                line, reason, row = note["rejected"]
                yield line, reason, row


def now() -> int:
    """Say what time it is, in milliseconds: a candle that ends later is not closed."""
    return time.time_ns() // 1_000_000
