"""Work that is done again where that is safe: after a serialization failure, a deadlock, a lost connection.

What was not committed is repeated: PostgreSQL has undone it, or never had it. A commit whose answer was lost may count
or not, and only whoever wrote the work knows whether doing it twice does harm.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from helios.db.engines import reaching
from helios.db.outages import ROLLED_BACK, code_of, login_refused, lost
from helios.errors import UncertainError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

Result = TypeVar("Result")
PATIENCE = timedelta(seconds=30)  # a failover takes less
NOWHERE = URL.create("postgresql")
SHORTEST, LONGEST = 0.01, 1.0  # seconds between two attempts


def with_retries(
    factory: Callable[[], AbstractContextManager[Session]],
    work: Callable[[Session], Result],
    *,
    idempotent: bool = False,
    patience: timedelta = PATIENCE,
) -> Result:
    """Do work in a transaction, commit it, and do all of it anew, in a new session, where that is safe.

    Repeated are serialization failures, deadlocks, and connections that were lost, could not be made, or lead to a
    primary that is a standby now, before the commit was sent. Everything else is raised at once. So is a login that is
    refused, but where `lc_messages` has the server say so in another language than English.

    Args:
        factory: makes the sessions.
        work: gets a session, and does not commit; what it gives is returned. It may be called many times.
        idempotent: that doing the work twice is the same as doing it once, as inserting under a client order id is
            where a second one changes nothing. Then a commit whose answer was lost is repeated as well.
        patience: after that long the next failure is raised.

    Raises:
        UncertainError: the answer to the commit was lost, and the work is not idempotent.
        UnreachableError: the server was gone for longer than `patience`, or lets this login not in.

    """
    attempts = Attempts(idempotent, time.monotonic() + patience.total_seconds())
    while True:
        try:
            return attempt(factory, work, attempts)
        except DBAPIError as error:
            attempts.give_up_unless_safe(error)
        time.sleep(attempts.pause())


async def with_async_retries(
    factory: "Callable[[], AbstractAsyncContextManager[AsyncSession]]",
    work: "Callable[[AsyncSession], Awaitable[Result]]",
    *,
    idempotent: bool = False,
    patience: timedelta = PATIENCE,
) -> Result:
    """Do work in an asynchronous session as `with_retries` does.

    Raises:
        UncertainError: the answer to the commit was lost, and the work is not idempotent.
        UnreachableError: the server was gone for longer than `patience`, or lets this login not in.

    """
    attempts = Attempts(idempotent, time.monotonic() + patience.total_seconds())
    while True:
        try:
            return await async_attempt(factory, work, attempts)
        except DBAPIError as error:
            attempts.give_up_unless_safe(error)
        await asyncio.sleep(attempts.pause())


@dataclass
class Attempts:
    """What is known about the attempts so far; `committing` and `committed` tell how far the newest one came."""

    idempotent: bool
    deadline: float
    url: URL = NOWHERE
    committing: bool = False
    committed: bool = False  # by the work itself, which may have gone on in another transaction
    made: int = 0

    def give_up_unless_safe(self, error: DBAPIError) -> None:
        """Return where the work may be done anew.

        Raises:
            UncertainError: the answer to the commit was lost, and the work is not idempotent.
            UnreachableError: the server is gone, and patience is at its end; or it lets this login not in.
            DBAPIError: anything else went wrong.

        """
        gone = lost(error)
        if not gone and code_of(error.orig) not in ROLLED_BACK:
            raise error
        if not self.idempotent and (self.committed or (gone and self.committing)):
            raise UncertainError(
                "the connection was lost while a commit was under way, so whether it counts is not known: look whether "
                "the rows are there before you repeat it, or say idempotent=True where repeating does no harm"
            ) from error
        if login_refused(error) or time.monotonic() > self.deadline:
            with reaching(self.url):
                raise error

    def pause(self) -> float:
        """Give the seconds to wait before the next attempt; at random, so that two do not meet again."""
        self.made += 1
        return random.uniform(SHORTEST, min(LONGEST, SHORTEST * float(1 << min(self.made, 10))))  # noqa: S311 - nothing secret


def attempt(
    factory: Callable[[], AbstractContextManager[Session]], work: Callable[[Session], Result], attempts: Attempts
) -> Result:
    """Do the work once, and note how far it came."""
    attempts.committing = attempts.committed = False
    with factory() as session:
        attempts.url = url_of(session)
        transaction = session.begin()
        try:
            result = work(session)
            session.flush()
        finally:
            attempts.committed = session.get_transaction() is not transaction
        attempts.committing = True
        session.commit()
        return result


async def async_attempt(
    factory: "Callable[[], AbstractAsyncContextManager[AsyncSession]]",
    work: "Callable[[AsyncSession], Awaitable[Result]]",
    attempts: Attempts,
) -> Result:
    """Do the work once, and note how far it came."""
    attempts.committing = attempts.committed = False
    async with factory() as session:
        attempts.url = url_of(session.sync_session)
        transaction = session.sync_session.begin()
        try:
            result = await work(session)
            await session.flush()
        finally:
            attempts.committed = session.sync_session.get_transaction() is not transaction
        attempts.committing = True
        await session.commit()
        return result


def url_of(session: Session) -> URL:
    """Tell which server a session works on, for people."""
    return session.bind.engine.url if session.bind is not None else NOWHERE
