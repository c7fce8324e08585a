"""Folders for what the verification run writes to disk: gone with the run or, after kill -9, with the next one."""

import os
import re
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from helios.servers import locks

PREFIX = "helios-pipeline-"
OURS = re.compile(rf"{PREFIX}[0-9a-f]{{32}}")  # a name that nobody gives by hand
LOCK = "lock"  # held as long as the run lives, and the last file to go
PATIENCE = 5.0


@contextmanager
def folder() -> Iterator[Path]:
    """Make a folder that is removed at the end, and that no other run takes for a dead one's meanwhile."""
    path, lock = made()
    try:
        yield path
    finally:
        remove(path)
        os.close(lock)


def made() -> tuple[Path, int]:
    """Make a folder and lock it; one that another run took away before it was locked is made anew."""
    while True:
        path = Path(tempfile.gettempdir(), f"{PREFIX}{uuid.uuid4().hex}")
        path.mkdir(mode=0o700)
        with suppress(FileNotFoundError):
            lock = locks.take(path / LOCK, shared=False, until=time.monotonic() + PATIENCE)
            if (path / LOCK).exists():
                return path, lock
            os.close(lock)


def remove_dead() -> int:
    """Remove the folders of this user's runs that are dead, and count them; one that lives holds its lock."""
    return sum(removed(path) for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*") if is_ours(path))


def is_ours(path: Path) -> bool:
    """Tell whether a run of this user made it."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    return bool(OURS.fullmatch(path.name)) and stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()


def removed(path: Path) -> bool:
    """Remove a folder unless its run lives; tell whether it did."""
    if not (path / LOCK).exists():  # killed before the lock or behind it: then there is nothing else in it
        with suppress(OSError):
            path.rmdir()
            return True
        return False
    try:
        lock = locks.take(path / LOCK, shared=False, until=0)
    except (TimeoutError, FileNotFoundError):
        return False
    try:
        remove(path)
    finally:
        os.close(lock)
    return True


def remove(path: Path) -> None:
    """Remove a folder, its lock last: killed meanwhile, what is left is told from a folder that is alive."""
    for each in path.iterdir():
        if each.is_dir() and not each.is_symlink():
            shutil.rmtree(each)
        elif each.name != LOCK:
            each.unlink()
    (path / LOCK).unlink(missing_ok=True)
    with suppress(OSError):  # another run may have been quicker
        path.rmdir()
