"""Files that come again: the very same one is not even read, and whatever looks like it is found out."""

import hashlib
import os
from datetime import UTC, datetime
from pathlib import Path

import make_klines
import pytest
from sqlalchemy import text

from helios.backfill import Mode, load, recognise, stamp

JANUARY = datetime(2025, 1, 1, tzinfo=UTC)


@pytest.fixture
def settled(monkeypatch) -> None:
    """Files whose last change is old enough at once."""
    monkeypatch.setattr(stamp, "SETTLED", 0)


@pytest.fixture
def path(symbol, tmp_path) -> Path:
    """A file of fifty hours."""
    return make_klines.make_file(tmp_path, symbol, "1h", start=JANUARY, rows=50).path


def kept(owner, symbol) -> tuple[object, ...]:
    """Tell what is remembered of the symbol's file."""
    statement = (
        "SELECT stamp, loaded_at FROM helios_trading.kline_files "
        "JOIN helios_trading.instruments AS i ON i.id = instrument_id WHERE symbol = :symbol"
    )
    with owner.connect() as connection:
        return tuple(connection.execute(text(statement), {"symbol": symbol}).one())


def unreadable(*_: object) -> None:
    """Stand for a checksum that nobody should take."""
    raise AssertionError("the file was read")


@pytest.mark.usefixtures("settled")
def test_the_very_same_file_is_not_read(writer, path, monkeypatch) -> None:
    """A file of the same number, size and times is the one that was loaded."""
    load(writer, recognise(path))
    monkeypatch.setattr(hashlib, "file_digest", unreadable)
    report = load(writer, recognise(path))
    assert (Mode.UNCHANGED, 50, 50) == (report.mode, report.rows, report.good)
    with pytest.raises(AssertionError, match="the file was read"):
        path.touch()
        load(writer, recognise(path))


@pytest.mark.usefixtures("settled")
def test_a_file_made_to_look_the_same_is_found_out(writer, path) -> None:
    """Another volume of as many digits, and the old times put back: the row is changed."""
    load(writer, recognise(path))
    before, lines = path.stat(), path.read_text().splitlines(keepends=True)
    row = lines[10].split(",")
    row[5] = row[5][:-1] + str((int(row[5][-1]) + 1) % 10)
    path.write_text("".join([*lines[:10], ",".join(row), *lines[11:]]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (before.st_ino, before.st_size, before.st_mtime_ns) == (after.st_ino, after.st_size, after.st_mtime_ns)
    report = load(writer, recognise(path))
    assert (Mode.COMPARED, 0, 1) == (report.mode, report.inserted, report.changed)


def test_a_file_just_written_is_known_by_its_checksum(writer, owner, symbol, path, monkeypatch) -> None:
    """Two writes in one tick of a clock look like one, so a fresh file gets its stamp only when it comes again."""
    load(writer, recognise(path))
    nothing, loaded_at = kept(owner, symbol)
    assert nothing is None
    monkeypatch.setattr(stamp, "SETTLED", 0)
    assert Mode.UNCHANGED == load(writer, recognise(path)).mode
    with path.open("rb") as file:
        assert (stamp.stamp_of(file.fileno()), loaded_at) == kept(owner, symbol)


@pytest.mark.usefixtures("settled")
def test_a_copy_of_the_file_is_read_once(writer, owner, symbol, path, tmp_path, monkeypatch) -> None:
    """A copy elsewhere has another number: its checksum decides, and from then on it is known by its stamp."""
    load(writer, recognise(path))
    old = kept(owner, symbol)
    (tmp_path / "copy").mkdir()
    copy = tmp_path / "copy" / path.name
    copy.write_bytes(path.read_bytes())
    assert Mode.UNCHANGED == load(writer, recognise(copy)).mode
    assert (old[0] != kept(owner, symbol)[0], old[1]) == (True, kept(owner, symbol)[1])
    monkeypatch.setattr(hashlib, "file_digest", unreadable)
    assert Mode.UNCHANGED == load(writer, recognise(copy)).mode


@pytest.mark.usefixtures("settled")
def test_again_reads_the_very_same_file(writer, path) -> None:
    """Whoever asks for it gets every row compared."""
    load(writer, recognise(path))
    assert Mode.COMPARED == load(writer, recognise(path), again=True).mode
