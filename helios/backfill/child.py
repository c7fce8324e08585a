"""The child process that reads a file: started, listened to, and never left behind."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO

from helios.errors import HeliosError, InputError

START = "import sys; sys.path.append({folder!r}); from transform.program import main; sys.exit(main())"
PIPE_SIZE = 1 << 20
LOOK_EVERY = 0.2  # seconds between two reports of a reading that writes nothing


class OutOfBoundsError(Exception):
    """The file holds candles outside the range that was looked at first: read it whole, then load it."""


class Child:
    """One reading of a file; `read` is what COPY reads from, and fails when the child did."""

    def __init__(self, path: Path, file: BinaryIO, job: dict[str, Any], on_rows: Callable[[int], None]) -> None:
        self.path = path
        self.rows = 0
        self.error: BaseException | None = None
        self.told: dict[str, Any] = {}
        self.notes: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._on_rows = on_rows
        self._ahead: bytes | None = None
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        program = START.format(folder=str(Path(__file__).parent))
        command = [sys.executable, "-I", "-S", "-c", program, json.dumps(job | {"parent": os.getpid()})]
        # The file is the child's standard input: both see one offset, which is how far the reading has come.
        self._process = subprocess.Popen(
            command, stdin=file, stdout=subprocess.PIPE, stderr=self.notes, bufsize=0, cwd=Path(__file__).anchor or "/"
        )
        self._pipe = self._process.stdout
        self._widen()

    def _widen(self) -> None:
        with suppress(ImportError, OSError, AttributeError):  # a small pipe works as well, only slower
            import fcntl  # noqa: PLC0415 - not on Windows

            fcntl.fcntl(self.output, fcntl.F_SETPIPE_SZ, PIPE_SIZE)

    @property
    def output(self) -> int:
        """The descriptor that the COPY text comes from."""
        if self._pipe is None:  # it was asked for as a pipe
            raise HeliosError(f"{self.path} cannot be read: its reader has no output")
        return self._pipe.fileno()

    def peek(self) -> None:
        """Wait for the first rows, or for the refusal: until then nothing needs to be written anywhere."""
        self._ahead = os.read(self.output, PIPE_SIZE)
        if not self._ahead:
            self.finish()

    def read(self, size: int = 1 << 18) -> bytes:
        """Read COPY text; an error is kept, because psycopg2 replaces it by its own."""
        try:
            data, self._ahead = self._ahead, None
            if data is None:
                data = os.read(self.output, size)
            if not data:
                self.finish()
            self.rows += data.count(b"\n")
            self._on_rows(self.rows)
        except BaseException as error:
            self.error = error
            raise
        return data

    def wait(self) -> None:
        """Wait for a reading that writes nothing."""
        while True:
            try:
                self._process.wait(LOOK_EVERY)
            except subprocess.TimeoutExpired:
                self._on_rows(0)
            else:
                return self.finish()

    def finish(self) -> None:
        """Take what the child told; a child that did not reach its end, or refused the file, is an error."""
        if self.told:
            return
        status = self._process.wait()
        told = next((note for note in self._notes() if "rejected" not in note), {})
        if "refusal" in told:
            raise InputError(f"{self.path} {told['refusal']}")
        if "out_of_bounds" in told:
            raise OutOfBoundsError
        if status or "found" not in told:
            raise HeliosError(
                f"{self.path} was not loaded: its reader ended with status {status}. {self._last_words()}"
            )
        self.told = told

    def _notes(self) -> Iterator[dict[str, Any]]:
        self.notes.seek(0)
        for line in self.notes:
            with suppress(ValueError):
                note = json.loads(line)
                if isinstance(note, dict):
                    yield note

    def _last_words(self) -> str:
        self.notes.seek(0)
        lines = [line for line in self.notes.read()[-2000:].decode(errors="replace").splitlines() if line.strip()]
        return f"Its last words: {lines[-1]}" if lines else "It said nothing; was it killed?"

    def rejected(self) -> Iterator[tuple[int, str, str]]:
        """List the rows that were not taken: line, reason, row."""
        for note in self._notes():
            if "rejected" in note:
                line, reason, row = note["rejected"]
                yield line, reason, row

    def close(self) -> None:
        """End the child if it still runs, and forget its notes."""
        self._process.kill()
        self._process.wait()
        if self._pipe is not None:
            self._pipe.close()
        self.notes.close()


@contextmanager
def reading(path: Path, file: BinaryIO, job: dict[str, Any], on_rows: Callable[[int], None]) -> Iterator[Child]:
    """Start a child for one reading; it is gone at the end of the block, however that comes."""
    child = Child(path, file, job, on_rows)
    try:
        yield child
    finally:
        child.close()


def now() -> int:
    """Say what time it is, in milliseconds: a candle that ends later is not closed."""
    return time.time_ns() // 1_000_000
