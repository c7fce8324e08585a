"""The feed: messages in, rows out, one transaction for each call; sync and async."""

import asyncio
import random
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol, Self, cast

from psycopg2 import errorcodes as codes
from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import greenlet_spawn

from helios.db.outages import ROLLED_BACK, code_of, login_refused, lost
from helios.errors import InputError
from helios.feed.market import VanishedError
from helios.feed.recording import Known, Recorder, Taken
from helios.feed.reports import Report
from helios.feed.running import RunningCandles, ignored, kept, told_of_candles
from helios.feed.statements import Writer
from helios.models import Interval

if TYPE_CHECKING:
    from redis import Redis
    from redis.asyncio import Redis as AsyncRedis
    from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

ATTEMPTS = 10
# What another attempt may overcome, for every write here may be repeated. A row that another session deleted is
# remembered here no more by then.
PASSING = frozenset({*ROLLED_BACK, codes.LOCK_NOT_AVAILABLE, codes.UNIQUE_VIOLATION, codes.FOREIGN_KEY_VIOLATION})
# What the tables do not take.
REFUSED = frozenset(
    {
        codes.CHECK_VIOLATION,
        codes.NUMERIC_VALUE_OUT_OF_RANGE,
        codes.DATETIME_FIELD_OVERFLOW,
        codes.CHARACTER_NOT_IN_REPERTOIRE,
    }
)


class Factory(Protocol):
    """A session factory (`sessionmaker`) or an engine: its `begin` commits, or rolls back on an error."""

    def begin(self) -> AbstractContextManager[Writer]: ...  # noqa: D102 - as SQLAlchemy's


class Feed:
    """What one account of an exchange says, into the tables: late, repeated or reordered, it ends in the same rows.

    Args:
        factory: a session factory or an engine; each call is one transaction of it.
        redis: of the Redis that holds the mirrors: candles that still run are told there (`Live.klines`), by
            connections of its own that `close()` or a `with` block gives up. Without it they are ignored.
        options: `exchange`, its name in lower case (binance); `market` of all messages (spot); `account`, a name, made
            with the first message about it and not needed for market data (main); `symbols`, the exchange's own symbol
            for ccxt's unified ones, where Binance's rule does not do.

    """

    def __init__(self, factory: Factory, *, redis: "Redis | None" = None, **options: Any) -> None:  # noqa: ANN401 - Recorder's
        self.factory = factory
        self.running = None if redis is None else RunningCandles(redis)
        self.recorder = Recorder(**options)
        self._known = Known()

    def __enter__(self) -> Self:
        """Close at the end of the block."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Close the connections to Redis; those to PostgreSQL are the factory's."""
        if self.running is not None:
            cast("Redis", self.running.client).close()

    def take(
        self,
        message: object,
        *,
        symbol: str | None = None,
        interval: str | Interval | None = None,
        received_at: datetime | None = None,
    ) -> Taken:
        """Record a message: the decoded JSON of Binance (answer or stream) or a unified dictionary of ccxt.

        Args:
            message: an object or a list, in any of the forms that `helios.feed.parse` reads.
            symbol: whose candles bare arrays are; the exchange's own symbol.
            interval: which candles bare arrays are, 1m to 1mo (1M).
            received_at: when the message came, with time zone; the time of what tells none. Now, if not given.

        Raises:
            InputError: the message cannot be read; nothing was written.

        """
        return self.write(self.recorder.read(message, symbol=symbol, interval=interval, received_at=received_at))

    def take_all(self, messages: Iterable[object], *, received_at: datetime | None = None) -> Taken:
        """Record many messages in one transaction; of a burst of tickers the newest of each symbol is written.

        Raises:
            InputError: one of the messages cannot be read; nothing of them was written.

        """
        return self.write(self.recorder.read_all(messages, received_at=received_at))

    def write(self, reports: list[Report]) -> Taken:
        """Write what messages said, in one transaction; where another session came first, once more."""
        running = self.running if told_of_candles(reports) else None
        if running is not None and running.stranger:
            with self.factory.begin() as writer:
                running.meet(writer)
        taken = self.stored(reports) if kept(reports) else Taken()
        taken = replace(taken, ignored=ignored(reports, running=self.running is not None))
        if running is None:
            return taken
        told = running.tell(self.recorder.exchange, self.recorder.market, reports)
        return replace(taken, running=told)

    def stored(self, reports: list[Report]) -> Taken:
        """Write what goes into the tables."""
        for attempt in range(ATTEMPTS):
            known = self._known.copy()
            try:
                if missing := self.recorder.partitions(reports, known):
                    with self.factory.begin() as writer:
                        self.recorder.make_partitions(writer, missing, known)
                with self.factory.begin() as writer:
                    taken = self.recorder.write(writer, reports, known)
            except (DBAPIError, VanishedError) as error:
                self._known = Known()
                give_up_unless_passing(error, attempt)
                time.sleep(pause(error, attempt))
            else:
                self._known = known
                return taken
        raise AssertionError("the last attempt returns or raises")


class AsyncFeed:
    """A Feed on asynchronous sessions; options and reading are the same, and so are the statements.

    What `Feed.close()` gives up, `aclose()` or an `async with` block does here.
    """

    def __init__(
        self,
        factory: "async_sessionmaker[AsyncSession]",
        *,
        redis: "AsyncRedis | None" = None,
        **options: Any,  # noqa: ANN401 - Recorder's
    ) -> None:
        self.factory = factory
        self.running = None if redis is None else RunningCandles(redis)
        self.recorder = Recorder(**options)
        self._known = Known()

    async def __aenter__(self) -> Self:
        """Close at the end of the block."""
        return self

    async def __aexit__(self, *_error: object) -> None:
        """Close."""
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections to Redis."""
        if self.running is not None:
            await cast("AsyncRedis", self.running.client).aclose()

    async def take(
        self,
        message: object,
        *,
        symbol: str | None = None,
        interval: str | Interval | None = None,
        received_at: datetime | None = None,
    ) -> Taken:
        """Record a message, as `Feed.take` does."""
        reports = self.recorder.read(message, symbol=symbol, interval=interval, received_at=received_at)
        return await self.write(reports)

    async def take_all(self, messages: Iterable[object], *, received_at: datetime | None = None) -> Taken:
        """Record many messages in one transaction, as `Feed.take_all` does."""
        return await self.write(self.recorder.read_all(messages, received_at=received_at))

    async def write(self, reports: list[Report]) -> Taken:
        """Write what messages said, as `Feed.write` does."""
        running = self.running if told_of_candles(reports) else None
        if running is not None and running.stranger:
            async with self.factory.begin() as session:
                await session.run_sync(running.meet)
        taken = await self.stored(reports) if kept(reports) else Taken()
        taken = replace(taken, ignored=ignored(reports, running=self.running is not None))
        if running is None:
            return taken
        told = await greenlet_spawn(running.tell, self.recorder.exchange, self.recorder.market, reports)
        return replace(taken, running=told)

    async def stored(self, reports: list[Report]) -> Taken:
        """Write what goes into the tables, as `Feed.stored` does."""
        for attempt in range(ATTEMPTS):
            known = self._known.copy()
            try:
                if missing := self.recorder.partitions(reports, known):
                    async with self.factory.begin() as session:
                        await session.run_sync(self.recorder.make_partitions, missing, known)
                async with self.factory.begin() as session:
                    taken = await session.run_sync(self.recorder.write, reports, known)
            except (DBAPIError, VanishedError) as error:
                self._known = Known()
                give_up_unless_passing(error, attempt)
                await asyncio.sleep(pause(error, attempt))
            else:
                self._known = known
                return taken
        raise AssertionError("the last attempt returns or raises")


def give_up_unless_passing(error: DBAPIError | VanishedError, attempt: int) -> None:
    """Return where another attempt may succeed.

    Raises:
        InputError: the tables do not take what a message says.
        DBAPIError: anything else went wrong.

    """
    code = codes.FOREIGN_KEY_VIOLATION if isinstance(error, VanishedError) else meaning(error)
    if code in REFUSED and isinstance(error, DBAPIError):
        said = str(error.orig).strip().partition("\n")[0]
        raise InputError(f"the tables do not take what a message says: {said}; nothing was written") from None
    if not (code in PASSING or gone(error)) or attempt + 1 == ATTEMPTS:
        raise error


def gone(error: DBAPIError | VanishedError) -> bool:
    """Tell whether the connection was lost; a commit whose answer was lost may be repeated like any other."""
    return isinstance(error, DBAPIError) and lost(error) and not login_refused(error)


def meaning(error: DBAPIError) -> str:
    """Find PostgreSQL's code of an error; that of a partition which somebody dropped is that of a row that is gone."""
    code = code_of(error.orig)
    constraint = getattr(getattr(error.orig, "diag", None), "constraint_name", None)
    return codes.FOREIGN_KEY_VIOLATION if code == codes.CHECK_VIOLATION and constraint is None else code


def pause(error: DBAPIError | VanishedError, attempt: int) -> float:
    """Give the seconds to wait before another attempt; at random, so that two do not meet again."""
    if gone(error):
        return random.uniform(0.1, 1.0) if attempt else 0.0  # noqa: S311 - a failover takes a second or two
    return random.uniform(0, 0.005 * float(1 << attempt))  # noqa: S311 - nothing secret
