"""Locks on files (flock): the kernel frees them with their process, however it ends."""

import os
import sys
import time
from pathlib import Path
from typing import Self

if sys.platform != "win32":
    import fcntl

STEP = 0.005
_brief: set[int] = set()


def take(path: Path, *, shared: bool, until: float) -> int:
    """Lock a file, and return its descriptor; close that to unlock.

    Raises:
        TimeoutError: somebody else held it until then (time.monotonic()).

    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        while not _try(descriptor, shared=shared):
            _wait(path, until)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _wait(path: Path, until: float) -> None:
    if time.monotonic() > until:
        raise TimeoutError(f"{path} stayed locked")
    time.sleep(STEP)


class Brief:
    """Locks of one block of code: freed at its end, and not carried into a process forked meanwhile."""

    def __init__(self) -> None:
        self.held: list[int] = []

    def take(self, path: Path, patience: float) -> int:
        """Lock a file for this block alone, or raise TimeoutError."""
        descriptor = take(path, shared=False, until=time.monotonic() + patience)
        _brief.add(descriptor)
        self.held.append(descriptor)
        return descriptor

    def __enter__(self) -> Self:
        """Begin with nothing locked."""
        return self

    def __exit__(self, *_: object) -> None:
        """Unlock everything."""
        while self.held:
            descriptor = self.held.pop()
            _brief.discard(descriptor)
            os.close(descriptor)


def taken(path: Path) -> bool:
    """Tell whether somebody else holds a file's lock for himself alone."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        return not _try(descriptor, shared=True)
    finally:
        os.close(descriptor)


def identity(found: os.stat_result) -> tuple[int, int]:
    """Tell which file this is, whatever its name."""
    return found.st_dev, found.st_ino


def unused(path: Path) -> bool:
    """Tell whether nobody at all holds a file's lock."""
    try:
        os.close(take(path, shared=False, until=0))
    except TimeoutError:
        return False
    return True


def holders(path: Path) -> tuple[int, ...] | None:
    """Find the processes that have a file open, as far as this user may see them; None where nothing tells."""
    if sys.platform != "linux":
        return None
    try:
        wanted = path.stat()
    except FileNotFoundError:
        return ()
    return tuple(sorted(pid for pid in _processes() if _has_open(pid, wanted)))


def _processes() -> list[int]:
    return [int(each) for each in os.listdir("/proc") if each.isdigit()]  # noqa: PTH208 - names are all that is needed


def _has_open(pid: int, wanted: os.stat_result) -> bool:
    try:
        entries = os.listdir(f"/proc/{pid}/fd")  # noqa: PTH208 - names are all that is needed
    except OSError:
        return False
    for each in entries:
        try:
            found = os.stat(f"/proc/{pid}/fd/{each}")  # noqa: PTH116 - follows the descriptor, of which there is no path
        except OSError:
            continue
        if identity(found) == identity(wanted):
            return True
    return False


def _try(descriptor: int, *, shared: bool) -> bool:
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _forget() -> None:
    for descriptor in _brief:
        os.close(descriptor)
    _brief.clear()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_forget)
