"""SIGTERM handled like Ctrl-C while a run is open, so that whoever ends the tests politely finds nothing left."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


def interrupt(_number: int, _frame: FrameType | None) -> None:
    """Do what Ctrl-C does."""
    raise KeyboardInterrupt


@contextmanager
def terminating_politely() -> Iterator[None]:
    """Turn SIGTERM into KeyboardInterrupt; a handler of somebody's own is left alone, and put back what was there."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is interrupt:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
