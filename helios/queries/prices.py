"""Questions about now: which instrument a symbol means, its current price, and how old that is."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from functools import cache
from typing import Any

from sqlalchemy import Interval as Duration
from sqlalchemy import Select, bindparam, func, select, type_coerce

from helios.errors import StaleError
from helios.models import Instrument, Ticker
from helios.queries.query import Query, Reader, table_of

INSTRUMENTS = table_of(Instrument)
TICKERS = table_of(Ticker)


@dataclass(frozen=True, kw_only=True)
class Price:
    """The price of an instrument in its quote asset, and how old it is.

    `value` is the price of the last trade or, where only quotes are told, the middle of bid and ask. `as_of` is when
    the exchange said so, or when it was written here, if that was earlier: an exchange's clock that runs ahead makes
    no price younger. `age` is counted from there on the server's clock. `mirrored` tells which side answered: the
    mirror in Redis, or PostgreSQL.
    """

    instrument_id: int
    value: Decimal
    bid: Decimal | None
    ask: Decimal | None
    as_of: datetime
    age: timedelta
    mirrored: bool = False


def current_price(reader: Reader, instrument_id: int, *, max_lag: timedelta | None = None) -> Price:
    """Read the current price; with `max_lag`, one that is older is refused.

    Raises:
        StaleError: there is no price, or none as young as that.

    """
    row = reader.execute(price_statement(), {"instrument_id": instrument_id}).one_or_none()
    if row is None:
        name = named(reader, instrument_id)
        raise StaleError(f"{name} has no price here: nothing has written its ticker yet")
    value = worth(row.last_price, row.bid_price, row.ask_price)
    if value is None:
        name = named(reader, instrument_id)
        raise StaleError(f"{name} has no price: the exchange tells neither a trade nor both quotes")
    price = Price(
        instrument_id=instrument_id,
        value=value,
        bid=row.bid_price,
        ask=row.ask_price,
        as_of=row.as_of,
        age=row.age,
    )
    if max_lag is not None and price.age > max_lag:
        raise StaleError(too_old(named(reader, instrument_id), price, max_lag))
    return price


def named(reader: Reader, instrument_id: int) -> str:
    """Name an instrument for people: by exchange, market and symbol where there is one of that id."""
    found = select(INSTRUMENTS.c.exchange, INSTRUMENTS.c.market, INSTRUMENTS.c.symbol)
    row = reader.execute(found.where(INSTRUMENTS.c.id == instrument_id)).one_or_none()
    return f"{row.exchange} {row.market.value} {row.symbol}" if row else f"instrument {instrument_id}"


def too_old(name: str, price: Price, max_lag: timedelta) -> str:
    """Say that a price is older than was asked."""
    return (
        f"the price of {name} is {price.age.total_seconds():.3f} s old, and at most "
        f"{max_lag.total_seconds():g} s were asked for: check that the feed runs"
    )


def worth(last: Decimal | None, bid: Decimal | None, ask: Decimal | None) -> Decimal | None:
    """Tell the price: the last trade's, else the middle of the quotes; zeros stand for a symbol that does not trade."""
    if last:
        return last
    return (bid + ask) / 2 if bid and ask else None


@cache
def price_statement() -> Select[Any]:
    """Make the statement of `current_price`; not now(), which stands still in a transaction."""
    as_of = func.least(TICKERS.c.event_at, TICKERS.c.recorded_at)
    return select(
        TICKERS.c.last_price,
        TICKERS.c.bid_price,
        TICKERS.c.ask_price,
        type_coerce(as_of, TICKERS.c.event_at.type).label("as_of"),
        type_coerce(func.clock_timestamp() - as_of, Duration()).label("age"),
    ).where(TICKERS.c.instrument_id == bindparam("instrument_id"))


def instruments_named(symbol: str) -> Query[Instrument]:
    """Ask for the instruments of a symbol, in whichever exchange and market."""
    statement = select(*INSTRUMENTS.c).where(INSTRUMENTS.c.symbol == bindparam("symbol")).order_by(INSTRUMENTS.c.id)
    return Query(statement, {"symbol": symbol}, Instrument)
