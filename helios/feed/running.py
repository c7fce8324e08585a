"""Candles that still run, told to Redis beside what is recorded: for readers that cannot wait for their close."""

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, cast

from helios.feed.reports import Ignored, KlineReport, Report
from helios.feed.statements import Writer
from helios.mirrors import Mirror, publish_candles
from helios.mirrors.candles import EXPIRES
from helios.mirrors.nodes import UNREACHED
from helios.mirrors.patience import ASIDE, PATIENCE, impatient
from helios.models import Interval

if TYPE_CHECKING:
    from redis import Redis

    from helios.mirrors.patience import Client

log = logging.getLogger("helios.feed")
KNOWN = 600.0  # seconds after which PostgreSQL is asked anew who it is
CLOSED = Decimal("Infinity")  # the volume of a candle to which nothing is added any more
Series = tuple[str, str, str, str]


class RunningCandles:
    """Tells candles that still run, the newest of each series; a Redis that fails costs a moment and no message.

    Args:
        client: of the Redis that holds the mirrors, whose address and login are used.

    """

    def __init__(self, client: "Client") -> None:
        self.client = impatient(client, PATIENCE.total_seconds())
        self.mirror: Mirror | None = None
        self.asked_at = 0.0
        self.failed_at = -ASIDE
        self.failing = False
        self.newest: dict[Series, tuple[datetime, Decimal]] = {}

    @property
    def stranger(self) -> bool:
        """Tell whether PostgreSQL has to be asked who it is."""
        return self.mirror is None or time.monotonic() - self.asked_at > KNOWN

    def meet(self, writer: Writer) -> None:
        """Ask PostgreSQL who it is."""
        self.mirror, self.asked_at = Mirror.of(writer, cast("Redis", self.client)), time.monotonic()

    def tell(self, exchange: str, market: str, reports: Iterable[Report]) -> int:
        """Tell what runs of the candles among reports; how many series that were. Late messages take nothing back."""
        told: dict[Series, dict[str, Any]] = {}
        for each in reports:
            if isinstance(each, KlineReport):
                series = (exchange, str(market), each.symbol, str(each.interval))
                stands = (each.open_time, CLOSED if each.closed else each.volume)
                if stands >= self.newest.get(series, stands):
                    self.newest[series] = stands
                    told.pop(series, None)
                    if not each.closed and not is_over(each):
                        told[series] = asdict(each)
        return len(told) if told and self.published(told) else 0

    def published(self, told: Mapping[Series, Mapping[str, Any]]) -> bool:
        """Publish candles, where Redis answers; one that failed is left alone for a moment."""
        if self.mirror is None or time.monotonic() - self.failed_at < ASIDE:
            return False
        try:
            publish_candles(self.mirror, told)
        except UNREACHED as error:
            self.failed_at = time.monotonic()
            if not self.failing:
                log.warning("running candles are not told, for Redis fails: %s", type(error).__name__)
            self.failing = True
            return False
        self.failing = False
        return True


def is_over(report: KlineReport) -> bool:
    """Tell whether a candle that ran when the message came must have closed since, as in one of yesterday."""
    length = Interval(report.interval).length
    return length is not None and report.open_time + length + EXPIRES < datetime.now(UTC)


def told_of_candles(reports: Iterable[Report]) -> bool:
    """Tell whether there are candles among reports."""
    return any(isinstance(each, KlineReport) for each in reports)


def kept(reports: Iterable[Report]) -> bool:
    """Tell whether anything among reports goes into a table."""
    return any(not isinstance(each, Ignored) and getattr(each, "closed", True) for each in reports)


def ignored(reports: Iterable[Report], *, running: bool) -> tuple[Ignored, ...]:
    """Say what of reports is not kept; candles that still run are, where they are told to Redis."""
    found = [each for each in reports if isinstance(each, Ignored)]
    if not running:
        found += [
            Ignored(kind="kline", reason="the candle is not closed yet")
            for each in reports
            if isinstance(each, KlineReport) and not each.closed
        ]
    return tuple(found)
