"""The thread that reads a file: the next block is encoded while the server copies this one.

Numpy, pyarrow, the checksum and the sending all let go of the interpreter, so a thread is enough, and no process has to
import them anew for each file.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Any, BinaryIO

from helios.backfill.fast.checking import FastChecker
from helios.backfill.reading import Reading
from helios.backfill.transform.checking import Target
from helios.backfill.transform.findings import Findings
from helios.backfill.transform.grid import Grid
from helios.backfill.transform.program import Hashed, transformed
from helios.backfill.transform.reading import PARQUET, Block, blocks
from helios.backfill.transform.refusal import RefusalError

BEGINNING = b"PGCOPY\n\xff\r\n\0" + bytes(8)
END = b"\xff\xff"
BLOCK = 1 << 21  # bytes: the longer the columns, the less Python between them
AHEAD = 2  # pieces encoded before the server wants them
PIECE = 1 << 18  # bytes: what is looked at closely comes in crumbs
LOOK_EVERY = 0.2  # seconds between two looks whether somebody still waits


# Records and how many they are; where a section ends; what was found; what went wrong.
Piece = tuple[bytes, int] | None | dict[str, Any] | BaseException


class GoneError(Exception):
    """Nobody waits for this reading any more."""


class FastReading(Reading):
    """A reading by numpy and pyarrow, in a thread: binary COPY, one for each section."""

    form = " WITH (FORMAT binary)"

    def __init__(self, path: Path, file: BinaryIO, job: dict[str, Any], on_rows: Callable[[int], None]) -> None:
        super().__init__(path, on_rows)
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        self._pieces: Queue[Piece] = Queue(AHEAD)
        self._crumbs = [BEGINNING]
        self._size = self._sent = 0
        self._checker: FastChecker | None = None
        self._gone = Event()
        self._job = job
        # A descriptor of its own with the same offset, which is how far the reading has come.
        self._file = Hashed(os.dup(file.fileno()), "rb")
        self._thread = Thread(target=self._run, name=f"reads {path.name}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._put(self._read())
        except GoneError:
            pass
        except RefusalError as refusal:
            self._put({"refusal": str(refusal)})
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            self._put(error)

    def _read(self) -> dict[str, Any]:
        notes = TextIOWrapper(self.notes, encoding="utf-8", write_through=True)
        try:
            told = transformed(self._job, self._file, self._write, notes, self._make_checker, self._wanted)
        finally:
            notes.detach()
        if self._checker and self._job["write"]:
            self._checker.end_sections()
        if self._job["write"]:
            self._crumbs.append(END)
            self._flush()
        return told

    def _wanted(self, file: BinaryIO) -> Iterator[Block]:
        """Read while somebody waits: what is only looked at, or compared, meets no full queue that would tell."""
        for block in self._blocks()(file):
            if self._gone.is_set():
                raise GoneError
            yield block

    def _blocks(self) -> Callable[[BinaryIO], Iterator[Block]]:
        head = self._file.read(len(PARQUET))
        self._file.seek(0)
        if head != PARQUET:
            return partial(blocks, size=BLOCK)
        from helios.backfill.fast import parquet  # noqa: PLC0415 - not imported for the files that are text

        return parquet.blocks(Grid(self._job["step"], self._job["anchor"]), self._job["interval"])

    def _make_checker(self, findings: Findings, target: Target, width: int, now: int) -> FastChecker:
        self._checker = FastChecker(findings, target, width, now)
        self._checker.on_cut = self._cut
        return self._checker

    def _cut(self) -> None:
        self._crumbs.append(END)
        self._flush()
        self._put(None)
        self._crumbs = [BEGINNING]

    def _write(self, data: bytes) -> None:
        self._crumbs.append(data)
        self._size += len(data)
        if self._size >= PIECE:
            self._flush()

    def _flush(self) -> None:
        good = self._checker.findings.good if self._checker else 0
        self._put((b"".join(self._crumbs), good - self._sent))
        self._crumbs, self._size, self._sent = [], 0, good

    def _put(self, each: Piece) -> None:
        while not self._gone.is_set():
            try:
                self._pieces.put(each, timeout=LOOK_EVERY)
            except Full:
                continue
            return
        if not isinstance(each, BaseException):
            raise GoneError

    def more(self, size: int) -> tuple[bytes, int]:  # noqa: ARG002 - pieces come as they are
        """Wait for the next records; none at the end of a section."""
        if self.told:
            return b"", 0
        each = self._pieces.get()
        if each is None:
            return b"", 0
        if isinstance(each, BaseException):
            raise each
        if isinstance(each, dict):
            self.take(each)
            return b"", 0
        return each

    def wait(self) -> None:
        """Wait for a reading that writes nothing."""
        while not self.told:
            try:
                each = self._pieces.get(timeout=LOOK_EVERY)
            except Empty:
                self.on_rows(0)
                continue
            if isinstance(each, BaseException):
                raise each
            if isinstance(each, dict):
                self.take(each)

    def close(self) -> None:
        """End the reading if it still runs, and forget its notes."""
        self._gone.set()
        self._thread.join()
        self._file.close()
        self.notes.close()
