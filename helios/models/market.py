"""What the market says: instruments, klines, tickers, the files that were loaded, and how well we heard it."""

from datetime import timedelta
from decimal import Decimal
from enum import StrEnum

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Identity, Index, PrimaryKeyConstraint, UniqueConstraint
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column, relationship

from helios.models.base import (
    Base,
    Choice,
    Exact,
    Moment,
    Money,
    NumberedId,
    Price,
    Quantity,
    Ratio,
    Recorded,
    Refreshed,
    finite,
    not_blank,
    not_negative,
    positive,
    share,
)


class Market(StrEnum):
    """The markets of an exchange: spot, USD-margined and coin-margined futures."""

    SPOT = "spot"
    UM = "um"
    CM = "cm"


class InstrumentStatus(StrEnum):
    """Whether an instrument trades now."""

    UNKNOWN = "UNKNOWN"
    PRE_TRADING = "PRE_TRADING"
    TRADING = "TRADING"
    HALT = "HALT"
    CLOSED = "CLOSED"


class Interval(StrEnum):
    """How long a candle lasts, in the words of the official archive."""

    S1 = "1s"
    M1 = "1m"
    M3 = "3m"
    M5 = "5m"
    M15 = "15m"
    M30 = "30m"
    H1 = "1h"
    H2 = "2h"
    H4 = "4h"
    H6 = "6h"
    H8 = "8h"
    H12 = "12h"
    D1 = "1d"
    D3 = "3d"
    W1 = "1w"
    MO1 = "1mo"

    @property
    def length(self) -> timedelta | None:
        """How long each candle lasts; None for the month, whose lengths differ."""
        if self is Interval.MO1:
            return None
        unit = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}[self.value[-1]]
        return timedelta(**{unit: int(self.value[:-1])})


class QualitySubject(StrEnum):
    """What a measurement of quality looked at."""

    KLINES = "klines"
    TICKER = "ticker"
    ORDERS = "orders"
    POSITIONS = "positions"


class AlertLevel(StrEnum):
    """How much attention a measurement asks for."""

    OK = "ok"
    WARNING = "warning"
    CRITICAL = "critical"


class Instrument(Base):
    """Something that trades: a symbol in a market of an exchange."""

    __tablename__ = "instruments"
    __table_args__ = (
        UniqueConstraint("exchange", "market", "symbol"),
        CheckConstraint(not_blank("exchange", "symbol"), name="names_are_not_blank"),
        CheckConstraint(positive("tick_size", "step_size"), name="sizes_are_positive"),
        CheckConstraint(not_negative("min_notional"), name="min_notional_is_not_negative"),
        {"comment": "What trades where: one row for each symbol in a market of an exchange"},
    )

    id: Mapped[NumberedId] = mapped_column(comment="Number given by the database")
    exchange: Mapped[str] = mapped_column(comment="Exchange in lower case, such as binance")
    market: Mapped[Market] = mapped_column(
        Choice(Market), comment="spot, um (USD-margined) or cm (coin-margined futures)"
    )
    symbol: Mapped[str] = mapped_column(comment="Symbol as the exchange writes it, such as BTCUSDT")
    base_asset: Mapped[str | None] = mapped_column(comment="What is traded; NULL until the exchange told")
    quote_asset: Mapped[str | None] = mapped_column(comment="What it is paid in; NULL until the exchange told")
    tick_size: Mapped[Price | None] = mapped_column(comment="Step of prices; NULL where unknown or free")
    step_size: Mapped[Quantity | None] = mapped_column(comment="Step of quantities; NULL where unknown or free")
    min_notional: Mapped[Money | None] = mapped_column(comment="Least value of an order; NULL where unknown or free")
    status: Mapped[InstrumentStatus] = mapped_column(
        Choice(InstrumentStatus), server_default=InstrumentStatus.UNKNOWN, comment="Whether it trades now"
    )
    recorded_at: Mapped[Recorded]
    updated_at: Mapped[Refreshed]

    ticker: Mapped["Ticker | None"] = relationship(back_populates="instrument", passive_deletes="all")
    kline_files: Mapped[list["KlineFile"]] = relationship(
        back_populates="instrument", passive_deletes="all", order_by="KlineFile.interval, KlineFile.name"
    )


class Kline(Base):
    """A closed candle of an instrument.

    The columns stand in the order that wastes no byte on alignment. There is no foreign key, which would halve the
    speed of a load: who writes klines holds the instrument.
    """

    __tablename__ = "klines"
    __table_args__ = (
        PrimaryKeyConstraint("instrument_id", "interval", "open_time"),
        CheckConstraint("high >= open AND high >= close AND high >= low", name="high_is_highest"),
        CheckConstraint("low <= open AND low <= close", name="low_is_lowest"),
        # Together with the two above, this bounds all four prices; each comparison less speeds up a load.
        CheckConstraint("low > 0 AND high < 'Infinity'", name="prices_are_positive"),
        CheckConstraint(
            f"{not_negative('volume', 'quote_volume', 'taker_buy_volume', 'taker_buy_quote_volume')} AND trades >= 0",
            name="volumes_are_not_negative",
        ),
        {
            "comment": "Closed candles; partitioned by interval, then by UTC year of open_time",
            "postgresql_partition_by": "LIST (interval)",
        },
    )

    instrument_id: Mapped[int] = mapped_column(autoincrement=False, comment="Instrument; the writer holds it, no key")
    trades: Mapped[int | None] = mapped_column(comment="Number of trades; NULL where the source does not tell")
    open_time: Mapped[Moment] = mapped_column(comment="First moment of the candle")
    open: Mapped[Price] = mapped_column(comment="First price")
    high: Mapped[Price] = mapped_column(comment="Highest price")
    low: Mapped[Price] = mapped_column(comment="Lowest price")
    close: Mapped[Price] = mapped_column(comment="Last price")
    volume: Mapped[Quantity] = mapped_column(comment="Quantity traded, in the base asset")
    quote_volume: Mapped[Money | None] = mapped_column(comment="Value traded, in the quote asset; NULL where untold")
    taker_buy_volume: Mapped[Quantity | None] = mapped_column(comment="Part of volume where the buyer was the taker")
    taker_buy_quote_volume: Mapped[Money | None] = mapped_column(
        comment="Part of quote_volume where the buyer was the taker"
    )
    interval: Mapped[Interval] = mapped_column(
        Choice(Interval), comment="Length of each candle, 1m a minute, 1mo a month"
    )

    instrument: Mapped["Instrument | None"] = relationship(
        primaryjoin="foreign(Kline.instrument_id) == Instrument.id", viewonly=True
    )


TICKER_PRICES = ("last_price", "bid_price", "ask_price", "open_price_24h", "high_price_24h", "low_price_24h")
TICKER_QUANTITIES = ("bid_quantity", "ask_quantity", "volume_24h", "quote_volume_24h")


class Ticker(Base):
    """The newest price of an instrument, and its last 24 hours."""

    __tablename__ = "tickers"
    __table_args__ = (
        CheckConstraint("num_nonnulls(last_price, bid_price, ask_price) > 0", name="some_price_is_there"),
        # Not `positive`: for a symbol that does not trade, exchanges report zeros.
        CheckConstraint(not_negative(*TICKER_PRICES), name="prices_are_not_negative"),
        CheckConstraint(f"{not_negative(*TICKER_QUANTITIES)} AND trades_24h >= 0", name="quantities_are_not_negative"),
        CheckConstraint(finite("price_change_24h", "price_change_percent_24h"), name="price_changes_are_finite"),
        {
            "comment": "Newest price of each instrument and its last 24 hours",
            # Half of each page stays free, so that the many updates of a row find room beside it and touch no index.
            "postgresql_with": {"fillfactor": 50},
        },
    )

    instrument_id: Mapped[int] = mapped_column(ForeignKey(Instrument.id), primary_key=True, comment="Instrument")
    last_price: Mapped[Price | None] = mapped_column(comment="Price of the last trade; NULL where only quotes are told")
    bid_price: Mapped[Price | None] = mapped_column(comment="Best price that a buyer offers")
    bid_quantity: Mapped[Quantity | None] = mapped_column(comment="Quantity at the best bid")
    ask_price: Mapped[Price | None] = mapped_column(comment="Best price that a seller asks")
    ask_quantity: Mapped[Quantity | None] = mapped_column(comment="Quantity at the best ask")
    open_price_24h: Mapped[Price | None] = mapped_column(comment="Price 24 hours before")
    high_price_24h: Mapped[Price | None] = mapped_column(comment="Highest price of the last 24 hours")
    low_price_24h: Mapped[Price | None] = mapped_column(comment="Lowest price of the last 24 hours")
    price_change_24h: Mapped[Price | None] = mapped_column(comment="Change of the price in the last 24 hours")
    price_change_percent_24h: Mapped[Ratio | None] = mapped_column(comment="The same in percent")
    volume_24h: Mapped[Quantity | None] = mapped_column(comment="Quantity traded in the last 24 hours, base asset")
    quote_volume_24h: Mapped[Money | None] = mapped_column(comment="Value traded in the last 24 hours, quote asset")
    trades_24h: Mapped[int | None] = mapped_column(BigInteger, comment="Number of trades in the last 24 hours")
    event_at: Mapped[Moment] = mapped_column(comment="When the exchange said so")
    # Quotes and trades come in messages of their own, and spot quotes without a time of the exchange's: one moment
    # for both would let the one outdate the other.
    priced_at: Mapped[Moment | None] = mapped_column(comment="When it said so of last price and 24 hours")
    quoted_at: Mapped[Moment | None] = mapped_column(comment="When it said so of bid and ask")
    recorded_at: Mapped[Refreshed]

    instrument: Mapped[Instrument] = relationship(back_populates="ticker")


class DataQualityMetric(Base):
    """One measurement of how complete, fresh and plausible some data was."""

    __tablename__ = "data_quality_metrics"
    __table_args__ = (
        CheckConstraint(share("completeness"), name="completeness_is_a_share"),
        CheckConstraint(share("score"), name="score_is_a_share"),
        CheckConstraint("rows_expected >= 0 AND rows_found >= 0 AND rows_rejected >= 0", name="rows_are_not_negative"),
        # Both may be below zero: a clock that runs ahead, a crossed book.
        CheckConstraint(finite("freshness_seconds", "spread"), name="measures_are_finite"),
        CheckConstraint("window_start <= window_end", name="window_is_in_order"),
        CheckConstraint("jsonb_typeof(reasons) = 'array'", name="reasons_are_a_list"),
        {"comment": "Measurements of data quality, and the alerts they raised"},
    )

    id: Mapped[int] = mapped_column(
        BigInteger, Identity(always=True), primary_key=True, comment="Number given by the database"
    )
    instrument_id: Mapped[int | None] = mapped_column(ForeignKey(Instrument.id), comment="Instrument; NULL for all")
    subject: Mapped[QualitySubject] = mapped_column(Choice(QualitySubject), comment="What was looked at")
    interval: Mapped[Interval | None] = mapped_column(Choice(Interval), comment="Interval of the klines looked at")
    source: Mapped[str] = mapped_column(comment="Who measured: a file's name, feed, trigger ...")
    measured_at: Mapped[Recorded] = mapped_column(comment="When it was measured")
    window_start: Mapped[Moment | None] = mapped_column(comment="First moment looked at")
    window_end: Mapped[Moment | None] = mapped_column(comment="Moment up to which it was looked at")
    rows_expected: Mapped[int | None] = mapped_column(BigInteger, comment="Rows that should be there")
    rows_found: Mapped[int | None] = mapped_column(BigInteger, comment="Rows that are there")
    rows_rejected: Mapped[int | None] = mapped_column(BigInteger, comment="Rows that could not be used")
    completeness: Mapped[Ratio | None] = mapped_column(comment="Share of the expected rows that are there, 0 to 1")
    freshness_seconds: Mapped[Decimal | None] = mapped_column(Exact, comment="Age of the newest data, in seconds")
    spread: Mapped[Ratio | None] = mapped_column(comment="Ask less bid, as a share of the middle")
    score: Mapped[Ratio | None] = mapped_column(comment="All in all: 0 is useless, 1 is flawless")
    alert_level: Mapped[AlertLevel] = mapped_column(
        Choice(AlertLevel), server_default=AlertLevel.OK, comment="How much attention it asks for"
    )
    reasons: Mapped[list[str]] = mapped_column(JSONB, default=list, server_default="[]", comment="Sentences saying why")

    instrument: Mapped[Instrument | None] = relationship()


Index(None, DataQualityMetric.instrument_id, DataQualityMetric.subject, DataQualityMetric.measured_at)


class KlineFile(Base):
    """A file of klines that was loaded: an unchanged one costs its checksum when it comes again, or less."""

    __tablename__ = "kline_files"
    __table_args__ = (
        # The newest content of each named file of a series: a file that was replaced updates its row.
        PrimaryKeyConstraint("instrument_id", "interval", "name"),
        CheckConstraint(not_blank("name"), name="name_is_not_blank"),
        CheckConstraint("sha256 ~ '^[0-9a-f]{64}$'", name="sha256_is_a_checksum"),
        CheckConstraint("rows >= 0 AND rejected >= 0", name="rows_are_not_negative"),
        CheckConstraint(
            "(first_open_time IS NULL) = (last_open_time IS NULL) AND first_open_time <= last_open_time",
            name="open_times_are_in_order",
        ),
        {"comment": "Files of klines that were loaded, with their newest content"},
    )

    instrument_id: Mapped[int] = mapped_column(ForeignKey(Instrument.id), comment="Instrument of the series")
    interval: Mapped[Interval] = mapped_column(Choice(Interval), comment="Interval of the series")
    name: Mapped[str] = mapped_column(comment="Name of the file, without folders")
    sha256: Mapped[str] = mapped_column(comment="Checksum of its content, 64 hexadecimal digits in lower case")
    rows: Mapped[int] = mapped_column(BigInteger, comment="Good rows, each open time once")
    rejected: Mapped[int] = mapped_column(BigInteger, server_default="0", comment="Rows that could not be used")
    first_open_time: Mapped[Moment | None] = mapped_column(comment="Open time of its first candle; NULL without rows")
    last_open_time: Mapped[Moment | None] = mapped_column(comment="Open time of its last candle; NULL without rows")
    loaded_at: Mapped[Refreshed] = mapped_column(comment="When this content was loaded")
    stamp: Mapped[str | None] = mapped_column(
        comment="Device, inode, size and times of the file that held it last; NULL where too fresh to tell"
    )

    instrument: Mapped[Instrument] = relationship(back_populates="kline_files")
