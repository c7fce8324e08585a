"""One row, looked at closely: numbers exactly as written, and a reason for whatever is not a candle."""

import re
from decimal import Decimal
from typing import NamedTuple

from .grid import Grid, scale_of
from .refusal import BadRowError

OFFICIAL = 12  # open_time, open, high, low, close, volume, close_time, quote_volume, count, taker volumes, ignore
PLAIN = 6  # time, open, high, low, close, volume, as ccxt returns them
NUMBER = re.compile(rb"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,4})?")
WHOLE = re.compile(rb"[+-]?\d{1,20}")
MOST_DIGITS = 1000
MOST_TRADES = 2**31 - 1
NAMES = ("open_time", "open", "high", "low", "close", "volume", "close_time", "quote_volume", "count")
NAMES_OFFICIAL = (*NAMES, "taker_buy_volume", "taker_buy_quote_volume", "ignore")


class Candle(NamedTuple):
    """A row that can be stored: its number on the grid, when it opens (ms), and its fields in the table's order."""

    number: int
    moment: int
    fields: list[bytes]
    volume: Decimal
    close_time_agrees: bool


def shown(field: bytes) -> str:
    """Quote a field in a reason, shortened."""
    text = field[:40].decode("utf-8", "backslashreplace")
    return repr(text + "..." if len(field) > len(text) else text)


def candle_of(fields: list[bytes], width: int, grid: Grid, now: int) -> Candle:
    """Check one row of the file.

    Raises:
        BadRowError: it is no candle of this interval, or one that is still running.

    """
    if len(fields) != width:
        raise BadRowError("wrong number of columns", f"has {len(fields)} columns instead of {width}")
    written = whole(fields, 0)
    scale = scale_of(written)
    if scale is None:
        reason = f"open_time {written} is no moment between 2000 and 2200 in milliseconds or microseconds"
        raise BadRowError("open_time is no moment", reason)
    moment, rest = divmod(written, scale)
    number = None if rest else grid.number(moment)
    if number is None:
        raise BadRowError("open_time off the grid", f"open_time {written} is not where a candle of this interval opens")
    end = grid.moment(number + 1)
    if end > now:
        raise BadRowError("not closed yet", f"open_time {written} begins a candle that is not closed yet")
    prices = [number_of(fields, place) for place in range(1, 5)]
    check_prices(prices, fields)
    volume = check_volume(fields, 5)
    stored = fields[1:6]
    if width == OFFICIAL:
        check_volume(fields, 7)
        check_trades(fields)
        check_volume(fields, 9)
        check_volume(fields, 10)
        stored += fields[7:11]
    agrees = width != OFFICIAL or fields[6] == b"%d" % (end * scale - 1)
    return Candle(number, moment, stored, volume, agrees)


def whole(fields: list[bytes], place: int) -> int:
    """Read a field as a whole number."""
    if not WHOLE.fullmatch(fields[place]):
        raise BadRowError("not a number", f"{NAMES[place]} {shown(fields[place])} is not a whole number")
    return int(fields[place])


def number_of(fields: list[bytes], place: int) -> Decimal:
    """Read a field as an exact number."""
    name, field = NAMES_OFFICIAL[place], fields[place]
    if len(field) > MOST_DIGITS or not NUMBER.fullmatch(field):
        kind = "not finite" if field.lstrip(b"+-").lower() in (b"nan", b"inf", b"infinity") else "not a number"
        raise BadRowError(kind, f"{name} {shown(field)} is {'not finite' if kind == 'not finite' else 'not a number'}")
    number = Decimal(field.decode())
    if number and abs(number.adjusted()) > MOST_DIGITS:
        raise BadRowError("not a number", f"{name} {shown(field)} is beyond what PostgreSQL holds")
    return number


def check_prices(prices: list[Decimal], fields: list[bytes]) -> None:
    """Check that four prices can be those of one candle."""
    opened, high, low, closed = prices
    for place, price in enumerate(prices, 1):
        if price <= 0:
            raise BadRowError("price not positive", f"{NAMES[place]} {shown(fields[place])} is not above zero")
    if high < low:
        raise BadRowError("high below low", f"high {shown(fields[2])} is below low {shown(fields[3])}")
    if high < max(opened, closed):
        raise BadRowError("high not highest", f"high {shown(fields[2])} is below open or close")
    if low > min(opened, closed):
        raise BadRowError("low not lowest", f"low {shown(fields[3])} is above open or close")


def check_volume(fields: list[bytes], place: int) -> Decimal:
    """Check that a volume is a number from zero up."""
    number = number_of(fields, place)
    if number < 0:
        raise BadRowError("negative volume", f"{NAMES_OFFICIAL[place]} {shown(fields[place])} is below zero")
    return number


def check_trades(fields: list[bytes]) -> None:
    """Check that the number of trades is one that the column holds."""
    trades = whole(fields, 8)
    if not 0 <= trades <= MOST_TRADES:
        raise BadRowError("impossible count", f"count {shown(fields[8])} is not between 0 and {MOST_TRADES}")
