"""What the texts of the mirrors mean: prices, candles, orders, positions, as the tables' own columns."""

import json
import uuid
from collections import namedtuple
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

from sqlalchemy import Column

from helios.models import Instrument, Order, Position
from helios.models.base import Choice
from helios.queries.frames import python_type
from helios.queries.prices import Price, worth
from helios.queries.query import table_of

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
INSTRUMENTS, ORDERS, POSITIONS = map(table_of, (Instrument, Order, Position))
NAMED = (INSTRUMENTS.c.market, INSTRUMENTS.c.symbol)


class Candle(NamedTuple):
    """A closed candle."""

    open_time: datetime
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    volume: Decimal
    quote_volume: Decimal | None
    trades: int | None
    taker_buy_volume: Decimal | None
    taker_buy_quote_volume: Decimal | None


@dataclass(frozen=True)
class Found:
    """What a mirror holds, the moment of PostgreSQL's clock that it stands for at least, and that clock's time now."""

    content: Any
    as_of: datetime
    now: datetime


class Form:
    """Rows of some columns, by name: made of what a mirror holds, the same as the statement's own."""

    def __init__(self, name: str, *columns: Column[Any]) -> None:
        self.columns = columns
        self.row: Any = namedtuple(name, [column.name for column in columns])  # type: ignore[misc]  # noqa: PYI024 - the columns name its fields
        self.readers = {column.name: reader_of(column) for column in columns}

    def read(self, values: Mapping[str, Any]) -> Any:  # noqa: ANN401 - a row
        """Make a row of the values of JSON."""
        return self.row(*(None if values[name] is None else read(values[name]) for name, read in self.readers.items()))


def reader_of(column: Column[Any]) -> Callable[[Any], Any]:
    """Tell how a value of JSON becomes one of a column."""
    if isinstance(column.type, Choice):
        return column.type.choices
    kind = python_type(column.type)
    read: dict[type, Callable[[Any], Any]] = {Decimal: Decimal, datetime: moment, uuid.UUID: uuid.UUID}
    return read.get(kind, lambda value: value)


def moment(text: str) -> datetime:
    """Read a moment that is told in UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


ORDER = Form("OpenOrder", *ORDERS.c, *NAMED)
POSITION = Form("HeldPosition", *(column for column in POSITIONS.c if column.name != "account_id"), *NAMED)


def price_of(found: Found) -> Price | None:
    """Make the price of a ticker's mirror; None where it tells none."""
    told = json.loads(found.content)
    last, bid, ask = (
        None if told[name] is None else Decimal(told[name]) for name in ("last_price", "bid_price", "ask_price")
    )
    value = worth(last, bid, ask)
    if value is None:
        return None
    as_of = min(moment(told["event_at"]), moment(told["recorded_at"]))
    number, age = told["instrument_id"], found.now - as_of
    return Price(instrument_id=number, value=value, bid=bid, ask=ask, as_of=as_of, age=age, mirrored=True)


def candle_of(line: bytes) -> Candle:
    """Read a line of a series."""
    open_time, *figures = line.decode().split(",")
    told: list[Any] = [Decimal(each) if each else None for each in figures]
    told[6] = int(figures[6]) if figures[6] else None  # trades
    return Candle(EPOCH + timedelta(milliseconds=int(open_time)), *told)
