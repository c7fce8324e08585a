"""From facts to a verdict: a share left over for each kind of defect, their product the score, the worst the alert.

Nothing here reads or writes: the same facts give the same verdict everywhere. Each threshold says where it comes
from; what rests on no source is called our own judgement, and every one is an argument.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from decimal import ROUND_FLOOR, Decimal

from helios.models import AlertLevel
from helios.quality.facts import KlineFacts, OrderFacts, TickerFacts, share

LEVELS = tuple(AlertLevel)  # from the least to the worst
STEP = Decimal("0.000001")  # scores are cut here, never rounded up: what is not flawless never scores 1


@dataclass(frozen=True, kw_only=True)
class KlineThresholds:
    """When a series of candles is no longer flawless.

    `jump_deviations` and `jump_least`: a candle jumps when its true range - the reach of high, low and the close
    before (Wilder, New Concepts in Technical Trading Systems, 1978), as a logarithm - lies more than so many median
    absolute deviations above the median, and is at least that share of the price. Deviations are scaled by 1.4826 to
    equal standard deviations of normal data, as in the modified z-score of Iglewicz and Hoaglin (How to Detect and
    Handle Outliers, 1993), whose limit of 3.5 is for normal data. Barndorff-Nielsen, Hansen, Lunde and Shephard
    (Realized kernels in practice, Econometrics Journal 12, 2009, rule Q4) drop a quote beyond 10 mean absolute
    deviations. Ranges of candles have fatter tails, so the default is wider: our own judgement. Of 58,000 real
    candles of four series it marks none; 20 deviations mark one, an hour of news. That a deviation of zero needs a
    least size beside it is from Brownlees and Gallo (Financial econometric analysis at ultra-high frequency, 2006),
    whose gamma it is; its size is our own judgement.

    The others are our own judgement: exchanges send a candle within seconds of its close, and an archive's month of a
    listed pair lacks none; a quiet pair is no defect, a long silence may be an exchange that stands still.
    """

    fresh_intervals: float = 2.0  # a candle is sent when it closes, so the newest is one interval old at most
    fresh_grace_seconds: float = 60.0
    stale_is_critical: float = 10.0  # times as old as is still fresh
    critical_share: float = 0.9  # less than this left of the candles by one kind of defect
    quiet_run: int = 10  # candles in a row without a trade that are nothing to wonder about
    jump_deviations: float = 30.0
    jump_least: float = 0.02


@dataclass(frozen=True, kw_only=True)
class TickerThresholds:
    """When a ticker is no longer flawless.

    `fresh_seconds`: Binance pushes a 24hrTicker every second and a bookTicker on every change (Spot API, Web Socket
    Streams); that ten seconds of silence of an instrument that trades are too many is our own judgement.
    `wide_spread`: Barndorff-Nielsen and others (2009, rule Q3) drop a spread above 50 times the day's median; one
    ticker knows no median, so 50 times the two basis points of a liquid pair, which is our own judgement. Their rule
    Q2 drops a negative spread, which here is critical whatever its size.
    """

    fresh_seconds: float = 10.0
    stale_is_critical: float = 6.0  # times as old as is still fresh: a minute
    wide_spread: float = 0.01  # share of the middle
    wide_is_critical: float = 5.0  # times as wide


@dataclass(frozen=True, kw_only=True)
class OrderThresholds:
    """When the record of orders is no longer flawless; our own judgement.

    Binance answers an order or times out within seconds; one that is unresolved after a minute needs to be asked for.
    """

    unresolved_seconds: float = 60.0
    critical_unresolved: int = 10


@dataclass(frozen=True)
class Finding:
    """One kind of defect: what it leaves of the score, how alarming it is, and a sentence."""

    left: float
    level: AlertLevel
    reason: str


@dataclass(frozen=True)
class Verdict:
    """The score (0 useless, 1 flawless, six digits), the alert level, and why."""

    score: Decimal
    alert_level: AlertLevel
    reasons: list[str] = field(default_factory=list)


def verdict(findings: Iterable[Finding]) -> Verdict:
    """Sum up: what is left is multiplied, the worst level counts; their order does not matter."""
    found = list(findings)
    product = Decimal(1)
    for left in sorted(each.left for each in found):
        product *= Decimal(left)
    level = max((each.level for each in found), key=LEVELS.index, default=AlertLevel.OK)
    return Verdict(product.quantize(STEP, ROUND_FLOOR), level, [each.reason for each in found])


def judge_klines(facts: KlineFacts, thresholds: KlineThresholds | None = None) -> Verdict:
    """Judge a series or a file of candles; flawless ones score 1."""
    return verdict(kline_findings(facts, thresholds or KlineThresholds()))


def kline_findings(facts: KlineFacts, thresholds: KlineThresholds) -> Iterator[Finding]:
    """Find what is wrong with candles; each kind of defect once."""

    def shared(left: float, reason: str) -> Finding:
        critical = left < thresholds.critical_share
        return Finding(left, AlertLevel.CRITICAL if critical else AlertLevel.WARNING, reason)

    if facts.lacking:
        gaps = f" in {plural(facts.gaps, 'gap')}, the longest of {facts.longest_gap:,}" if facts.gaps else ""
        yield shared(facts.completeness, f"{plural(facts.lacking, 'candle')} missing{gaps}")
    if facts.rejected:
        left = share(facts.rejected, facts.rejected + facts.found)
        yield shared(left, f"{plural(facts.rejected, 'row')} rejected")
    if facts.duplicates:  # what is said twice is known all the same, but its source is careless
        left = share(facts.duplicates / 2, facts.duplicates + facts.found)
        repeated = plural(facts.duplicates, "row that repeats an earlier one", "rows that repeat an earlier one")
        yield shared(left, repeated)
    if facts.implausible:
        left = share(facts.implausible, max(facts.found, facts.implausible))
        yield shared(left, f"{plural(facts.implausible, 'candle')} whose figures contradict each other")
    if facts.odd:
        left = share(facts.odd / 2, facts.odd + facts.found)
        yield Finding(left, AlertLevel.WARNING, f"{plural(facts.odd, 'oddity', 'oddities')} in rows that are good")
    if facts.jumps:
        left = share(facts.jumps, max(facts.found, facts.jumps))
        yield shared(left, f"{plural(facts.jumps, 'candle')} whose price jumps")
    if facts.longest_quiet > thresholds.quiet_run:
        over = (facts.longest_quiet - thresholds.quiet_run) / 2
        left = share(over, max(facts.found, facts.longest_quiet))
        level = AlertLevel.WARNING if left < thresholds.critical_share else AlertLevel.OK
        yield Finding(left, level, f"no trade in {plural(facts.longest_quiet, 'candle')} in a row")
    if facts.age_seconds is not None:
        fresh = thresholds.fresh_intervals * facts.interval_seconds + thresholds.fresh_grace_seconds
        yield from aged(facts.age_seconds, fresh, thresholds.stale_is_critical, "the newest candle closed")


def judge_ticker(facts: TickerFacts, thresholds: TickerThresholds | None = None) -> Verdict:
    """Judge one ticker; what a feed calls with what the message said."""
    return verdict(ticker_findings(facts, thresholds or TickerThresholds()))


def ticker_findings(facts: TickerFacts, thresholds: TickerThresholds) -> Iterator[Finding]:
    """Find what is wrong with a ticker."""
    if facts.trades:
        yield from aged(facts.age_seconds, thresholds.fresh_seconds, thresholds.stale_is_critical, "its price was told")
        if not any((facts.last_price, facts.bid_price, facts.ask_price)):
            yield Finding(0.0, AlertLevel.CRITICAL, "no price above zero")
    spread = facts.spread
    if spread is not None and spread < 0:
        reason = f"the book is crossed: bid {facts.bid_price} above ask {facts.ask_price}"
        yield Finding(0.5, AlertLevel.CRITICAL, reason)
    elif spread is not None and spread > Decimal(str(thresholds.wide_spread)):
        times = float(spread) / thresholds.wide_spread
        level = AlertLevel.CRITICAL if times > thresholds.wide_is_critical else AlertLevel.WARNING
        yield Finding(1 / times, level, f"the spread is {spread:.2%} of the price")
    if outside_range(facts):
        reason = f"last price {facts.last_price} lies outside its 24 hours, {facts.low_price_24h} to "
        yield Finding(0.9, AlertLevel.WARNING, reason + f"{facts.high_price_24h}")


def outside_range(facts: TickerFacts) -> bool:
    """Say whether the last price contradicts the range of the last 24 hours."""
    if not (facts.last_price and facts.low_price_24h and facts.high_price_24h):
        return False
    return not facts.low_price_24h <= facts.last_price <= facts.high_price_24h


def judge_orders(facts: OrderFacts, thresholds: OrderThresholds | None = None) -> Verdict:
    """Judge what is recorded of orders: irregular changes, and orders that nobody has resolved."""
    return verdict(order_findings(facts, thresholds or OrderThresholds()))


def order_findings(facts: OrderFacts, thresholds: OrderThresholds) -> Iterator[Finding]:
    """Find what is wrong with orders."""
    if facts.irregular:
        left = share(facts.irregular, facts.irregular + max(facts.orders, 1))
        what = f"{plural(facts.irregular, 'change')} that the life cycle of an order does not know"
        yield Finding(left, AlertLevel.WARNING, what)
    if facts.unresolved:
        left = share(facts.unresolved, facts.unresolved + max(facts.orders, 1))
        critical = facts.unresolved >= thresholds.critical_unresolved
        what = f"{plural(facts.unresolved, 'order')} unresolved for more than {thresholds.unresolved_seconds:g} s"
        yield Finding(left, AlertLevel.CRITICAL if critical else AlertLevel.WARNING, what)


def aged(age: float, fresh: float, critical: float, what: str) -> Iterator[Finding]:
    """Find what is older than it should be, or ahead of the clock by as much; what is left falls as the age grows."""
    if abs(age) <= fresh:
        return
    level = AlertLevel.CRITICAL if abs(age) > critical * fresh else AlertLevel.WARNING
    when = f"{duration(age)} ago" if age > 0 else f"{duration(-age)} in the future"
    yield Finding(fresh / abs(age), level, f"{what} {when}")


def plural(count: int, thing: str, things: str | None = None) -> str:
    """Count things in words."""
    return f"{count:,} {thing if count == 1 else things or thing + 's'}"


def duration(seconds: float) -> str:
    """Write a duration for people, in its largest unit."""
    for size, unit in ((86_400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= 2 * size:
            return plural(int(seconds // size), unit)
    return plural(round(seconds), "second")
