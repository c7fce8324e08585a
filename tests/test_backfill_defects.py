"""Loading files with the archive's defects: what is taken, what is rejected with its line, what refuses the file."""

import csv
import uuid
import zipfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import make_klines
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from make_klines import Made, Row
from sqlalchemy import Engine, text

from helios.backfill import Mode, Report, load, recognise
from helios.backfill.tiers import Tier
from helios.errors import InputError

JANUARY = datetime(2025, 1, 1, tzinfo=UTC)
VOLUME, CLOSE_TIME = 5, 6


@dataclass
class Bench:
    """Makes files of one symbol, loads them as the writer role, and reads back what arrived."""

    writer: Engine
    owner: Engine
    symbol: str
    folder: Path
    tier: Tier = Tier.BASE

    def make(self, *defects: str, rows: int = 400, interval: str = "1m", **options: object) -> Made:
        """Generate a file."""
        return make_klines.make_file(
            self.folder, self.symbol, interval, start=JANUARY, rows=rows, defects=defects, **options
        )

    def write(self, content: bytes | str | list[Row], name: str = "{}-1m-2025-01.csv") -> Path:
        """Write a file by hand."""
        path = self.folder / name.format(self.symbol)
        if isinstance(content, list):
            content = make_klines.official(content, header=False, crlf=False)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def rows(self, count: int = 100, interval: str = "1m", unit: str = "ms", start: datetime = JANUARY) -> list[Row]:
        """Generate rows to be spoiled by hand."""
        return list(make_klines.candles(self.symbol, interval, start, count, unit=unit))

    def load(self, path: Path, *, strict: bool = False, again: bool = False, **options: str) -> Report:
        """Load a file."""
        source, rejects = recognise(path, **options), self.folder / "rejects"
        return load(self.writer, source, strict=strict, again=again, rejects=rejects, tier=self.tier)

    def held(self, columns: str = "open_time") -> list[tuple[object, ...]]:
        """Read columns of what arrived, oldest first."""
        return self.query(
            f"SELECT {columns} FROM helios_trading.klines AS k "
            "JOIN helios_trading.instruments AS i ON i.id = instrument_id WHERE symbol = :symbol ORDER BY open_time"
        )

    def quality(self) -> list[tuple[object, ...]]:
        """Read the measurements of the loads."""
        return self.query(
            "SELECT rows_expected, rows_found, rows_rejected, completeness, alert_level, reasons "
            "FROM helios_trading.data_quality_metrics AS q "
            "JOIN helios_trading.instruments AS i ON i.id = instrument_id WHERE symbol = :symbol ORDER BY q.id"
        )

    def query(self, statement: str) -> list[tuple[object, ...]]:
        """Read with the symbol bound."""
        with self.owner.connect() as connection:
            return [tuple(row) for row in connection.execute(text(statement), {"symbol": self.symbol})]


both_tiers = pytest.mark.parametrize("bench", list(Tier), indirect=True)


@pytest.fixture
def bench(writer: Engine, owner: Engine, symbol: str, tmp_path: Path, request: pytest.FixtureRequest) -> Bench:
    return Bench(writer, owner, symbol, tmp_path, getattr(request, "param", Tier.BASE))


def rejected_rows(report: Report) -> list[tuple[int, str]]:
    """Read the file of rejected rows: line and reason."""
    assert report.rejects is not None
    with report.rejects.open(newline="") as file:
        return [(int(row["line"]), row["reason"]) for row in csv.DictReader(file)]


def agrees(report: Report, made: Made) -> bool:
    """Say whether a report tells what was generated."""
    told = (report.rows, report.good, report.rejected, report.duplicates, report.missing)
    return told == (made.rows, made.good, made.rejected, made.duplicates, made.missing)


@both_tiers
@pytest.mark.parametrize("defect", sorted(make_klines.DEFECTS))
def test_each_defect_is_counted(bench: Bench, defect: str) -> None:
    """Each generated defect is told in exact numbers, and the good rows are all there."""
    made = bench.make(defect)
    report = bench.load(made.path)
    assert agrees(report, made), report
    assert made.good == len(bench.held()) == report.inserted
    if made.rejected:
        assert made.rejected == len(rejected_rows(report))


@both_tiers
def test_all_defects_in_one_file(bench: Bench) -> None:
    """A file with every defect at once is told in exact numbers, and the measurement agrees."""
    made = bench.make(*make_klines.DEFECTS, rows=3000)
    report = bench.load(made.path)
    assert agrees(report, made), report
    assert [(44_640, made.good, made.rejected)] == [row[:3] for row in bench.quality()]


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        (0, "x", "open_time 'x' is not a whole number"),
        (0, "1735689600", "is no moment between 2000 and 2200"),
        (0, "1735689660001", "is not where a candle of this interval opens"),
        (1, "", "open '' is not a number"),
        (1, "1.2.3", "open '1.2.3' is not a number"),
        (1, "1_000", "open '1_000' is not a number"),
        (2, "NaN", "high 'NaN' is not finite"),
        (2, "-Infinity", "high '-Infinity' is not finite"),
        (2, "1e9999", "high '1e9999' is beyond what PostgreSQL holds"),
        (2, "0.01", "is below low"),
        (3, "0", "low '0' is not above zero"),
        (3, "-1", "low '-1' is not above zero"),
        (3, "9" * 12, "is below low"),
        (4, "9" * 12, "is below open or close"),
        (4, "0.00000001", "is above open or close"),
        (5, "-1", "volume '-1' is below zero"),
        (5, "nan", "volume 'nan' is not finite"),
        (7, "..", "quote_volume '..' is not a number"),
        (8, "1.5", "count '1.5' is not a whole number"),
        (8, "2147483648", "is not between 0 and 2147483647"),
        (8, "-1", "is not between 0 and"),
        (9, "-1", "taker_buy_volume '-1' is below zero"),
        (10, "inf", "taker_buy_quote_volume 'inf' is not finite"),
    ],
)
def test_a_bad_field_is_named_with_its_line(bench: Bench, column: int, value: str, reason: str) -> None:
    """A bad field costs its row alone, and the rejects file says line, field and reason."""
    rows = bench.rows()
    rows[50][column] = value
    report = bench.load(bench.write(rows))
    ((line, said),) = rejected_rows(report)
    assert 51 == line
    assert reason in said
    assert (99, 1) == (report.inserted, report.rejected)


def test_crlf(bench: Bench) -> None:
    """Lines that end as Windows ends them are read alike."""
    made = bench.make(crlf=True, header=True)
    assert agrees(bench.load(made.path), made)


def test_trailing_blank_lines(bench: Bench) -> None:
    """Blank lines at the end are no rows."""
    path = bench.write(make_klines.official(bench.rows(), header=True, crlf=False) + "\n \n\n")
    report = bench.load(path)
    assert (100, 100, 0) == (report.rows, report.inserted, report.rejected)


@pytest.mark.parametrize("content", ["", "\n", make_klines.HEADER + "\n", "\ufeff"])
def test_an_empty_file_is_loaded_empty(bench: Bench, content: str) -> None:
    """A file without rows brings none, and is remembered."""
    path = bench.write(content)
    report = bench.load(path)
    assert (0, 0, 0) == (report.rows, report.inserted, report.rejected)
    assert Mode.UNCHANGED == bench.load(path).mode


def test_a_truncated_last_line(bench: Bench) -> None:
    """A row that the file's end cuts off is rejected; the rest is loaded."""
    made = bench.make(truncated=True)
    report = bench.load(made.path)
    assert agrees(report, made), report
    ((line, said),) = rejected_rows(report)
    assert 400 == line
    assert "the file ends inside this row" in said


def test_a_last_line_without_line_feed(bench: Bench) -> None:
    """A whole last row counts, also when nothing ends its line."""
    path = bench.write(make_klines.official(bench.rows(), header=False, crlf=False).rstrip())
    assert 100 == bench.load(path).inserted


def test_a_truncated_json(bench: Bench) -> None:
    """A list of candles that ends too early loses the row it ends in: its last number may be cut."""
    text_ = make_klines.ccxt(bench.rows())
    report = bench.load(bench.write(text_[:-4], "{}-1m.json"))
    assert (99, 1) == (report.inserted, report.rejected)


def test_byte_order_mark(bench: Bench) -> None:
    """The mark that some editors put first is not part of the first time."""
    path = bench.write(b"\xef\xbb\xbf" + make_klines.official(bench.rows(), header=False, crlf=False).encode())
    assert 100 == bench.load(path).inserted


def test_unit_switches_inside_a_file(bench: Bench) -> None:
    """Milliseconds and microseconds in one file are told apart row by row."""
    rows = bench.rows(50) + bench.rows(100, unit="us")[50:]
    report = bench.load(bench.write(rows))
    assert (100, 0) == (report.inserted, report.missing)
    assert JANUARY + timedelta(minutes=99) == bench.held()[-1][0]


def test_unit_switches_between_files(bench: Bench) -> None:
    """One file in milliseconds and the next in microseconds join without a seam."""
    bench.load(bench.write(bench.rows(60)))
    bench.load(bench.write(bench.rows(120, unit="us")[60:], "{}-1m-2025-02.csv"))
    assert [(JANUARY + timedelta(minutes=each),) for each in range(120)] == bench.held()


def test_microseconds_off_the_millisecond(bench: Bench) -> None:
    """A time that is off by one microsecond is off the grid."""
    rows = bench.rows(50, unit="us")
    rows[7][0] = str(int(rows[7][0]) + 1)
    report = bench.load(bench.write(rows))
    assert [8] == [line for line, _ in rejected_rows(report)]


def test_an_equal_duplicate_is_dropped_by_value(bench: Bench) -> None:
    """1.50 and 1.5 say the same; the row is counted as a repetition and not rejected."""
    rows = bench.rows()
    again = list(rows[20])
    again[1] += "000"
    report = bench.load(bench.write([*rows[:21], again, *rows[21:]]))
    assert (100, 1, 0, None) == (report.inserted, report.duplicates, report.rejected, report.rejects)


def test_of_different_duplicates_the_first_stays(bench: Bench) -> None:
    """The later of two rows that contradict each other is rejected, and says which line was taken."""
    rows = bench.rows()
    other = list(rows[20])
    other[VOLUME] = "5"
    report = bench.load(bench.write([*rows, other]))
    assert [(101, "differs from line 21, which has the same open_time and was taken")] == rejected_rows(report)
    assert Decimal(rows[20][VOLUME]) == bench.held("volume")[20][0]


def test_a_good_duplicate_of_a_bad_row_is_taken(bench: Bench) -> None:
    """When the first row of a time is bad, the next good one counts, and is what later ones are compared with."""
    rows = bench.rows()
    bad = [*rows[20][:3], "-1", *rows[20][4:]]
    report = bench.load(bench.write([*rows[:20], bad, *rows[21:], rows[20], rows[20]]))
    assert (100, 1, 1, 0) == (report.inserted, report.rejected, report.duplicates, report.missing)


def test_a_file_that_holds_everything_twice(bench: Bench) -> None:
    """Two copies in one file are one."""
    rows = bench.rows(2000)
    report = bench.load(bench.write(rows + rows))
    assert (2000, 2000, 0) == (report.inserted, report.duplicates, report.rejected)


def test_rows_in_descending_order(bench: Bench) -> None:
    """The newest first is an order as well."""
    report = bench.load(bench.write(bench.rows(500)[::-1]))
    assert (500, 0, 0) == (report.inserted, report.missing, report.rejected)
    assert any("rows out of order" in reason for reason in report.reasons)


def test_a_gap_is_told_with_its_place(bench: Bench) -> None:
    """A gap is told with its first missing candle and its length."""
    rows = bench.rows(300)
    report = bench.load(bench.write(rows[:100] + rows[130:]))
    assert (30, 1) == (report.missing, report.gap_count)
    assert [(JANUARY + timedelta(minutes=100), 30)] == [(gap.start, gap.candles) for gap in report.gaps]


def test_a_file_cut_short_misses_its_end(bench: Bench) -> None:
    """A daily file with 283 of its 288 candles is measured against its day."""
    report = bench.load(bench.write(bench.rows(283, "5m"), "{}-5m-2025-01-01.csv"))
    assert (288, 283, 0) == (report.expected, report.good, report.missing)
    assert "5 candles of 2025-01-01 missing at the file's ends" in report.reasons
    assert [(288, 283, 0, Decimal("0.982639"), "warning")] == [row[:5] for row in bench.quality()]


def test_a_whole_file_asks_for_no_attention(bench: Bench) -> None:
    """A whole day is complete, with nothing to say but its candles without a trade."""
    report = bench.load(bench.write(bench.rows(288, "5m"), "{}-5m-2025-01-01.csv"))
    assert 1.0 == report.completeness
    ((expected, found, rejected, completeness, level, _),) = bench.quality()
    assert (288, 288, 0, 1, "ok") == (expected, found, rejected, completeness, level)


def test_zero_volume_runs_are_told(bench: Bench) -> None:
    """Candles without a trade are good, counted, and their longest run is told, also across blocks."""
    rows = bench.rows(9000)
    for number, row in enumerate(rows):
        row[VOLUME] = "0.00" if 2000 <= number < 6500 or number == 8000 else "1"
    report = bench.load(bench.write(rows))
    assert (4501, 2, 4500) == report.quiet
    assert (9000, 0) == (report.inserted, report.rejected)


def test_a_wrong_close_time_is_a_warning(bench: Bench) -> None:
    """A close time that is hours off does not cost a good candle, but is told."""
    rows = bench.rows()
    for row in rows[10:13]:
        row[CLOSE_TIME] = str(int(row[CLOSE_TIME]) + 7_200_000)
    report = bench.load(bench.write(rows))
    assert (100, 0) == (report.inserted, report.rejected)
    assert "3 rows with a wrong close_time" in report.reasons


def test_one_row_is_told_as_one(bench: Bench) -> None:
    """Its sentences are not those of several."""
    rows = bench.rows()
    rows[10][CLOSE_TIME] = str(int(rows[10][CLOSE_TIME]) + 7_200_000)
    rows[20:22] = [rows[21], rows[20], rows[20]]
    said = {"1 row with a wrong close_time", "1 row out of order", "1 row that repeats an earlier one was dropped"}
    assert said <= set(bench.load(bench.write(rows)).reasons)


def test_thirty_digits_stay_exact(bench: Bench) -> None:
    """Numbers of thirty digits come back as they were written, and are compared as such."""
    rows = bench.rows()
    price = "123456789012345.123456789012345"
    rows[40][1:5] = [price] * 4
    rows[41][1:5] = [price, price[:-1] + "4", price, price]  # the high is below by the thirtieth digit
    report = bench.load(bench.write(rows))
    assert [42] == [line for line, _ in rejected_rows(report)]
    assert Decimal(price) == bench.held("high")[40][0]


def test_exponents_in_json_are_exact(bench: Bench) -> None:
    """Small prices that Python writes with an exponent are the numbers they say."""
    path = bench.write("[[1735689600000, 1e-07, 2.5e-07, 1e-07, 2e-07, 1234567890123456.12345678]]", "{}-1m.json")
    assert 1 == bench.load(path).inserted
    assert (Decimal("1E-7"), Decimal("2.5E-7"), Decimal("1234567890123456.12345678")) == bench.held(
        "open, high, volume"
    )[0]


def test_rest_answers_are_read(bench: Bench) -> None:
    """The exchange's own JSON, twelve columns with numbers in quotes, is the official layout."""
    rows = ", ".join(
        "[" + ", ".join([row[0], *(f'"{each}"' for each in row[1:6]), row[6], f'"{row[7]}"', *row[8:]]) + "]"
        for row in bench.rows(30)
    )
    assert 30 == bench.load(bench.write(f"[\n{rows}\n]\n", "{}-1m.json")).inserted
    assert bench.held("trades")[0][0] is not None


def test_a_candle_that_is_not_closed(bench: Bench) -> None:
    """The running candle is rejected: only closed ones are stored."""
    month = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)  # a minute ends too often
    report = bench.load(bench.write(bench.rows(13, "1mo", start=month.replace(year=month.year - 1)), "{}-1mo.csv"))
    assert (12, 1) == (report.inserted, report.rejected)
    assert "is not closed yet" in rejected_rows(report)[0][1]


def test_a_month_that_the_name_does_not_say(bench: Bench) -> None:
    """Good candles of another month than the name's are loaded, and told."""
    report = bench.load(bench.write(bench.rows(100), "{}-1m-2024-03.csv"))
    assert 100 == report.inserted
    assert any("do not fit 2024-03" in reason for reason in report.reasons)


@pytest.mark.parametrize(("held", "named"), [("1h", "1m"), ("1m", "1h"), ("1d", "1w"), ("1mo", "1d"), ("1d", "1mo")])
def test_an_interval_that_the_name_does_not_say(bench: Bench, held: str, named: str) -> None:
    """A file whose rows are clearly another interval's is refused, and the option is named."""
    start = datetime(2019, 1, 1, tzinfo=UTC)
    path = bench.write(bench.rows(48, held, start=start), "{}-" + named + "-2019-01.csv")
    with pytest.raises(InputError, match=f"rows that stand {held} apart: say --interval {held}"):
        bench.load(path)
    assert [] == bench.query("SELECT 1 FROM helios_trading.instruments WHERE symbol = :symbol")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("{}-1m.csv", bytes(range(256)) * 40, "is not text"),
        ("{}-1m.csv", b"\xff\xfe1\x00,\x002\x00", "is not text"),
        ("{}-1m.csv", b"\x89PNG\r\n\x1a\n" + b"\xab" * 5000, "is not text"),
        ("{}-1m.csv", b"<html><body>Not found</body></html>\n", "does not look like klines"),
        ("{}-1m.csv", b"1" * 3_000_000, "a line of more than"),
        ("{}-1m.zip", b"PK\x03\x04" + b"\xab" * 500, "is a ZIP that cannot be read"),
        ("{}-1m.json", b'{"code": -1121, "msg": "Invalid symbol."}', "holds a JSON object"),
        ("{}-1m.json", b"[1, 2, 3]", "is not a list of lists"),
        ("{}-1m.json", b"[", "ends inside its first bracket"),
    ],
)
def test_rubbish_is_refused(bench: Bench, name: str, content: bytes, reason: str) -> None:
    """What is no file of klines is refused in one sentence, and nothing is written, not even the instrument."""
    with pytest.raises(InputError, match=reason) as refused:
        bench.load(bench.write(content, name))
    assert "\n" not in str(refused.value)
    assert [] == bench.query("SELECT 1 FROM helios_trading.instruments WHERE symbol = :symbol")


def test_rubbish_in_the_middle_costs_its_lines(bench: Bench) -> None:
    """Bytes that are no text cost the lines they stand in, and are shown escaped."""
    lines = make_klines.official(bench.rows(), header=False, crlf=False).encode().splitlines(keepends=True)
    lines[50:50] = [b"\x00\x01\xff,\xab\n"]
    report = bench.load(bench.write(b"".join(lines)))
    assert (100, 1) == (report.inserted, report.rejected)
    assert report.rejects is not None
    assert b"\\x00" in report.rejects.read_bytes()
    assert b"\x00" not in report.rejects.read_bytes()


def test_a_damaged_zip(bench: Bench) -> None:
    """A ZIP whose content does not match its checksum is refused, and leaves nothing."""
    made = bench.make(rows=20_000, zipped=True)
    content = bytearray(made.path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    made.path.write_bytes(content)
    with pytest.raises(InputError, match="ZIP"):
        bench.load(made.path)
    assert [] == bench.held()


@both_tiers
@pytest.mark.parametrize("damage", ["a name that is no UTF-8", "content of LZMA"])
def test_a_damaged_zip_of_any_kind(bench: Bench, damage: str) -> None:
    """Wherever a ZIP is damaged, it is refused in one sentence, by either tier."""
    made, path = bench.make(rows=2000), bench.folder / f"{bench.symbol}-1m.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.write(made.path, "kürze.csv")
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\x01\x02")  # of the list of files at the end
    content[entry + 46 if damage == "a name that is no UTF-8" else entry // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"is a ZIP that cannot be read .*: fetch it again"):
        bench.load(path)
    assert [] == bench.held()


def test_a_zip_with_two_files(bench: Bench) -> None:
    """A ZIP that does not hold exactly one file is refused."""
    path = bench.folder / f"{bench.symbol}-1m.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.csv", "1")
        archive.writestr("b.csv", "2")
    with pytest.raises(InputError, match="holds 2 files"):
        bench.load(path)


def test_strict_refuses_the_whole_file(bench: Bench) -> None:
    """With strict, one bad row refuses the file, names the first bad line, and writes nothing at all."""
    made = bench.make("nan", "off-grid", "different-duplicates")
    bad = bench.load(made.path)
    first = min(line for line, _ in rejected_rows(bad))
    other = bench.write(made.path.read_bytes(), "{}X-1m-2025-01.csv")
    with pytest.raises(InputError, match=f"line {first} .*9 rows are bad, and with --strict nothing is loaded"):
        bench.load(other, strict=True)
    with bench.owner.connect() as connection:
        statement = text("SELECT count(*) FROM helios_trading.instruments WHERE symbol = :symbol")
        assert 0 == connection.scalar(statement, {"symbol": bench.symbol + "X"})


def test_strict_takes_a_good_file(bench: Bench) -> None:
    """Strict takes what has no bad row, repetitions and gaps included."""
    made = bench.make("gap", "equal-duplicates", "out-of-order", "wrong-close-time")
    assert made.good == bench.load(made.path, strict=True).inserted


def test_ends_that_mislead(bench: Bench) -> None:
    """The ends of a file, by which its range is guessed, may be far from the rest: every row is judged by itself."""
    rows = bench.rows(300)
    rows[0][0], rows[-1][0] = "1009843260000", "4102444800000"
    report = bench.load(bench.write(rows))
    assert (299, 1) == (report.inserted, report.rejected)
    assert [datetime(2002, 1, 1, 0, 1, tzinfo=UTC)] == [at for (at,) in bench.held() if at < JANUARY]
    assert [(0,)] == bench.query("SELECT count(*) FROM pg_class WHERE relname = 'klines_1m_2100' AND :symbol <> ''")


def test_a_middle_that_the_ends_do_not_tell(bench: Bench) -> None:
    """A candle outside the range between a file's first and last row is loaded all the same."""
    rows = bench.rows(300)
    rows[150][0] = str(int(rows[150][0]) - 86_400_000 * 400)
    rows[150][CLOSE_TIME] = str(int(rows[150][0]) + 59_999)
    report = bench.load(bench.write(rows))
    assert (300, Mode.DIRECT) == (report.inserted, report.mode)
    assert datetime(2023, 11, 28, 2, 30, tzinfo=UTC) == bench.held()[0][0]


def test_a_foreign_rejects_file_is_not_overwritten(bench: Bench) -> None:
    """A file of the rejects file's name that is somebody else's stays as it is."""
    made = bench.make("nan")
    first = bench.load(made.path)
    assert first.rejects == bench.load(made.path, again=True).rejects
    first.rejects.write_text("my notes")
    second = bench.load(made.path, again=True)
    assert first.rejects != second.rejects
    assert "my notes" == first.rejects.read_text()


def test_without_a_folder_rejects_are_only_counted(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who names no folder gets no file."""
    made = bench.make("nan")
    monkeypatch.chdir(bench.folder)
    before = sorted(bench.folder.rglob("*"))
    report = load(bench.writer, recognise(made.path))
    assert (3, None) == (report.rejected, report.rejects)
    assert before == sorted(bench.folder.rglob("*"))


def test_reasons_are_stored_as_sentences(bench: Bench) -> None:
    """The measurement says in words what was wrong."""
    made = bench.make("nan", "equal-duplicates", "gap")
    report = bench.load(made.path)
    ((*_, level, reasons),) = bench.quality()
    assert "critical" == level  # the file's name says a month, of which most is missing
    assert report.reasons == reasons
    assert {"3 rows rejected: not finite", "3 rows that repeat an earlier one were dropped"} < set(reasons)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    defects=st.lists(st.sampled_from(sorted(make_klines.DEFECTS)), unique=True),
    seed=st.integers(0, 10**6),
    unit=st.sampled_from(["ms", "us"]),
    rows=st.integers(200, 1500),
    crlf=st.booleans(),
    truncated=st.booleans(),
)
def test_any_mixture_of_defects(
    bench: Bench,
    *,
    defects: list[str],
    seed: int,
    unit: str,
    rows: int,
    crlf: bool,
    truncated: bool,
) -> None:
    """Whatever the mixture, the numbers are exact and the distinct good times are what the table holds."""
    bench.symbol = f"P{uuid.uuid4().hex[:10].upper()}USDT"
    made = bench.make(*defects, rows=rows, seed=seed, unit=unit, crlf=crlf, truncated=truncated)
    report = bench.load(made.path, again=True)
    assert agrees(report, made), (report, made)
    assert made.good == len(bench.held())
