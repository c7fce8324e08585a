"""The child's own parts, without a database: bulk and close look agree, coverage counts, blocks cut anywhere."""

import io
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import make_klines
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helios.backfill.transform import checking, reading
from helios.backfill.transform.checking import Checker, Target
from helios.backfill.transform.findings import Findings
from helios.backfill.transform.grid import DAY, Coverage, Grid
from helios.backfill.transform.reading import blocks

JANUARY = datetime(2025, 1, 1, tzinfo=UTC)
MINUTE = 60_000
NOW = 1_800_000_000_000


def transformed(content: bytes, few: int, block: int = 1 << 19, now: int = NOW) -> tuple[bytes, dict[str, object], str]:
    """Transform a file; `few` lines are looked at one by one rather than in bulk."""
    notes = io.StringIO()
    checker = Checker(Findings(Grid(MINUTE, 0), notes), Target(7, "1m", None), 12, now)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checking, "FEW", few)
        patch.setattr(reading, "BLOCK", block)
        out = b"".join(text for each in blocks(io.BytesIO(content)) for text in checker.texts(each))
    return out, checker.findings.told(), notes.getvalue()


FIELDS = st.sampled_from(
    ["", "0", "-1", "1.", ".5", "1.2.3", ".", "1e3", "NaN", " 1 ", "+1", "1_0", "0.1230000000000000001", "99999999999"]
)
TIMES = st.integers(-MINUTE, MINUTE * 5)


@settings(max_examples=150, deadline=None)
@given(
    spoiled=st.lists(st.tuples(st.integers(0, 119), st.integers(1, 11), FIELDS), max_size=4),
    moved=st.lists(st.tuples(st.integers(0, 119), TIMES), max_size=2),
    cut=st.lists(st.integers(0, 12_000), max_size=2),
    block=st.sampled_from([100, 777, 1 << 19]),
)
def test_bulk_and_close_look_agree(spoiled, moved, cut, block) -> None:
    """Whatever is spoiled, moved or cut out: the bulk checks let pass exactly what the close look takes."""
    rows = list(make_klines.candles("BTCUSDT", "1m", JANUARY, 120))
    for row, column, value in spoiled:
        rows[row][column] = value
    for row, by in moved:
        rows[row][0] = str(int(rows[row][0]) + by)
    content = bytearray(make_klines.official(rows, header=False, crlf=False).encode())
    for place in cut:
        del content[place : place + 1]
    closely = transformed(bytes(content), few=10**9)
    in_bulk = transformed(bytes(content), few=2, block=block)
    assert closely == in_bulk


@pytest.mark.parametrize("few", [2, 10**9], ids=["in bulk", "closely"])
@pytest.mark.parametrize("column", [5, 7, 9, 10])
def test_a_number_of_more_digits_than_are_taken_costs_its_row(few, column) -> None:
    """A volume of 20,000 decimal places, which PostgreSQL refuses, would cost the whole file."""
    rows = list(make_klines.candles("BTCUSDT", "1m", JANUARY, 60))
    rows[30][column] = f"0.{'1' * 20_000}"
    _, told, _ = transformed(make_klines.official(rows, header=False, crlf=False).encode(), few)
    assert (59, {"not a number": 1}) == (told["good"], told["kinds"])


@pytest.mark.parametrize("few", [2, 10**9], ids=["in bulk", "closely"])
@pytest.mark.parametrize(("early", "good"), [(0, 60), (1, 59)])
def test_a_candle_is_closed_at_the_moment_it_ends(few, early, good) -> None:
    """Not a millisecond before; the rest of the file is taken in either case."""
    rows = list(make_klines.candles("BTCUSDT", "1m", JANUARY, 60))
    now = round(JANUARY.timestamp() * 1000) + 60 * MINUTE - early
    _, told, _ = transformed(make_klines.official(rows, header=False, crlf=False).encode(), few, now=now)
    assert (good, 60 - good) == (told["good"], told["rejected"])


def test_a_line_feed_in_the_wrong_place_is_seen() -> None:
    """Rows of 13 and 11 columns that together have 24 are two bad rows, not two good ones."""
    rows = list(make_klines.candles("BTCUSDT", "1m", JANUARY, 60))
    lines = [",".join(row) for row in rows]
    lines[30] += "," + lines[31].split(",")[0]
    lines[31] = lines[31].split(",", 1)[1]
    _, told, _ = transformed(("\n".join(lines) + "\n").encode(), few=2)
    assert (58, 2) == (told["good"], told["rejected"])


@given(st.lists(st.integers(0, 60), max_size=80))
def test_coverage_is_a_set(numbers) -> None:
    """Coverage tells new from known as a set does, whatever the order, and counts what is missing."""
    coverage, known = Coverage(), set()
    for number in numbers:
        assert (number not in known) == coverage.add(number)
        known.add(number)
    missing = sorted(set(range(min(known), max(known) + 1)) - known) if known else []
    assert len(missing) == coverage.missing
    assert missing == [number for start, count in coverage.gaps() for number in range(start, start + count)]


@given(st.integers(2000 * 12, 2199 * 12 + 11))
def test_months_have_their_own_days(number) -> None:
    """The first of each month is where the calendar has it."""
    first = datetime(number // 12, number % 12 + 1, 1, tzinfo=UTC)
    moment = Grid(0, 0).moment(number)
    assert first == datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=moment)
    assert number == Grid(0, 0).number(moment)
    assert Grid(0, 0).number(moment + DAY) is None


def pieces_of(content: bytes, block: int) -> Iterable[tuple[int, bytes, bool, int]]:
    """Read a file in blocks of a size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "BLOCK", block)
        return list(blocks(io.BytesIO(content)))


@pytest.mark.parametrize("block", range(1, 40))
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_csv_is_cut_at_line_feeds(block, ending) -> None:
    """Wherever a block ends, the same lines with the same numbers come out."""
    content = f"\ufeff1,2{ending}3,4{ending}{ending}5,6".encode()
    lines = {}
    for first, data, *_ in pieces_of(content, block):
        lines |= dict(enumerate(data.removesuffix(b"\n").split(b"\n"), first))
    assert {1: b"1,2", 2: b"3,4", 3: b"", 4: b"5,6"} == lines


@pytest.mark.parametrize("block", range(1, 40))
@pytest.mark.parametrize("content", ["[[1,2],[3,4],[5,6]]", '[\n [1, "2"],\n [3, 4], [5,\t6]\n]\n'])
def test_json_is_cut_between_rows(block, content) -> None:
    """Wherever a block ends, the same rows with the same numbers come out."""
    rows = {}
    for first, data, torn, _ in pieces_of(content.encode(), block):
        assert not torn
        rows |= dict(enumerate(data.removesuffix(b"\n").split(b"\n"), first))
    assert {1: b"1,2", 2: b"3,4", 3: b"5,6"} == rows
