"""What cannot wait, from the mirrors in Redis first: prices, newest candles, open orders, positions, each with its age.

PostgreSQL is asked where the mirror lacks what is wanted, is further behind than allowed, or nobody vouches for it: no
relay runs, Redis is down. Which side answered, an answer says; its form is the same.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Self, cast

from sqlalchemy import Select, Table, bindparam, func, select

from helios.errors import InputError
from helios.mirrors import Mirror, Seen, read_candle
from helios.mirrors.keys import KLINES as SERIES
from helios.mirrors.keys import ORDERS as OPEN_ORDERS
from helios.mirrors.keys import POSITIONS as HELD
from helios.mirrors.keys import TICKER
from helios.mirrors.nodes import UNREACHED
from helios.mirrors.patience import ASIDE, PATIENCE, impatient
from helios.mirrors.values import CANDLE
from helios.models import OPEN_STATUSES, Account, Instrument, Interval, Order, Position
from helios.queries.klines import klines
from helios.queries.mirrored import ORDER, POSITION, Candle, Form, Found, candle_of, price_of
from helios.queries.prices import Price, current_price
from helios.queries.query import Reader, known_interval, table_of

if TYPE_CHECKING:
    from redis import Redis
    from redis.asyncio import Redis as AsyncRedis

    from helios.mirrors.patience import Client

KNOWN = 600.0  # seconds after which PostgreSQL is asked anew who it is, and for its clock
TRUSTED = timedelta(seconds=1)  # a relay that lives says so ten times as often
INSTRUMENTS, ACCOUNTS, ORDERS, POSITIONS = map(table_of, (Instrument, Account, Order, Position))

InstrumentName = tuple[str, str, str]
AccountName = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Rows with fields by name, as PostgreSQL had them at `as_of` (its clock) or later; `mirrored`: who answered.

    `running` is the candle that still runs, as a feed told it within the last ten seconds; None where none did.
    """

    rows: list[Any]
    as_of: datetime
    mirrored: bool
    running: Candle | None = None


@dataclass(frozen=True)
class Home:
    """Whose mirrors are read, and what PostgreSQL's clock says, counted on from when it was asked, never less."""

    mirror: Mirror
    asked_at: float
    clock: datetime

    def now(self) -> datetime:
        """Tell the time of PostgreSQL's clock without asking it."""
        return self.clock + timedelta(seconds=time.monotonic() - self.asked_at)


class Live:
    """Reads live figures by the names people use; make one for each process, any thread may use it.

    Asynchronously, by a client of redis.asyncio: `await session.run_sync(live.price, ("binance", "spot", "BTCUSDT"))`.
    What PostgreSQL answers is what the reader's transaction sees; under REPEATABLE READ that may be long ago.

    Args:
        client: of the Redis that holds the mirrors, whose address and login are used, by connections of its own that
            `close()` (asynchronously, `aclose()`) or a `with` block gives up; None always asks PostgreSQL.
        max_lag: how far the mirrors may be behind PostgreSQL, where a call does not say it.
        patience: the longest that Redis may take to connect or to answer. One that does not is left alone for a second;
            of a Redis Cluster, what is in the same bucket.

    """

    def __init__(
        self, client: "Client | None", *, max_lag: timedelta = TRUSTED, patience: timedelta = PATIENCE
    ) -> None:
        self.client = None if client is None else impatient(client, patience.total_seconds())
        self.max_lag = max_lag
        self.home: Home | None = None
        self.aside_until: dict[str, float] = {}  # buckets that failed

    def __enter__(self) -> Self:
        """Close at the end of the block."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Close."""
        self.close()

    async def __aenter__(self) -> Self:
        """Close at the end of the block."""
        return self

    async def __aexit__(self, *_error: object) -> None:
        """Close."""
        await self.aclose()

    def close(self) -> None:
        """Close the connections to Redis; from then on PostgreSQL alone answers."""
        client, self.client = self.client, None
        if client is not None:
            cast("Redis", client).close()

    async def aclose(self) -> None:
        """Close the connections of an asynchronous client."""
        client, self.client = self.client, None
        if client is not None:
            await cast("AsyncRedis", client).aclose()

    def price(self, reader: Reader, instrument: InstrumentName, *, max_lag: timedelta | None = None) -> Price:
        """Read the current price of an instrument (exchange, market, symbol); with `max_lag`, an older one is refused.

        Raises:
            StaleError: there is no price, or none as young as that, in PostgreSQL either.
            InputError: there is no such instrument.

        """
        found = self.look(reader, TICKER, instrument, self.max_lag if max_lag is None else min(max_lag, self.max_lag))
        price = found and price_of(found)
        if price and (max_lag is None or price.age <= max_lag):
            return price
        return current_price(reader, instrument_id(reader, instrument), max_lag=max_lag)

    def klines(  # noqa: PLR0913 - what is wanted, and how
        self,
        reader: Reader,
        instrument: InstrumentName,
        interval: Interval,
        *,
        last: int,
        max_lag: timedelta | None = None,
        running: bool = False,
    ) -> Answer:
        """Read the newest closed candles of a series as `Candle`s, oldest first; with `running`, also the one after them.

        Raises:
            InputError: there is no such instrument or interval, or `last` is below 1.

        """  # noqa: E501 - one sentence
        answer = self.closed(reader, instrument, interval, last, max_lag)
        now = self.running(reader, instrument, interval) if running else None
        if now is None or (answer.rows and now.open_time <= answer.rows[-1].open_time):
            return answer
        return replace(answer, running=now)

    def running(self, reader: Reader, instrument: InstrumentName, interval: Interval) -> Candle | None:
        """Read the candle that still runs, as a feed told it within the last ten seconds; None where none did.

        It is in no table and needs no relay. PostgreSQL has nothing to say where Redis fails.

        Raises:
            InputError: there is no such interval.

        """
        series = (*instrument, known_interval(interval).value)
        asked = self.ask(reader, series, lambda mirror: read_candle(mirror, series))
        return candle_of(asked[1]) if asked and asked[1] else None

    def closed(
        self, reader: Reader, instrument: InstrumentName, interval: Interval, last: int, max_lag: timedelta | None
    ) -> Answer:
        """Read the newest closed candles, from either side."""
        query = klines(0, interval, last=last)  # whose checks hold for both sides
        found = self.look(reader, SERIES, (*instrument, query.parameters["interval"].value), max_lag)
        lines = found.content.splitlines()[-last:] if found else []
        if found and len(lines) == last:
            return Answer(rows=[candle_of(line) for line in lines], as_of=found.as_of, mirrored=True)
        as_of = reader.execute(CLOCK).scalar_one()
        query = klines(instrument_id(reader, instrument), interval, last=last)
        rows = [Candle(*(getattr(row, name) for name in CANDLE)) for row in query.rows(reader)]
        return Answer(rows=rows, as_of=as_of, mirrored=False)

    def open_orders(self, reader: Reader, account: AccountName, *, max_lag: timedelta | None = None) -> Answer:
        """Read the open orders of an account (exchange, name), oldest first: the columns of `orders`, market, symbol.

        Raises:
            InputError: there is no such account.

        """
        found = self.look(reader, OPEN_ORDERS, account, max_lag)
        if found is None:
            return from_tables(reader, ORDERS_OF, account)
        rows = [ORDER.read({**json.loads(value), "id": name}) for name, value in found.content.items()]
        rows.sort(key=lambda row: (row.submitted_at, row.id))
        return Answer(rows=rows, as_of=found.as_of, mirrored=True)

    def positions(self, reader: Reader, account: AccountName, *, max_lag: timedelta | None = None) -> Answer:
        """Read the positions of an account (exchange, name), flat ones left out: the columns of `positions`, market, symbol.

        Raises:
            InputError: there is no such account.

        """  # noqa: E501 - one sentence
        found = self.look(reader, HELD, account, max_lag)
        if found is None:
            return from_tables(reader, POSITIONS_OF, account)
        rows = [row for value in found.content.values() if (row := POSITION.read(json.loads(value))).quantity]
        rows.sort(key=lambda row: (row.instrument_id, row.position_side))
        return Answer(rows=rows, as_of=found.as_of, mirrored=True)

    def look(self, reader: Reader, table: str, name: tuple[str, ...], max_lag: timedelta | None) -> Found | None:
        """Look into the mirror; None where it lacks what is wanted, lags more than allowed, or cannot be trusted."""

        def read(mirror: Mirror) -> Seen | None:
            key = mirror.place.key(table, *name)
            return mirror.hashes(key) if table in (OPEN_ORDERS, HELD) else mirror.texts(key)

        home, seen = self.ask(reader, name, read) or (None, None)
        lag = self.max_lag if max_lag is None else max_lag
        if home is None or seen is None or seen.lag > lag or seen.contents[0] is None:
            return None
        now = home.now()
        return Found(seen.contents[0], now - seen.lag, now)

    def ask(
        self, reader: Reader, name: tuple[str, ...], read: Callable[[Mirror], Seen | bytes | None]
    ) -> tuple[Home, Any] | None:
        """Ask Redis about something, as whose mirrors; None where it fails, or is left alone because it did."""
        began = time.monotonic()
        if self.client is None:
            return None
        home = self.home or self.meet(reader)
        bucket = home.mirror.place.at(name).bucket
        if (until := self.aside_until.get(bucket)) is not None:
            if began < until:
                return None
            self.aside_until[bucket] = began + ASIDE  # this one tries, the others go on to PostgreSQL
        try:
            seen = read(home.mirror)
        except UNREACHED:
            self.aside_until[bucket] = began + ASIDE
            return None
        self.aside_until.pop(bucket, None)
        if seen is None or began - home.asked_at > KNOWN:
            self.home = None  # PostgreSQL may be another one by now, and the mirrors be spread otherwise
        return home, seen

    def meet(self, reader: Reader) -> Home:
        """Ask PostgreSQL who it is and what its clock says."""
        asked_at = time.monotonic()
        clock = reader.execute(CLOCK).scalar_one()
        self.home = Home(Mirror.of(reader, cast("Redis", self.client)), asked_at, clock)
        return self.home


def orders_of() -> Select[Any]:
    """Make the statement of `open_orders`."""
    found = select(*ORDER.columns).where(ORDERS.c.status.in_(OPEN_STATUSES))
    return of_account(found, ORDERS).order_by(ORDERS.c.submitted_at, ORDERS.c.id)


def positions_of() -> Select[Any]:
    """Make the statement of `positions`."""
    found = select(*POSITION.columns).where(POSITIONS.c.quantity != 0)
    return of_account(found, POSITIONS).order_by(POSITIONS.c.instrument_id, POSITIONS.c.position_side)


def of_account(statement: Select[Any], table: Table) -> Select[Any]:
    """Keep to an account by its name, and add the instruments."""
    account = account_named().scalar_subquery()
    joined = table.join(INSTRUMENTS, INSTRUMENTS.c.id == table.c.instrument_id)
    return statement.select_from(joined).where(table.c.account_id == account)


def account_named() -> Select[Any]:
    """Find an account's id by exchange and name."""
    named = (ACCOUNTS.c.exchange == bindparam("exchange"), ACCOUNTS.c.name == bindparam("name"))
    return select(ACCOUNTS.c.id).where(*named)


CLOCK = select(func.clock_timestamp().label("now"))
ACCOUNT_ID = account_named()
ORDERS_OF, POSITIONS_OF = (orders_of(), ORDER), (positions_of(), POSITION)
INSTRUMENT_ID = select(INSTRUMENTS.c.id).where(
    INSTRUMENTS.c.exchange == bindparam("exchange"),
    INSTRUMENTS.c.market == bindparam("market"),
    INSTRUMENTS.c.symbol == bindparam("symbol"),
)


def from_tables(reader: Reader, of: tuple[Select[Any], Form], account: AccountName) -> Answer:
    """Ask PostgreSQL for rows of an account; none where there is no such account is no answer.

    Raises:
        InputError: there is no such account.

    """
    statement, form = of
    names = dict(zip(("exchange", "name"), account, strict=True))
    as_of = reader.execute(CLOCK).scalar_one()
    rows = [form.row(*row) for row in reader.execute(statement, names)]
    if not rows and reader.execute(ACCOUNT_ID, names).one_or_none() is None:
        raise InputError(f"there is no account {account[1]!r} at {account[0]!r} here: see the table accounts")
    return Answer(rows=rows, as_of=as_of, mirrored=False)


def instrument_id(reader: Reader, instrument: InstrumentName) -> int:
    """Ask PostgreSQL for an instrument's id.

    Raises:
        InputError: there is no such instrument.

    """
    names = dict(zip(("exchange", "market", "symbol"), instrument, strict=True))
    number = reader.execute(INSTRUMENT_ID, names).scalar_one_or_none()
    if number is None:
        told = " ".join(instrument)
        raise InputError(f"there is no instrument {told!r} here: name exchange, market and symbol as the table does")
    return int(number)
