"""The child's own main: reads the file on standard input, writes COPY text to standard output, notes to standard error.

Notes are lines of JSON: each rejected row as it is met, and at the end what was found, or why the file is refused.
"""

import hashlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from io import FileIO
from typing import Any, BinaryIO, TextIO

from .candle import OFFICIAL, PLAIN
from .checking import HEADERS, Checker, Target
from .duplicates import Duplicates
from .findings import Findings
from .grid import Grid
from .reading import Block, blocks
from .refusal import OutOfBoundsError, RefusalError
from .spacing import check_spacing

PARENT_LOOKED_AFTER_EVERY = 0.5  # seconds
BAD_FROM_THE_BEGINNING = 10_000  # rows: a file is given up when so many pass without a candle


class Hashed(FileIO):
    """A file that takes its SHA-256 while it is read in order, so that no wait follows the last row."""

    def __init__(self, file: int | str, mode: str) -> None:
        super().__init__(file, mode)
        self._sha256 = hashlib.sha256()
        self._hashed = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Go elsewhere; the checksum begins anew where the file does."""
        self._sha256, self._hashed = hashlib.sha256(), 0 if offset == 0 and whence == os.SEEK_SET else -sys.maxsize
        return super().seek(offset, whence)

    def read(self, size: int | None = -1, /) -> bytes:
        """Read, and take what was read into the checksum."""
        data = super().read(size) or b""
        self._sha256.update(data)
        self._hashed += len(data)
        return data

    def checksum(self) -> str:
        """Tell the checksum of the whole file; read once more where it was not read in order, as a ZIP is."""
        if self._hashed == os.fstat(self.fileno()).st_size:
            return self._sha256.hexdigest()
        super().seek(0)
        return hashlib.file_digest(self, "sha256").hexdigest()


def main() -> int:
    """Do the job given as JSON in the first argument."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the loader decides, and ends us
    job = json.loads(sys.argv[1])
    threading.Thread(target=end_with_parent, args=(job["parent"],), daemon=True).start()
    try:
        with Hashed(0, "rb") as file, open(1, "wb", buffering=0) as out:
            note(transformed(job, file, writer(out)))
    except BrokenPipeError:
        os._exit(1)  # the loader is gone, and nobody reads why
    except RefusalError as refusal:
        note({"refusal": str(refusal)})
    except OutOfBoundsError:
        note({"out_of_bounds": True})
    return 0


def end_with_parent(parent: int) -> None:
    """End at once when the loader is gone, however it went; a reading that writes nothing meets no broken pipe."""
    while os.getppid() == parent:
        time.sleep(PARENT_LOOKED_AFTER_EVERY)
    os._exit(1)


def note(told: dict[str, Any]) -> None:
    """Tell the loader."""
    sys.stderr.write(json.dumps(told) + "\n")
    sys.stderr.flush()


def writer(out: BinaryIO) -> Callable[[bytes], None]:
    """Write whole pieces to a pipe that may take only a part of one at a time."""

    def write(data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[out.write(rest) :]

    return write


def transformed(  # noqa: PLR0913, PLR0917 - the fast tier replaces the last ones
    job: dict[str, Any],
    file: "Hashed",
    write: Callable[[bytes], None],
    notes: TextIO = sys.stderr,
    make_checker: Callable[[Findings, Target, int, int], Checker] = Checker,
    blocks: Callable[[BinaryIO], Iterator[Block]] = blocks,
) -> dict[str, Any]:
    """Read the whole file, and say what it held; the COPY data is written unless the job is only to look."""
    step = job["step"]
    findings = Findings(Grid(step, job["anchor"]), notes)
    bounds = job["bounds"]
    target = Target(job["instrument_id"], job["interval"], (bounds[0], bounds[1]) if bounds else None, job["cuts"])
    with ExitStack() as stack:
        checker: Checker | None = None
        late: Duplicates | None = None
        for block in blocks(file):
            if checker is None:
                width = width_of(block)
                check_spacing(block, step, job["steps"])
                checker = make_checker(findings, target, width, job["now"])
                late = stack.enter_context(Duplicates(checker, blocks))
            for text in checker.texts(block):
                if text and job["write"]:
                    write(text)
                if findings.lines >= BAD_FROM_THE_BEGINNING and not findings.good:
                    refuse_without_candle(findings)
        sha256 = file.checksum()
        if checker is None or late is None:
            return {"found": findings.told(), "width": OFFICIAL, "sha256": sha256}
        late.settle(file)
        if findings.lines and not findings.good:
            refuse_without_candle(findings)
        return {"found": findings.told(), "width": checker.width, "sha256": sha256}


def refuse_without_candle(findings: Findings) -> None:
    """Refuse a file that has rows but no candle: it is something else, and nothing of it is worth keeping."""
    line, reason = findings.first_bad or (1, "is no candle")
    some = f"first {BAD_FROM_THE_BEGINNING:,} rows" if findings.lines >= BAD_FROM_THE_BEGINNING else "rows"
    raise RefusalError(f"does not look like klines: none of its {some} is a candle: line {line} {reason}")


def width_of(block: Block) -> int:
    """Tell the official layout from plain candles by the first lines; anything else is no file of klines."""
    lines = [line for line in block.data.split(b"\n", 100)[:100] if line.strip()]
    for line in lines:
        if line[:1].isdigit() and line.count(b",") + 1 in (OFFICIAL, PLAIN):
            return line.count(b",") + 1
    if not lines or all(line[:9].lower() in HEADERS for line in lines) or not rubbish(lines):
        return OFFICIAL
    raise RefusalError(
        "does not look like klines: no row has a time and 12 columns (official archive) or 6 (time, open, high, low, "
        "close, volume)"
    )


def rubbish(lines: list[bytes]) -> bool:
    """Say whether not one of the lines begins like a row of klines."""
    return not any(line[:1].isdigit() and b"," in line for line in lines)
