"""What can be measured of klines, a ticker and orders, before anybody judges it."""

from dataclasses import dataclass
from decimal import Decimal


@dataclass(frozen=True, kw_only=True)
class KlineFacts:
    """Counts of candles in a window or a file; `age_seconds` is how long ago the newest candle closed.

    What a source cannot tell keeps its default, and is not judged: a table holds no rejected rows, an archive's file
    is not to be fresh.
    """

    expected: int  # candles that the interval's grid has
    found: int  # distinct candles that are there
    missing: int = 0  # candles lacking between the first and the last
    gaps: int = 0  # stretches that they lack in
    longest_gap: int = 0
    rejected: int = 0  # rows that could not be used
    duplicates: int = 0  # rows that say once more what an earlier one said
    implausible: int = 0  # candles whose figures contradict each other
    odd: int = 0  # other things to wonder about: a wrong closing time, rows out of order
    quiet: int = 0  # candles without a trade
    longest_quiet: int = 0  # candles of the longest run without a trade
    jumps: int = 0  # candles whose price moves far more than the others do
    age_seconds: float | None = None  # None where freshness does not matter
    interval_seconds: float = 0.0

    @property
    def lacking(self) -> int:
        """Candles that are not there, between the others or at the ends."""
        return max(self.expected - self.found, self.missing, 0)

    @property
    def completeness(self) -> float:
        """Share of the expected candles that are there, 0 to 1."""
        return share(self.lacking, self.found + self.lacking)


@dataclass(frozen=True, kw_only=True)
class TickerFacts:
    """Prices of one ticker in the quote asset, None where untold; `age_seconds`: how long ago the exchange said so."""

    age_seconds: float
    last_price: Decimal | None = None
    bid_price: Decimal | None = None
    ask_price: Decimal | None = None
    low_price_24h: Decimal | None = None
    high_price_24h: Decimal | None = None
    trades: bool = True  # whether the instrument trades now: else its silence is right

    @property
    def spread(self) -> Decimal | None:
        """Ask less bid, as a share of the middle; None where a side is absent or zero."""
        if not self.bid_price or not self.ask_price:
            return None
        return (self.ask_price - self.bid_price) * 2 / (self.ask_price + self.bid_price)


@dataclass(frozen=True, kw_only=True)
class OrderFacts:
    """Counts of orders in a window."""

    orders: int  # orders submitted in the window
    irregular: int = 0  # changes that an order's life cycle does not know
    unresolved: int = 0  # orders that wait too long for the exchange's answer


def share(part: float, whole: float) -> float:
    """Say what is left of the whole without the part, 0 to 1; all of it where there is nothing."""
    if whole <= 0 or part <= 0:
        return 1.0
    return max(0.0, (whole - part) / whole)
