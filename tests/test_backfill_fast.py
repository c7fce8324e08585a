"""The fast tier against the base tier: the same rows, verdicts, rejects and report, whatever the file holds."""

import io
import struct
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal, localcontext
from pathlib import Path

import make_klines
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from helios.backfill import Report, load, recognise, tiers
from helios.backfill.fast import thread
from helios.backfill.fast.checking import FastChecker
from helios.backfill.fast.numeric import numeric
from helios.backfill.fast.thread import FastReading
from helios.backfill.transform import reading
from helios.backfill.transform.checking import Checker, Target
from helios.backfill.transform.findings import Findings
from helios.backfill.transform.grid import Grid
from helios.errors import InputError

JANUARY = datetime(2025, 1, 1, tzinfo=UTC)
MINUTE = 60_000
NOW = 1_800_000_000_000
Row = list[object]


def reading_of(kind: type[Checker], content: bytes, width: int, block: int) -> tuple[bytes, dict[str, object], str]:
    """Read a file's content in blocks: what COPY is sent, what was found, what was noted."""
    notes = io.StringIO()
    checker = kind(Findings(Grid(MINUTE, 0), notes), Target(7, "1m", None), width, NOW)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "BLOCK", block)
        out = b"".join(part for each in reading.blocks(io.BytesIO(content)) for part in checker.texts(each))
    return out, checker.findings.told(), notes.getvalue()


def rows_of_text(data: bytes) -> Iterator[Row]:
    """Read COPY text by value."""
    for line in data.decode().splitlines():
        instrument, moment, *values, interval = line.split("\t")
        yield [int(instrument), datetime.fromisoformat(moment), *map(Decimal, values), interval]


def rows_of_binary(data: bytes, trades: int) -> Iterator[Row]:
    """Read a binary COPY by value, without its beginning and end; `trades` is the place of the whole number."""
    stream = io.BytesIO(data)
    while count := stream.read(2):
        fields = [stream.read(*struct.unpack(">i", stream.read(4))) for _ in range(*struct.unpack(">h", count))]
        instrument, moment, *values, interval = fields
        seconds = struct.unpack(">q", moment)[0] / 1_000_000 + 946_684_800
        numbers = [
            Decimal(*struct.unpack(">i", value)) if place == trades else number_of(value)
            for place, value in enumerate(values)
        ]
        yield [*struct.unpack(">i", instrument), datetime.fromtimestamp(seconds, UTC), *numbers, interval.decode()]


def number_of(field: bytes) -> Decimal:
    """Read a numeric as PostgreSQL does: digits beyond its decimal places are cut off."""
    count, weight, sign, scale = struct.unpack(">hhHh", field[:8])
    assert 0 == sign
    groups = struct.unpack(f">{count}h", field[8:])
    assert all(0 <= group < 10_000 for group in groups)
    with localcontext(prec=2000):
        value = sum((Decimal(group).scaleb(4 * (weight - place)) for place, group in enumerate(groups)), Decimal(0))
        assert -value.normalize().as_tuple().exponent <= scale
    return value


ODD = """
    0 -1 1. .5 1.2.3 . 1e3 NaN +1 1_0 0.1230000000000000001 0x1F 99999999999 500000000000000 999999999999999999999
    0.000000001 1.10 123456789.12345678 "1"
"""
FIELDS = st.sampled_from(["", " 1 ", "1\r1", *ODD.split()])
TIMES = st.integers(-MINUTE, MINUTE * 5)


@settings(max_examples=100, deadline=None)
@given(
    spoiled=st.lists(st.tuples(st.integers(0, 119), st.integers(1, 11), FIELDS), max_size=4),
    moved=st.lists(st.tuples(st.integers(0, 119), TIMES), max_size=2),
    cut=st.lists(st.integers(0, 12_000), max_size=2),
    block=st.sampled_from([777, 5000, 1 << 19]),
    market=st.sampled_from(["spot", "um"]),
    unit=st.sampled_from(["ms", "us"]),
    width=st.sampled_from([12, 6]),
)
@example(
    spoiled=[(50, 5, "450000000000000.12345678")], moved=[], cut=[], block=1 << 19, market="um", unit="ms", width=6
)
def test_both_tiers_agree(spoiled, moved, cut, block, market, unit, width) -> None:
    """Whatever is spoiled, moved or cut out: the fast tier sends the same values, and finds and notes the same."""
    rows = list(make_klines.candles("BTCUSDT", "1m", JANUARY, 120, market=market, unit=unit))
    for row, column, value in spoiled:
        rows[row][column] = value
    for row, by in moved:
        rows[row][0] = str(int(rows[row][0]) + by)
    rows = [row[:width] for row in rows]
    content = bytearray(make_klines.official(rows, header=False, crlf=False).encode())
    for place in cut:
        del content[place : place + 1]
    base, *told = reading_of(Checker, bytes(content), width, block)
    fast, *told_fast = reading_of(FastChecker, bytes(content), width, block)
    assert told == told_fast
    assert list(rows_of_text(base)) == list(rows_of_binary(fast, 6 if width == 12 else -1))


def test_a_carriage_return_between_two_rows_makes_none_of_them_a_line() -> None:
    """Rejected by both tiers, also where an empty line makes up the number of lines that pyarrow would count."""
    lines = make_klines.official(
        make_klines.candles("BTCUSDT", "1m", JANUARY, 120, market="um", unit="ms"), header=False, crlf=False
    ).splitlines()
    content = ("\n".join(lines[:50]) + "\r" + "\n".join(lines[50:]) + "\n\n").encode()
    for kind in (Checker, FastChecker):
        _, found, _ = reading_of(kind, content, 12, 1 << 19)
        assert (118, 1) == (found["good"], found["rejected"])


@given(st.decimals(0, 10**30, allow_nan=False, allow_infinity=False) | st.decimals(0, 1, places=30))
def test_any_number_as_numeric(number) -> None:
    """A number of any length is written exactly."""
    for written in {str(number), f"{number:f}"}:
        data = numeric(written.encode())
        assert len(data) - 4 == struct.unpack(">i", data[:4])[0]
        assert number.compare(number_of(data[4:])) == 0


@pytest.fixture
def by_both(writer: Engine, owner: Engine, tmp_path: Path):
    """Load a file by both tiers, each as a symbol of its own; the reports, rejected rows and content of the table."""

    def run(path: Path, symbol: str, tier: str, **options: object) -> tuple[Report, str, list[object]]:
        source = recognise(path, symbol=f"{symbol[:-4]}{tier.upper()}")
        report = load(writer, source, rejects=tmp_path / tier, tier=tier, **options)
        rejected = report.rejects.read_text() if report.rejects else ""
        content = """
            SELECT open_time, open, high, low, close, volume, trades, quote_volume, taker_buy_volume,
                   taker_buy_quote_volume, k.interval
            FROM helios_trading.klines AS k JOIN helios_trading.instruments AS i ON i.id = k.instrument_id
            WHERE symbol = :symbol ORDER BY open_time
        """
        with owner.connect() as connection:
            rows = [tuple(row) for row in connection.execute(text(content), {"symbol": source.symbol})]
        return replace(report, source=None, rejects=None, seconds=0), rejected, rows

    def both(path: Path, symbol: str, **options: object) -> Report:
        base, fast = (run(path, symbol, tier, **options) for tier in ("base", "fast"))
        assert base == fast
        return fast[0]

    return both


@pytest.mark.parametrize(("unit", "market"), [("us", "spot"), ("ms", "um")])
def test_the_same_table_and_report(by_both, symbol, tmp_path, unit, market) -> None:
    """A file of several blocks with every defect: both tiers store, reject and report the same; loaded again too."""
    made = make_klines.make_file(
        tmp_path, symbol, "1m", start=JANUARY, rows=12_000, unit=unit, market=market, defects=tuple(make_klines.DEFECTS)
    )
    report = by_both(made.path, symbol)
    assert (made.good, made.rejected) == (report.inserted, report.rejected)
    assert (0, made.good) == ((again := by_both(made.path, symbol, again=True)).written, again.unchanged)


def test_an_empty_file(by_both, symbol, tmp_path) -> None:
    """A file with a header and no row is a file without candles to both."""
    path = tmp_path / f"{symbol}-1m.csv"
    path.write_text(make_klines.HEADER + "\n")
    assert 0 == by_both(path, symbol).rows


def test_digits_stay_as_written(writer, owner, symbol, tmp_path) -> None:
    """Where a column has the same decimal places throughout, PostgreSQL shows them as the file wrote them."""
    made = make_klines.make_file(tmp_path, symbol, "1m", start=JANUARY, rows=500, market="um")
    load(writer, recognise(made.path), tier="fast")
    with owner.connect() as connection:
        shown = connection.execute(
            text(
                "SELECT DISTINCT scale(open), scale(close), scale(volume), scale(quote_volume) "
                "FROM helios_trading.klines JOIN helios_trading.instruments AS i ON i.id = instrument_id "
                "WHERE symbol = :symbol"
            ),
            {"symbol": symbol},
        ).all()
    assert [(2, 2, 3, 8)] == shown


def test_the_tier_is_chosen(monkeypatch, tmp_path) -> None:
    """The fast tier is taken where its libraries are there and the file is worth it; asked for in vain, it says how."""
    big = tmp_path / "big.csv"
    big.write_bytes(bytes(2 << 20))
    assert [tiers.Tier.FAST, tiers.Tier.BASE] == [tiers.chosen(None, big), tiers.chosen("base", big)]
    with pytest.raises(InputError, match="'slow' is not a tier: choose from base, fast"):
        tiers.chosen("slow", big)
    monkeypatch.setattr(tiers, "LIBRARIES", ("numpy", "no_such_library"))
    assert tiers.Tier.BASE is tiers.chosen(None, big)
    with pytest.raises(InputError, match=r"install the extra helios\[fast\]"):
        tiers.chosen("fast", big)


def test_a_failing_reading_fails_the_load(writer, owner, monkeypatch, symbol, tmp_path) -> None:
    """What goes wrong in the reading thread ends the load, and nothing is written."""
    made = make_klines.make_file(tmp_path, symbol, "1m", start=JANUARY, rows=30_000)
    whole = FastChecker.whole

    def fail(self: FastChecker, data: bytes, count: int) -> bytes | None:
        if self.findings.good > 10_000:
            raise MemoryError("no more")
        return whole(self, data, count)

    monkeypatch.setattr(FastChecker, "whole", fail)
    with pytest.raises(MemoryError, match="no more"):
        load(writer, recognise(made.path), tier="fast")
    with owner.connect() as connection:
        statement = "SELECT count(*) FROM helios_trading.instruments WHERE symbol = :symbol"
        assert 0 == connection.execute(text(statement), {"symbol": symbol}).scalar()


def test_an_abandoned_reading_ends(tmp_path, symbol) -> None:
    """A reading that nobody takes anything from ends when it is closed, and leaves no thread."""
    made = make_klines.make_file(tmp_path, symbol, "1m", start=JANUARY, rows=30_000)
    job = {"step": MINUTE, "anchor": 0, "steps": {}, "bounds": None, "write": True}
    job |= {"instrument_id": 1, "interval": "1m", "now": NOW, "cuts": []}
    with made.path.open("rb", buffering=0) as file:
        started = FastReading(made.path, file, job, lambda _: None)
        started.peek()
        running = started._thread  # noqa: SLF001 - what must not be left
        started.close()
    assert not running.is_alive()


def test_a_reading_that_gives_nothing_ends_when_it_is_closed(tmp_path, monkeypatch, symbol) -> None:
    """Nobody waits for the rest of a file that is only looked at."""
    monkeypatch.setattr(thread, "BLOCK", 1000)
    made = make_klines.make_file(tmp_path, symbol, "1m", start=JANUARY, rows=5000)
    job = {"step": MINUTE, "anchor": 0, "steps": {}, "bounds": None, "write": False}
    job |= {"instrument_id": 1, "interval": "1m", "now": NOW, "cuts": []}
    with made.path.open("rb", buffering=0) as file:
        FastReading(made.path, file, job, lambda _: None).close()
        assert file.tell() < made.path.stat().st_size
