"""A file is loaded whole or not at all: also one that changes meanwhile, and one in which nothing is a candle."""

import os
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import make_klines
import pyarrow as pa
import pytest
from pyarrow import csv, parquet
from sqlalchemy import Engine, text

from helios.backfill import Report, load, recognise, report, source
from helios.backfill.loading import Load
from helios.backfill.tiers import Tier
from helios.errors import InputError

JANUARY = datetime(2025, 1, 1, tzinfo=UTC)
NAMES = make_klines.HEADER.split(",")


@dataclass
class Bench:
    """Writes files of one symbol, loads them as the writer role, and tells what is left of them."""

    engine: Engine
    symbol: str
    folder: Path

    def write(self, content: str | bytes, ending: str = ".csv") -> Path:
        """Write a file by hand."""
        path = self.folder / f"{self.symbol}-1m-2025-01{ending}"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def load(self, path: Path, tier: str | None = None, **options: object) -> Report:
        """Load a file."""
        return load(self.engine, recognise(path), rejects=self.folder / "rejects", tier=tier, **options)

    def left(self) -> dict[str, int]:
        """Count what the tables hold of the symbol."""
        of_symbol = "JOIN helios_trading.instruments AS i ON i.id = instrument_id WHERE symbol = :symbol"
        counts = {
            "instruments": "SELECT count(*) FROM helios_trading.instruments WHERE symbol = :symbol",
            "klines": f"SELECT count(*) FROM helios_trading.klines {of_symbol}",
            "files": f"SELECT count(*) FROM helios_trading.kline_files {of_symbol}",
        }
        with self.engine.connect() as connection:
            return {
                name: connection.execute(text(statement), {"symbol": self.symbol}).scalar_one()
                for name, statement in counts.items()
            }


NOTHING = {"instruments": 0, "klines": 0, "files": 0}
both_tiers = pytest.mark.parametrize("tier", list(Tier))


@pytest.fixture
def bench(writer: Engine, symbol: str, tmp_path: Path) -> Bench:
    return Bench(writer, symbol, tmp_path)


def rows(count: int = 20_000) -> list[make_klines.Row]:
    return list(make_klines.candles("BTCUSDT", "1m", JANUARY, count))


def official(count: int = 20_000) -> str:
    return make_klines.official(rows(count), header=False, crlf=False)


def as_csv(bench: Bench) -> Path:
    return bench.write(official())


def as_zip(bench: Bench) -> Path:
    path = bench.folder / f"{bench.symbol}-1m-2025-01.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("klines.csv", official())
    return path


def as_json(bench: Bench) -> Path:
    return bench.write(make_klines.ccxt(rows()), ".json")


def as_parquet(bench: Bench) -> Path:
    path = bench.folder / f"{bench.symbol}-1m-2025-01.parquet"
    text_columns = csv.ConvertOptions(column_types=dict.fromkeys(NAMES[1:6], pa.string()))
    parquet.write_table(
        csv.read_csv(as_csv(bench), csv.ReadOptions(column_names=NAMES), convert_options=text_columns), path
    )
    return path


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more\n")


def overwrite(path: Path) -> None:
    """Write other bytes of the same number; the clock of files has ticked by then."""
    before = path.stat().st_mtime_ns
    while path.stat().st_mtime_ns == before:
        with path.open("r+b") as file:
            file.write(b"9")
        time.sleep(0.001)


FORMS = [
    *((tier, form) for tier in Tier for form in (as_csv, as_zip, as_json)),
    (Tier.FAST, as_parquet),
]


@pytest.mark.parametrize("change", [cut, grow, overwrite])
@pytest.mark.parametrize(("tier", "form"), FORMS)
def test_a_file_that_changes_while_it_is_read(
    bench: Bench, tier: Tier, form: Callable[[Bench], Path], change: Callable[[Path], None]
) -> None:
    """A file that is cut, grows or is written over during its load is refused, and nothing of it is left."""
    path, changed = form(bench), []

    def once(_: object) -> None:
        if not changed:
            changed.append(change(path))

    with pytest.raises(InputError, match="changed while it was read: load it again") as refused:
        bench.load(path, tier, progress=once)
    assert str(path) in str(refused.value)
    assert NOTHING == bench.left()
    assert not (bench.folder / "rejects").exists()


@both_tiers
def test_an_initial_load_of_a_file_that_changes(fresh: Engine, symbol: str, tmp_path: Path, tier: Tier) -> None:
    """Partitions are not filled by a file that changes meanwhile."""
    bench = Bench(fresh, symbol, tmp_path)
    path = as_csv(bench)
    with pytest.raises(InputError, match="changed while it was read: load it again"):
        bench.load(path, tier, initial=True, progress=lambda _: cut(path))
    assert NOTHING == bench.left()
    path.write_text(official())
    assert 20_000 == bench.load(path, tier, initial=True).inserted


@both_tiers
def test_a_file_that_changes_between_two_readings(bench: Bench, tier: Tier, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is looked at first, and then is another one, is refused before it is taken for what it was."""
    path, make_partitions = bench.write("1,2\n1,2\n" + official()), Load.make_partitions  # its ends do not tell

    def change_as_well(load: Load, years: list[int]) -> None:
        path.write_text(official(10_000))
        make_partitions(load, years)

    monkeypatch.setattr(Load, "make_partitions", change_as_well)
    with pytest.raises(InputError, match="changed while it was read: load it again"):
        bench.load(path, tier)
    assert NOTHING == bench.left()


TRADE = "1735689600000,{},0.1,0.2,1735689600000,1735689600000,True,True\n"


@both_tiers
@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("".join(map(TRADE.format, range(300_000))), "none of its first 10,000 rows is a candle: line 1 has 8 columns"),
        ("1,2\n" * 3_000_000, "none of its first 10,000 rows is a candle: line 1 has 2 columns instead of 12"),
        (TRADE, "none of its rows is a candle: line 1 has 8 columns instead of 12"),
        (make_klines.HEADER + "\n1,2\n", "none of its rows is a candle: line 2 has 2 columns"),
        (official(3).replace("17356", "99956"), "none of its rows is a candle: line 1 open_time"),
    ],
    ids=["trades", "pairs", "a trade", "a header and a pair", "far times"],
)
def test_a_file_without_a_candle(bench: Bench, tier: Tier, content: str, said: str) -> None:
    """What holds rows but not one candle is refused with the first row's reason, at once, and leaves nothing."""
    path = bench.folder / f"{bench.symbol}-1m-2025-01.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("klines.csv", content)
    began = time.monotonic()
    with pytest.raises(InputError) as refused:
        bench.load(path, tier)
    assert said in str(refused.value)
    assert 5 > time.monotonic() - began
    assert NOTHING == bench.left()
    assert not (bench.folder / "rejects").exists()


@both_tiers
def test_bad_rows_before_good_ones(bench: Bench, tier: Tier) -> None:
    """Thousands of bad rows at the beginning cost themselves alone."""
    report = bench.load(bench.write(TRADE * 5000 + official(100)), tier)
    assert (100, 5000) == (report.inserted, report.rejected)


def test_a_file_without_a_candle_says_nothing_of_those_there(bench: Bench) -> None:
    """A refused file takes nothing away from what a good one of its name brought."""
    path = bench.write(official(100))
    bench.load(path)
    path.write_text(TRADE)
    with pytest.raises(InputError, match="none of its rows is a candle"):
        bench.load(path)
    assert {"instruments": 1, "klines": 100, "files": 1} == bench.left()


def test_an_empty_file_says_so(bench: Bench) -> None:
    """A file without rows is remembered, and its report says that there are none."""
    assert "the file holds no rows" in bench.load(bench.write("")).reasons
    assert {"instruments": 1, "klines": 0, "files": 1} == bench.left()


def test_an_encrypted_zip(bench: Bench) -> None:
    """Fetching it again would not help: it has to be unpacked with its password."""
    path = as_zip(bench)
    content = bytearray(path.read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the flags, in both headers of the file
        content[content.find(mark) + place] |= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="is an encrypted ZIP: unpack it first"):
        bench.load(path)


# --- the rows that were rejected -----------------------------------------------------------------------------------


def test_a_corrected_file_takes_its_rejects_away(bench: Bench) -> None:
    """Once nothing of a file is rejected any more, the rejected rows of its last load are gone."""
    path = bench.write(official(100) + "1,2\n")
    rejects = bench.load(path).rejects
    assert rejects is not None
    assert rejects.exists()
    path.write_text(official(100))
    assert bench.load(path).rejects is None
    assert [] == list((bench.folder / "rejects").iterdir())


def test_only_our_own_rejects_are_taken_away(bench: Bench) -> None:
    """A file of that name which somebody else wrote stays, and so do the rejects of other files."""
    path = bench.write(official(100) + "1,2\n")
    rejects = bench.load(path).rejects
    assert rejects is not None
    rejects.write_text("my notes")
    other = rejects.with_name("binance-spot-OTHER-1m-OTHER-1m.csv.rejects.csv")
    other.write_text("line,reason,row\n")
    path.write_text(official(100))
    bench.load(path)
    assert {rejects, other} == set((bench.folder / "rejects").iterdir())


@pytest.mark.parametrize(
    ("exchange", "symbol", "name"),
    [
        ("../../../tmp/evil", "BTCUSDT", "..%2F..%2F..%2Ftmp%2Fevil-spot-BTCUSDT-1m-BTCUSDT-1m.csv.rejects.csv"),
        ("binance", "BTC/USDT", "binance-spot-BTC%2FUSDT-1m-BTCUSDT-1m.csv.rejects.csv"),
        ("binance", "BTC:USDT*", "binance-spot-BTC%3AUSDT%2A-1m-BTCUSDT-1m.csv.rejects.csv"),
        ("binance", "币安人生USDT", "binance-spot-币安人生USDT-1m-BTCUSDT-1m.csv.rejects.csv"),
    ],
)
def test_rejects_stay_in_their_folder(tmp_path: Path, exchange: str, symbol: str, name: str) -> None:
    """Whatever series and file are called, the rejected rows go into the folder that was named, each to its own."""
    of = source.Source(
        path=tmp_path / "BTCUSDT-1m.csv",
        exchange=exchange,
        market=source.Market.SPOT,
        symbol=symbol,
        interval=source.Interval.M1,
    )
    assert tmp_path / "rejects" / name == report.write_rejects(tmp_path / "rejects", of, [])
    assert [tmp_path / "rejects" / name] == list((tmp_path / "rejects").iterdir())


def test_a_long_name_is_shortened(bench: Bench) -> None:
    """Names at the limit of what a folder takes leave room for what is put before and behind them, and stay apart."""
    paths = [bench.folder / f"{letter * 240}.csv" for letter in "ab"]
    for path in paths:
        path.write_text(official(100) + "1,2\n")
    rejects = [
        load(bench.engine, recognise(path, symbol=bench.symbol, interval="1m"), rejects=bench.folder / "rejects")
        for path in paths
    ]
    assert 2 == len({each.rejects for each in rejects} - {None})
