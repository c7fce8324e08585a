"""What `helios klines load` says of files: names as they are, one line for each, whatever is passed by."""

import json
import os
from pathlib import Path

import make_klines
import pytest
from installation import Run, use
from sqlalchemy import URL

MONTH = make_klines.datetime(2025, 1, 1, tzinfo=make_klines.UTC)


@pytest.fixture
def load(helios: Run, migrated: URL, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Load in this process, with a folder for rejected rows; gives exit status, stdout and stderr."""
    use(monkeypatch, migrated, HELIOS_ENVIRONMENT="development")
    return lambda *told: helios("klines", "load", "--rejects", str(tmp_path / "rejects"), *map(str, told))


def month(folder: Path, symbol: str, *defects: str) -> make_klines.Made:
    """Write three hundred hours."""
    return make_klines.make_file(folder, symbol, "1h", start=MONTH, rows=300, defects=defects)


def test_names_are_not_markup(load, symbol, tmp_path):
    """What a terminal library reads as colours or pictures is printed as it is called, in reasons and failures."""
    folder = tmp_path / "x[" / "red]y:smile:"
    made = month(folder, symbol, "zero-price")
    (folder / "notes.json").write_text("{}")
    (folder / f"{symbol}-1h-2025-02.csv").write_bytes(bytes(range(256)) * 50)
    told = ("--symbol", f"[red]{symbol}[/y]", "--json")
    status, said, talk = load(*told, tmp_path / "x[")
    assert 2 == status
    assert f"passed by: {folder}/notes.json does not tell its interval" in talk
    assert f"helios: {folder}/{symbol}-1h-2025-02.csv is not text" in talk
    assert f"{made.path.name}: nothing tells its market" in talk
    assert f"[red]{symbol}[/y]" == json.loads(said)[0]["symbol"]


def test_a_bar_shows_a_name_as_it_is(load, symbol, tmp_path):
    """A file that is called like a closing tag does not end the load in a traceback."""
    path = tmp_path / "a[" / "b].csv"
    path.parent.mkdir()
    path.write_bytes(month(tmp_path, symbol).path.read_bytes())
    assert 0 == load("--symbol", symbol, "--interval", "1h", path)[0]
    named = tmp_path / "[x].csv"
    named.write_bytes(path.read_bytes())
    assert 0 == load("--symbol", symbol, "--interval", "1h", named)[0]


def test_one_line_for_each_file(load, symbol, tmp_path):
    """All that is wrong with a file, and where its rejected rows are, stands in one line."""
    made = month(tmp_path / "spot", symbol, "zero-price", "gap")
    _, _, talk = load(made.path)
    [line] = [line for line in talk.splitlines() if line.startswith(made.path.name)]
    assert "rows rejected: price not positive; " in line
    assert "candles missing in " in line
    assert line.endswith(
        f"; rejected rows are in {tmp_path}/rejects/binance-spot-{symbol}-1h-{made.path.name}.rejects.csv"
    )


def test_a_file_named_twice_is_loaded_once(load, symbol, tmp_path):
    """By itself, by its folder and by a way round: one row for each file, and the others are loaded too."""
    folder = tmp_path / "spot"
    made = [month(folder, f"{symbol}{number}") for number in range(2)]
    round_about = folder / ".." / "spot" / made[0].path.name
    (tmp_path / "linked").symlink_to(folder)
    status, said, _ = load("--market", "spot", made[0].path, folder, round_about, tmp_path / "linked", "--json")
    rows = [(row["file"], row["rows"], row["mode"]) for row in json.loads(said)]
    assert (0, [(each.path.name, 300, "direct") for each in made]) == (status, rows)


def test_what_nobody_counted_is_not_told(load, symbol, tmp_path):
    """A file that has not changed is not read again: nothing stands where a zero would be wrong."""
    made = month(tmp_path / "spot", symbol, "gap", "equal-duplicates")
    told = []
    for _ in range(2):
        [row] = json.loads(load(made.path, "--json")[1])
        told.append((row["mode"], row["missing"], row["duplicates"]))
    assert [("direct", made.missing, made.duplicates), ("unchanged", None, None)] == told
    assert made.missing
    assert made.duplicates


def test_an_assumed_market_is_said_in_one_line(load, symbol, tmp_path):
    """The sentence does not break where a terminal of eighty columns ends."""
    made = month(tmp_path, symbol)
    _, _, talk = load(made.path)
    assert f"{made.path.name}: nothing tells its market, so spot is assumed; --market says another" in talk.splitlines()


@pytest.mark.parametrize(
    ("option", "told", "said"),
    [
        ("--exchange", "../../../tmp/evil", "'../../../tmp/evil' is not an exchange"),
        ("--exchange", "bin ance", "'bin ance' is not an exchange"),
        ("--exchange", "", "'' is not an exchange"),
        ("--exchange", "x" * 65, "is not an exchange"),
        ("--symbol", "   ", "'   ' is not a symbol"),
        ("--symbol", "", "'' is not a symbol"),
        ("--symbol", "BTC\tUSDT", r"'BTC\tUSDT' is not a symbol"),
        ("--symbol", "BTC\u2028USDT", r"'BTC\u2028USDT' is not a symbol"),
        ("--symbol", "\x1b[31mX", r"'\x1b[31mX' is not a symbol"),
        ("--symbol", "X" * 5000, f"'{'X' * 40}...' is not a symbol"),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_a_name_that_cannot_be_one(load, symbol, tmp_path, option, told, said, *, inside):
    """A symbol or an exchange that cannot be one is refused in one sentence, for a file and for a folder."""
    made = month(tmp_path / "spot", symbol)
    status, out, talk = load(option, told, made.path.parent if inside else made.path)
    assert (2, "") == (status, out)
    assert said in talk
    assert 1 == len(talk.strip().splitlines())


def test_what_is_no_file_in_a_folder_is_said(load, symbol, tmp_path, monkeypatch):
    """A pipe, a dead link, a linked folder and a folder that cannot be read are passed by, and named."""
    folder = tmp_path / "spot"
    made = month(folder, symbol)
    os.mkfifo(folder / "pipe.csv")
    (folder / "dead.csv").symlink_to(folder / "nothing.csv")
    (folder / "linked").symlink_to(tmp_path)
    (folder / "locked").mkdir()
    scandir = os.scandir

    def refuse_locked(path: str) -> object:  # the superuser may read every folder
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse_locked)
    status, out, talk = load("--json", folder)
    assert (0, [made.path.name]) == (status, [each["file"] for each in json.loads(out)])
    assert f"passed by: {folder}/pipe.csv is not there, or not a file" in talk
    assert f"passed by: {folder}/dead.csv is not there, or not a file" in talk
    assert f"passed by: {folder}/linked is a link to a folder" in talk
    assert f"passed by: {folder}/locked cannot be read (Permission denied)" in talk
