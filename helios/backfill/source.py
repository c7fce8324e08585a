"""What a file of klines is, told from its name and the folders it lies in; what the caller says wins."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from helios.errors import InputError
from helios.models import Interval, Market

# BTCUSDT-1m-2024-12.csv and BTCUSDT-1m-2024-12-31.zip of the official archive; BTC_USDT-1h.json as ccxt users store it
NAME = re.compile(
    r"(?P<symbol>\w+)-(?P<interval>\d+(?:mo|[smhdwM]))(?:-(?P<year>\d{4})-(?P<month>\d\d)(?:-(?P<day>\d\d))?)?"
    r"(?:-(?P<kind>[a-z_]+))?"
)
ENDINGS = (".csv", ".zip", ".json", ".parquet")
MONTH_OF_CCXT = "1M"
OTHER_CANDLES = ("markpriceklines", "indexpriceklines", "premiumindexklines")
FUTURES = "futures"
LONGEST = 64  # characters of a symbol or an exchange
SHOWN = 40  # characters of what is refused


@dataclass(frozen=True, kw_only=True)
class Source:
    """One file of one series; `period` is what its name says it covers, and `assumed` that nothing told the market."""

    path: Path
    exchange: str
    market: Market
    symbol: str
    interval: Interval
    period: tuple[datetime, datetime] | None = None
    assumed: bool = False

    @property
    def name(self) -> str:
        """The file's name without folders, by which it is remembered."""
        return self.path.name

    @property
    def series(self) -> str:
        """The series, for people."""
        return f"{self.exchange} {self.market} {self.symbol} {self.interval}"


def recognise(
    path: str | Path,
    *,
    symbol: str | None = None,
    interval: str | None = None,
    market: str | None = None,
    exchange: str = "binance",
) -> Source:
    """Tell which series a file belongs to.

    Archive names carry symbol, interval and period. Names as freqtrade and ccxt users choose them (`BTC_USDT-1h.json`,
    `BTC_USDT_USDT-1h-futures.json`) give the symbol without its separators, as Binance writes it: BTCUSDT. The market
    comes from the folders (`spot`, `um`, `cm`, or names holding them, such as `binance_um_1m`), then from what only
    one market has (BTCUSD_PERP); where neither tells, it is spot, and `assumed` says so.

    Raises:
        InputError: there is no such file, or it cannot be looked at, or neither its name nor an option tells symbol
            or interval, or what they tell cannot be one.

    """
    path = Path(path)
    try:
        there = path.is_file()
    except OSError as error:
        raise InputError(f"{path} cannot be looked at: {error.strerror}") from error
    if not there:
        raise InputError(f"{path} is not there, or not a file: name files of klines (CSV, ZIP, JSON or Parquet)")
    words = folder_words(path)
    if other := next((word for word in words if word in OTHER_CANDLES), None):
        raise InputError(f"{path} lies in a folder {other}: those candles are no trades, and are not loaded")
    stem = path.name
    for ending in ENDINGS:
        stem = stem[: -len(ending)] if stem.lower().endswith(ending) else stem
    named = NAME.fullmatch(stem)
    kind = named["kind"] if named else None
    if kind not in (None, "futures", "spot"):
        raise InputError(f"{path} holds {kind} by its name, not klines: leave it out")
    told = symbol or (symbol_of(named["symbol"], archived=bool(named["year"])) if named else None)
    if not told:
        raise InputError(f"{path} does not tell its symbol by its name: say --symbol, such as --symbol BTCUSDT")
    chosen_market, assumed = market_of(path, market, words, told, kind)
    return Source(
        path=path,
        exchange=checked_exchange(exchange),
        market=chosen_market,
        symbol=checked_symbol(told),
        interval=interval_of(path, interval or (named["interval"] if named else None)),
        period=period_of(named) if named else None,
        assumed=assumed,
    )


def checked_exchange(name: str) -> str:
    """Read the name of an exchange, in lower case.

    Raises:
        InputError: it holds something else than letters, digits, - and _, or more than 64 of them.

    """
    if not re.fullmatch(rf"[a-z0-9_-]{{1,{LONGEST}}}", name.lower()):
        raise InputError(
            f"{shown(name)} is not an exchange: name it in at most {LONGEST} letters a-z, digits, - and _, such as "
            "--exchange binance"
        )
    return name.lower()


def checked_symbol(symbol: str) -> str:
    """Read a symbol, which is whatever the exchange calls it.

    Raises:
        InputError: it is empty, holds white space or control characters, or is longer than 64 characters.

    """
    if not symbol or len(symbol) > LONGEST or " " in symbol or not symbol.isprintable():
        raise InputError(
            f"{shown(symbol)} is not a symbol: write it as the exchange does, in at most {LONGEST} characters without "
            "white space, such as --symbol BTCUSDT"
        )
    return symbol


def shown(told: str) -> str:
    """Quote what was told, shortened."""
    return repr(told if len(told) <= SHOWN else told[:SHOWN] + "...")


def folder_words(path: Path) -> list[str]:
    """List the words of the folders above a file, nearest folder first."""
    words: list[str] = []
    for folder in path.absolute().parents:
        words += [word for word in re.split(r"[^a-z0-9]+", folder.name.lower()) if word]
    return words


def symbol_of(written: str, *, archived: bool) -> str:
    """Read a symbol as Binance writes it; its own names may hold an underscore (BTCUSD_PERP, BTCUSDT_240329)."""
    parts = written.split("_")
    if archived or len(parts) == 1:
        return written.upper()
    if len(parts) == 3 and parts[2] in parts[:2]:  # noqa: PLR2004 - base, quote and settlement, as ccxt names a perpetual
        parts = parts[:2]
    return "".join(parts).upper()


def market_of(path: Path, option: str | None, words: list[str], symbol: str, kind: str | None) -> tuple[Market, bool]:
    """Tell the market, and whether that is only an assumption."""
    if option is not None:
        try:
            return Market(option.lower()), False
        except ValueError:
            raise InputError(f"{path}: {option!r} is not a market: choose --market from {', '.join(Market)}") from None
    for word in words:
        if word in tuple(Market):
            return Market(word), False
    if re.fullmatch(r"[A-Z0-9]+USD_(PERP|\d{6})", symbol):
        return Market.CM, False
    if re.fullmatch(r"[A-Z0-9]+_\d{6}", symbol) or kind == FUTURES:
        return Market.UM, False
    return Market.SPOT, kind != "spot"


def interval_of(path: Path, written: str | None) -> Interval:
    """Read an interval; ccxt writes the month as 1M."""
    if written is None:
        raise InputError(f"{path} does not tell its interval by its name: say --interval, such as --interval 1m")
    try:
        return Interval.MO1 if written == MONTH_OF_CCXT else Interval(written)
    except ValueError:
        known = ", ".join(Interval)
        raise InputError(f"{path}: {written!r} is not an interval: choose --interval from {known}") from None


def period_of(named: re.Match[str]) -> tuple[datetime, datetime] | None:
    """Read the month or day that an archive name says; its first moment, and the first one behind it."""
    if not named["year"]:
        return None
    try:
        start = datetime(int(named["year"]), int(named["month"]), int(named["day"] or 1), tzinfo=UTC)
        end = start + timedelta(days=1) if named["day"] else (start + timedelta(days=31)).replace(day=1)
    except (ValueError, OverflowError):
        return None
    return start, end
