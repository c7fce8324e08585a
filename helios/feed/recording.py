"""One account of one exchange: its messages read, and what they say written in a transaction of the caller's."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from helios.errors import InputError
from helios.feed import accounts, market, orders, positions
from helios.feed.parsing import Sender, parse
from helios.feed.reports import (
    BalanceReport,
    Ignored,
    InstrumentReport,
    KlineReport,
    OrderReport,
    Report,
    TickerReport,
)
from helios.feed.statements import Writer
from helios.models import Interval, Market


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What came of messages: rows that are new or changed, and what was knowingly ignored."""

    instruments: int = 0
    tickers: int = 0
    klines: int = 0
    balances: int = 0
    orders: int = 0
    fills: int = 0
    positions: int = 0
    running: int = 0  # series whose running candle was told to Redis
    ignored: tuple[Ignored, ...] = ()


@dataclass
class Known:
    """Numbers of rows that were found once and are asked for with every message."""

    account: int | None = None
    instruments: dict[str, int] = field(default_factory=dict)
    partitions: set[tuple[Interval, int]] = field(default_factory=set)

    def copy(self) -> "Known":
        """Give a copy to be filled in by a transaction that may fail."""
        return Known(self.account, dict(self.instruments), set(self.partitions))


@dataclass(kw_only=True)
class Sorted:
    """Reports by what they are about."""

    instruments: list[InstrumentReport] = field(default_factory=list)
    tickers: list[TickerReport] = field(default_factory=list)
    klines: list[KlineReport] = field(default_factory=list)
    orders: list[OrderReport] = field(default_factory=list)
    balances: list[BalanceReport] = field(default_factory=list)

    @classmethod
    def of(cls, reports: Iterable[Report]) -> "Sorted":
        """Sort reports; within a kind they keep their order."""
        told = cls()
        for report in reports:
            match report:
                case InstrumentReport():
                    told.instruments.append(report)
                case TickerReport():
                    told.tickers.append(report)
                case KlineReport():
                    if report.closed:  # others are in no table
                        told.klines.append(report)
                case OrderReport():
                    told.orders.append(report)
                case BalanceReport():
                    told.balances.append(report)
        return told

    @property
    def symbols(self) -> set[str]:
        """The symbols whose instruments are needed."""
        reports: list[TickerReport | KlineReport | OrderReport] = [*self.tickers, *self.klines, *self.orders]
        return {each.symbol for each in reports}


@dataclass(frozen=True, kw_only=True)
class Recorder:
    """What `Feed` and `AsyncFeed` share: whose messages these are, how they are read, and what is written."""

    exchange: str = "binance"
    market: Market = Market.SPOT
    account: str = "main"
    symbols: Mapping[str, str] = field(default_factory=dict)

    def read(
        self,
        message: object,
        *,
        symbol: str | None = None,
        interval: str | Interval | None = None,
        received_at: datetime | None = None,
    ) -> list[Report]:
        """Read a message, whose reports `write` takes."""
        sender = Sender(
            market=self.market,
            symbol=symbol,
            interval=interval,
            received_at=received_at or datetime.now(UTC),
            symbols=self.symbols,
        )
        return parse(message, sender)

    def read_all(self, messages: Iterable[object], *, received_at: datetime | None = None) -> list[Report]:
        """Read many messages; a refusal says which."""
        reports: list[Report] = []
        for number, message in enumerate(messages, start=1):
            try:
                reports += self.read(message, received_at=received_at)
            except InputError as error:
                raise InputError(f"message {number}: {error}") from None
        return reports

    def partitions(self, reports: list[Report], known: Known) -> set[tuple[Interval, int]]:
        """Name the partitions that candles fall into and that nobody knows to be there."""
        return market.partitions_of(Sorted.of(reports).klines) - known.partitions

    def make_partitions(self, writer: Writer, missing: set[tuple[Interval, int]], known: Known) -> None:
        """Make partitions in a transaction of their own: beside the owner's work Citus lets nobody else write."""
        market.make_partitions(writer, missing)
        known.partitions |= missing

    def write(self, writer: Writer, reports: list[Report], known: Known) -> Taken:
        """Write what messages said in a transaction of the caller's, who commits it soon, or starts it again.

        Rows are locked in one order: instruments, then orders by instrument and age, positions, balances, tickers.
        """
        told = Sorted.of(reports)
        written = market.write_instruments(writer, self.exchange, self.market, told.instruments)
        missing = told.symbols - set(known.instruments)
        if missing:
            known.instruments |= market.instrument_ids(writer, self.exchange, self.market, missing)
        ids = known.instruments
        taken = Taken(instruments=written)
        if told.orders or told.balances:
            taken = self._write_account(writer, told, known, taken)
        return replace(
            taken,
            tickers=market.write_tickers(writer, market.conflated(told.tickers), ids),
            klines=market.write_klines(writer, told.klines, ids),
        )

    def _write_account(self, writer: Writer, told: "Sorted", known: Known, taken: Taken) -> Taken:
        """Write what is about the account: orders with their fills, positions, balances."""
        if known.account is None:
            known.account = accounts.account_id(writer, self.exchange, self.account, self.market)
        outcome = orders.write_orders(
            writer, known.account, ((known.instruments[each.symbol], each) for each in told.orders)
        )
        return replace(
            taken,
            orders=outcome.orders,
            fills=outcome.fills,
            positions=positions.write_positions(writer, known.account, outcome, self.market),
            balances=accounts.write_balances(writer, known.account, told.balances),
        )
