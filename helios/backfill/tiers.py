"""Which way a file is read: with the standard library alone, or with numpy and pyarrow where they are installed."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

from helios.backfill.child import Child
from helios.backfill.reading import Reading
from helios.errors import InputError

LIBRARIES = ("numpy", "pyarrow")
PARQUET = ".parquet"
SMALL = 1 << 20  # bytes: the import of the libraries takes longer than they save


class Tier(StrEnum):
    """How a file is read; both give the same rows and the same report."""

    BASE = "base"
    FAST = "fast"


def installed() -> bool:
    """Say whether the libraries of the fast tier are there."""
    return all(find_spec(name) for name in LIBRARIES)


def chosen(tier: str | None, path: Path) -> Tier:
    """Choose the tier of a file; None takes the fast one where it pays, and where the file is Parquet.

    Raises:
        InputError: there is no such tier, or its libraries are not installed.

    """
    if tier is None:
        imported = all(name in sys.modules for name in LIBRARIES)
        worth = path.suffix.lower() == PARQUET or path.stat().st_size > SMALL
        return Tier.FAST if imported or (worth and installed()) else Tier.BASE
    if tier not in tuple(Tier):
        raise InputError(f"{tier!r} is not a tier: choose from {', '.join(Tier)}")
    if tier == Tier.FAST and not installed():
        raise InputError('the fast tier needs numpy and pyarrow: pip install "helios[fast]"')
    return Tier(tier)


@contextmanager
def reading(
    tier: Tier, path: Path, file: BinaryIO, job: dict[str, Any], on_rows: Callable[[int], None]
) -> Iterator[Reading]:
    """Start a reading; it is gone at the end of the block, however that comes."""
    started: Reading
    if tier is Tier.FAST:
        from helios.backfill.fast.thread import FastReading  # noqa: PLC0415 - an extra

        started = FastReading(path, file, job, on_rows)
    else:
        started = Child(path, file, job, on_rows)
    try:
        yield started
    finally:
        started.close()
