"""The child process that reads a file: started, listened to, and never left behind."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from helios.backfill.reading import Reading
from helios.errors import HeliosError

START = "import sys; sys.path.append({folder!r}); from transform.program import main; sys.exit(main())"
PIPE_SIZE = 1 << 20
LOOK_EVERY = 0.2  # seconds between two reports of a reading that writes nothing


class Child(Reading):
    """A reading by the standard library alone, in a process of its own: COPY text."""

    def __init__(self, path: Path, file: BinaryIO, job: dict[str, Any], on_rows: Callable[[int], None]) -> None:
        super().__init__(path, on_rows)
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

    def more(self, size: int) -> tuple[bytes, int]:
        """Wait for the next text; a line feed ends each row."""
        data = os.read(self.output, size)
        if not data:
            self._finish()
        return data, data.count(b"\n")

    def wait(self) -> None:
        """Wait for a reading that writes nothing."""
        while True:
            try:
                self._process.wait(LOOK_EVERY)
            except subprocess.TimeoutExpired:
                self.on_rows(0)
            else:
                return self._finish()

    def _finish(self) -> None:
        if self.told:
            return
        status = self._process.wait()
        told = next((note for note in self.noted() if "rejected" not in note), {})
        if not self.take(told) or status:
            self.told = {}
            raise HeliosError(
                f"{self.path} was not loaded: its reader ended with status {status}. {self._last_words()}"
            )

    def _last_words(self) -> str:
        self.notes.seek(0)
        lines = [line for line in self.notes.read()[-2000:].decode(errors="replace").splitlines() if line.strip()]
        return f"Its last words: {lines[-1]}" if lines else "It said nothing; was it killed?"

    def close(self) -> None:
        """End the child if it still runs, and forget its notes."""
        self._process.kill()
        self._process.wait()
        if self._pipe is not None:
            self._pipe.close()
        self.notes.close()
