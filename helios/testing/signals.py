"""SIGTERM handled like Ctrl-C while a run is open, so that whoever ends the tests politely finds nothing left."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

AGAIN = 0.05  # seconds until what Python dropped is said again


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
        with never_dropped():
            yield
    finally:
        if signal.getsignal(signal.SIGTERM) is interrupt:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def never_dropped() -> Iterator[None]:
    """Interrupt once more where Python drops the interruption: in a finaliser, or a weak reference's callback.

    Of a hundred suites that were ended at random moments, two went on because of that.
    """
    before = sys.unraisablehook
    main = threading.get_ident()
    timers: list[threading.Timer] = []

    def told(dropped: "sys.UnraisableHookArgs") -> None:
        if issubclass(dropped.exc_type, KeyboardInterrupt):
            timers.append(threading.Timer(AGAIN, signal.pthread_kill, (main, signal.SIGTERM)))
            timers[-1].start()
        else:
            before(dropped)

    sys.unraisablehook = told
    try:
        yield
    finally:
        if sys.unraisablehook is told:
            sys.unraisablehook = before
        for timer in timers:  # SIGTERM would kill, once its handler is gone
            timer.cancel()
            timer.join()
