"""Files of rows that were not taken, with place and reason, for whoever sets them right."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from helios.errors import InputError


def write(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    """Write rows to a CSV file, whole or not at all, in place of an earlier one.

    Raises:
        InputError: its folder cannot be written to.

    """
    fresh = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with fresh.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows(rows)
        return fresh.replace(path)
    except OSError as error:
        raise unwritable(path, error) from error


def remove(path: Path) -> None:
    """Remove the file of an earlier run, where there are no such rows any more.

    Raises:
        InputError: its folder cannot be written to.

    """
    try:
        path.unlink(missing_ok=True)
    except NotADirectoryError:
        return
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> InputError:
    """Say that the folder of rejected rows cannot be written to."""
    return InputError(
        f"{path} cannot be written ({error.strerror}): name another folder for rejected rows, --rejects FOLDER"
    )
