"""Write files of klines in the official archive's layout: seeded, plausible, and on demand with the archive's defects.

Example: python scripts/make_klines.py --symbol BTCUSDT --interval 1m --month 2025-01 --folder /tmp/klines --defects gap
"""

import argparse
import json
import random
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import islice
from pathlib import Path
from zlib import crc32

HEADER = (
    "open_time,open,high,low,close,volume,close_time,quote_volume,count,taker_buy_volume,taker_buy_quote_volume,ignore"
)
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
COLUMNS = ("open_time", "open", "high", "low", "close", "volume", "close_time")
OPEN_TIME, OPEN, HIGH, LOW, CLOSE, VOLUME, CLOSE_TIME, QUOTE_VOLUME, COUNT = range(9)
MONDAY = datetime(1970, 1, 5, tzinfo=UTC)
Row = list[str]


@dataclass
class Made:
    """What a file holds, so that whoever loads it knows what to expect."""

    path: Path
    symbol: str
    interval: str
    market: str
    rows: int = 0  # lines that should be candles
    good: int = 0  # distinct candles that a loader should take
    rejected: int = 0
    duplicates: int = 0  # rows that say once more what an earlier one said
    missing: int = 0  # candles lacking between the first and the last
    injected: dict[str, int] = field(default_factory=dict)  # rows touched by each defect


def openings(interval: str, start: datetime) -> Iterator[datetime]:
    """List when candles open, from the first on the interval's grid that is not before `start`."""
    if interval == "1mo":
        at = start.replace(day=1)
        at = at if at >= start else (at + timedelta(days=31)).replace(day=1)
        while True:
            yield at
            at = (at + timedelta(days=31)).replace(day=1)
    step = timedelta(seconds=int(interval[:-1]) * UNITS[interval[-1]])
    at = MONDAY + -((MONDAY - start) // step) * step
    while True:
        yield at
        at += step


def in_units(at: datetime, unit: str) -> int:
    """Write a moment as milliseconds (ms) or microseconds (us) since 1970."""
    return (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1) * (1000 if unit == "us" else 1)


def candles(  # noqa: PLR0913 - each is a property of the file
    symbol: str, interval: str, start: datetime, rows: int, *, market: str = "spot", unit: str = "ms", seed: int = 0
) -> Iterator[Row]:
    """Walk a price at random, tick by tick; the same arguments give the same candles."""
    chance = random.Random(f"{seed} {symbol} {interval} {market}")  # noqa: S311 - candles, not secrets
    price = 200 + crc32(symbol.encode()) % 9_999_800  # in ticks of a hundredth
    places = 8 if market == "spot" else 3
    times = openings(interval, start)
    at = next(times)
    for _ in range(rows):
        after = next(times)
        quiet = chance.random() < 0.01  # noqa: PLR2004 - one candle of a hundred has no trade
        wide = max(2, price // 2000)
        moves = [0] * 4 if quiet else [chance.randint(-wide, wide) for _ in range(4)]
        path = [price + move if price + move > 0 else price for move in (0, *moves)]
        volume = Decimal(0 if quiet else chance.randint(1, 10**10)).scaleb(-places)
        taker = (volume * chance.randint(0, 100) / 100).quantize(Decimal(1).scaleb(-places))
        typical = Decimal(sum(path)) / 500
        digits = "{:.8f}" if market == "spot" else "{:.2f}"
        prices = [digits.format(Decimal(each) / 100) for each in (path[0], max(path), min(path), path[-1])]
        yield [
            str(in_units(at, unit)),
            *prices,
            f"{volume:f}",
            str(in_units(after, unit) - 1),
            f"{volume * typical:.8f}",
            str(0 if quiet else chance.randint(1, 5000)),
            f"{taker:f}",
            f"{taker * typical:.8f}",
            "0",
        ]
        price, at = path[-1], after


class Defects:
    """Puts the archive's defects into rows, and keeps count of what a loader should make of each."""

    def __init__(self, rows: list[Row], made: Made, chance: random.Random) -> None:
        self.rows = rows
        self.made = made
        self.chance = chance
        self.free = list(range(10, len(rows) - 10))  # rows still in order; both ends stay whole
        self.chance.shuffle(self.free)

    def inject(self, name: str) -> None:
        """Inject one kind of defect into some rows.

        Raises:
            ValueError: there is no such defect, or the file is too short for it.

        """
        if name not in DEFECTS:
            raise ValueError(f"{name!r} is not a defect: choose from {', '.join(DEFECTS)}")
        self.made.injected[name] = DEFECTS[name](self)

    def take(self, count: int = 3) -> list[int]:
        """Choose rows that no other defect has touched."""
        if len(self.free) < count:
            raise ValueError(f"{self.made.path.name} has too few rows for its defects: make at least 200")
        return [self.free.pop() for _ in range(count)]

    def spoil(self, column: int, value: str, count: int = 3) -> int:
        """Make rows bad by one field: rejected, and so missing."""
        for place in self.take(count):
            self.rows[place][column] = value
        self.made.rejected += count
        return count

    def gap(self) -> int:
        """Take out single candles."""
        for place in self.take(5):
            self.rows[place] = []
        return 5

    def equal_duplicates(self) -> int:
        """Say rows once more."""
        for place in self.take():
            self.rows.append(list(self.rows[place]))
        self.made.duplicates += 3
        return 3

    def different_duplicates(self) -> int:
        """Say rows once more, otherwise."""
        for place in self.take():
            row = list(self.rows[place])
            row[VOLUME] = str(Decimal(row[VOLUME]) + 1)
            self.rows.append(row)
        self.made.rejected += 3
        return 3

    def off_grid(self) -> int:
        """Let candles open a little late."""
        for place in self.take():
            self.rows[place][OPEN_TIME] = str(int(self.rows[place][OPEN_TIME]) + 7)
        self.made.rejected += 3
        return 3

    def wrong_close_time(self) -> int:
        """Let candles close hours late; they are good all the same."""
        for place in self.take():
            self.rows[place][CLOSE_TIME] = str(int(self.rows[place][CLOSE_TIME]) + 7_200_000)
        return 3

    def high_below_low(self) -> int:
        """Exchange high and low, one far from the other."""
        for place in self.take():
            row = self.rows[place]
            row[HIGH], row[LOW] = row[LOW], str(Decimal(row[HIGH]) + 1)
        self.made.rejected += 3
        return 3

    def wrong_columns(self) -> int:
        """Leave out the last columns, or add one."""
        for number, place in enumerate(self.take()):
            self.rows[place] = self.rows[place][:9] if number % 2 else [*self.rows[place], "0"]
        self.made.rejected += 3
        return 3

    def out_of_order(self) -> int:
        """Move good rows to the end."""
        for place in self.take():
            self.rows.append(self.rows[place])
            self.rows[place] = []
        return 3

    def long_numbers(self) -> int:
        """Write volumes of thirty digits."""
        for place in self.take():
            self.rows[place][VOLUME] = "123456789012345.123456789012345"
        return 3

    def zero_volume_run(self) -> int:
        """Let nothing be traded for a while; such candles are good."""
        free = set(self.free)
        start = next((at for at in sorted(free) if free.issuperset(range(at, at + 30))), None)
        if start is None:
            raise ValueError(f"{self.made.path.name} has too few rows for its defects: make at least 200")
        self.free = [place for place in self.free if not start <= place < start + 30]
        for row in self.rows[start : start + 30]:
            row[VOLUME], row[QUOTE_VOLUME], row[COUNT], row[9], row[10] = "0", "0", "0", "0", "0"
        return 30


DEFECTS = {
    "gap": Defects.gap,
    "equal-duplicates": Defects.equal_duplicates,
    "different-duplicates": Defects.different_duplicates,
    "off-grid": Defects.off_grid,
    "wrong-close-time": Defects.wrong_close_time,
    "negative-price": lambda self: self.spoil(LOW, "-1.00"),
    "zero-price": lambda self: self.spoil(LOW, "0.00000000"),
    "high-below-low": Defects.high_below_low,
    "negative-volume": lambda self: self.spoil(VOLUME, "-5.00"),
    "nan": lambda self: self.spoil(CLOSE, "NaN"),
    "infinity": lambda self: self.spoil(HIGH, "inf"),
    "not-a-number": lambda self: self.spoil(OPEN, "n/a"),
    "wrong-columns": Defects.wrong_columns,
    "out-of-order": Defects.out_of_order,
    "long-numbers": Defects.long_numbers,
    "zero-volume-run": Defects.zero_volume_run,
}
DEMO_DEFECTS = ("gap", "equal-duplicates", "different-duplicates", "off-grid", "wrong-close-time", "zero-price", "nan")


def make_file(  # noqa: PLR0913 - each is a property of the file
    folder: Path,
    symbol: str,
    interval: str = "1m",
    *,
    start: datetime,
    rows: int | None = None,
    name: str | None = None,
    market: str = "spot",
    unit: str = "ms",
    header: bool | None = None,
    crlf: bool = False,
    zipped: bool = False,
    truncated: bool = False,
    layout: str = "official",
    seed: int = 0,
    defects: tuple[str, ...] = (),
) -> Made:
    """Write one file; without `rows`, the whole month of `start`."""
    if rows is None:
        end = (start.replace(day=1) + timedelta(days=31)).replace(day=1)
        rows = sum(1 for _ in iter_until(openings(interval, start), end))
    ending = "json" if layout == "ccxt" else "zip" if zipped else "csv"
    path = folder / (name or f"{symbol}-{interval}-{start:%Y-%m}.{ending}")
    made = Made(path, symbol, interval, market)
    table = list(candles(symbol, interval, start, rows, market=market, unit=unit, seed=seed))
    spoiler = Defects(table, made, random.Random(f"{seed} {path.name}"))  # noqa: S311 - candles, not secrets
    for defect in sorted(defects, key="zero-volume-run".__ne__):  # the one that needs a free stretch comes first
        spoiler.inject(defect)
    if truncated:  # what is cut is the last candle, also where defects have put rows behind it
        table.append(table[rows - 1])
        table[rows - 1] = []
    kept = [row for row in table if row]
    made.rows = len(kept)
    made.rejected += truncated
    made.good = made.rows - made.rejected - made.duplicates
    made.missing = rows - truncated - made.good
    folder.mkdir(parents=True, exist_ok=True)
    if layout == "ccxt":
        text = ccxt(kept)
    else:
        text = official(kept, header=market != "spot" if header is None else header, crlf=crlf)
    write(path, text[: text.rindex(",", 0, text.rindex(",", 0, text.rindex(","))) - 2] if truncated else text)
    return made


def iter_until(times: Iterator[datetime], end: datetime) -> Iterator[datetime]:
    """List moments before `end`."""
    for at in times:
        if at >= end:
            return
        yield at


def official(rows: list[Row], *, header: bool, crlf: bool) -> str:
    """Write rows as the archive does."""
    lines = [HEADER] if header else []
    lines += [",".join(row) for row in rows]
    feed = "\r\n" if crlf else "\n"
    return "".join(line + feed for line in lines)


def ccxt(rows: list[Row]) -> str:
    """Write rows as ccxt returns them."""
    return "[" + ", ".join("[" + ", ".join(row[:6]) + "]" for row in rows) + "]"


def write(path: Path, text: str) -> None:
    """Write a file, as a ZIP where its name says so."""
    if path.suffix != ".zip":
        path.write_bytes(text.encode())
        return
    inner = zipfile.ZipInfo(path.with_suffix(".csv").name, date_time=(2025, 1, 1, 0, 0, 0))
    inner.compress_type = zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(inner, text)


def append_rows(  # noqa: PLR0913 - each is a property of the file
    path: Path, symbol: str, interval: str, start: datetime, rows: int, *, market: str = "spot"
) -> None:
    """Write a file of any length without holding it in memory."""
    with path.open("w", encoding="ascii") as file:
        stream = candles(symbol, interval, start, rows, market=market)
        while some := list(islice(stream, 10_000)):
            file.write(official(some, header=False, crlf=False))


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog=__doc__.splitlines()[-1])
    parser.add_argument("--symbol", action="append", help="may be given several times (default: three of them)")
    parser.add_argument("--interval", default="1m", help="1s to 1w, or 1mo (default: 1m)")
    parser.add_argument("--month", action="append", help="YYYY-MM, may be given several times (default: 2025-01)")
    parser.add_argument("--rows", type=int, help="rows of each file (default: the whole month)")
    parser.add_argument("--market", default="spot", choices=["spot", "um", "cm"], help="where they trade")
    parser.add_argument("--unit", default="ms", choices=["ms", "us"], help="unit of the times (default: ms)")
    parser.add_argument("--header", action=argparse.BooleanOptionalAction, help="default: as the market's archive")
    parser.add_argument("--zip", action="store_true", help="write ZIP files")
    parser.add_argument("--crlf", action="store_true", help="end lines as Windows does")
    parser.add_argument("--truncated", action="store_true", help="end the file inside its last row")
    parser.add_argument("--layout", default="official", choices=["official", "ccxt"], help="CSV, or JSON of ccxt")
    parser.add_argument("--defects", default="", help="names, separated by commas; `demo`: a choice; `all`: every one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path(), help="where to (default: here)")
    return parser.parse_args()


def main() -> None:
    """Write the files, and a line of JSON for each: what is in it."""
    options = parsed()
    chosen = {"": (), "demo": DEMO_DEFECTS, "all": tuple(DEFECTS)}.get(options.defects)
    for symbol in options.symbol or ("BTCUSDT", "ETHUSDT", "SOLUSDT"):
        for month in options.month or ["2025-01"]:
            made = make_file(
                options.folder / options.market,
                symbol,
                options.interval,
                start=datetime.strptime(f"{month} +0000", "%Y-%m %z"),
                rows=options.rows,
                market=options.market,
                unit=options.unit,
                header=options.header,
                crlf=options.crlf,
                zipped=options.zip,
                truncated=options.truncated,
                layout=options.layout,
                seed=options.seed,
                defects=chosen if chosen is not None else tuple(options.defects.split(",")),
            )
            print(json.dumps(asdict(made) | {"path": str(made.path)}))


if __name__ == "__main__":
    main()
