"""What a service adds to its session factory where its own commits have to be in Redis at once."""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from threading import Condition, Thread
from typing import TYPE_CHECKING, Any

import psycopg2
from sqlalchemy import Engine, event
from sqlalchemy.orm import Session, SessionTransaction, sessionmaker
from sqlalchemy.util import await_only

from helios import db
from helios.errors import HeliosError
from helios.mirrors.relay import PASSING
from helios.mirrors.source import CALL, NEEDS, connected
from helios.mirrors.spread import Relays
from helios.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

    Factory = sessionmaker[Session] | async_sessionmaker[AsyncSession]

log = logging.getLogger("helios.mirrors")
COMMITTED = "helios.mirrors.committed"
ASIDE = 1.0  # seconds in which commits wait for nothing, after Redis or PostgreSQL failed


def follow(factory: "Factory", settings: Settings | None = None, *, wait: float = 0.25) -> "Follower":
    """Have every commit of a factory's sessions in Redis when `commit()` returns: read your own writes.

    A thread of this process relays what was committed, by others too; a commit waits for it. Where Redis or the relay's
    login fails, commits succeed all the same and wait no longer than `wait` seconds, and for the next second not at
    all; whatever relay comes next brings what is missing. The login of `settings` has to be a member of the group role
    `relay`. Ends with `close()`.

    Args:
        factory: a sessionmaker or async_sessionmaker; sessions that it made before are not followed.
        settings: where PostgreSQL and Redis are; the environment's, if not given.
        wait: the longest a commit waits.

    Raises:
        PoolerError: DATABASE_URL is a pooler, and there is no DATABASE_MIGRATION_URL.

    """
    settings = settings or Settings.from_environment()
    relays = Relays(db.create_engine(db.direct_settings(settings, NEEDS)), db.create_redis(settings))
    return Follower(relays.drain, relays.close, wait).listen_to(factory)


def announce(factory: "Factory", settings: Settings | None = None) -> "Follower":
    """Tell the relay (`helios mirror run --listen`) of every commit of a factory's sessions, which waits for nothing.

    By a NOTIFY of its own after the commit: in the transaction, it would queue concurrent commits and forbid two-phase
    ones. Any login may. Ends with `close()`.
    """
    caller = Caller(db.create_engine(settings or Settings.from_environment()))
    return Follower(caller.call, caller.close, 0).listen_to(factory)


class Caller:
    """Sends NOTIFY on a connection of its own."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.connection: Any = None

    def call(self) -> None:
        """Wake the relay that listens."""
        if self.connection is None:
            self.connection = connected(self.engine)
            self.connection.autocommit = True
        with self.connection.cursor() as cursor:
            cursor.execute(CALL)

    def close(self) -> None:
        """Give the connection up."""
        if self.connection is not None:
            with suppress(psycopg2.Error):
                self.connection.close()
            self.connection = None


class Follower:
    """A thread that does something after commits, once for all that were made meanwhile."""

    def __init__(self, action: Callable[[], object], close: Callable[[], None], wait: float) -> None:
        self.action = action
        self.close_action = close
        self.longest = wait
        self.asked = self.done = 0
        self.failed_at = -ASIDE
        self.failing = self.closed = False
        self.changed = Condition()
        self.thread: Thread | None = None

    def listen_to(self, factory: "Factory") -> "Follower":
        """Act after each commit of the factory's sessions from now on."""
        if isinstance(factory, sessionmaker):
            followed: Any = factory
            ended = self.transaction_ended
        else:
            # Its own class of sessions: events of Session itself would be those of every session there is.
            followed = type("FollowedSession", (factory.kw.get("sync_session_class") or Session,), {})
            factory.configure(sync_session_class=followed)
            ended = self.async_transaction_ended
        event.listen(followed, "after_commit", note_commit)
        event.listen(followed, "after_transaction_end", ended)
        return self

    def transaction_ended(self, session: Session, transaction: SessionTransaction) -> None:
        """Act where a whole transaction was committed, and its connection given back."""
        if transaction.parent is None and session.info.pop(COMMITTED, False):
            self.wait(self.ask())

    def async_transaction_ended(self, session: Session, transaction: SessionTransaction) -> None:
        """Act likewise, and leave the event loop to others meanwhile."""
        if transaction.parent is None and session.info.pop(COMMITTED, False):
            ticket = self.ask()
            if self.waits():
                await_only(asyncio.to_thread(self.wait, ticket))

    def ask(self) -> int:
        """Have the action done once more, after this moment; gives a ticket to wait with."""
        with self.changed:
            if not self.closed and (self.thread is None or not self.thread.is_alive()):
                self.thread = Thread(target=self.work, name="helios-mirrors", daemon=True)
                self.thread.start()
            self.asked += 1
            self.changed.notify_all()
            return self.asked

    def waits(self) -> bool:
        """Tell whether commits wait now."""
        return self.longest > 0 and not self.closed and time.monotonic() - self.failed_at > ASIDE

    def wait(self, ticket: int) -> None:
        """Wait until what was asked for is done, or it has taken too long."""
        if not self.waits():
            return
        with self.changed:
            if not self.changed.wait_for(lambda: self.done >= ticket or self.closed, self.longest):
                self.fail("it takes longer than a commit may wait")

    def work(self) -> None:
        """Do what is asked for, until closed."""
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.asked > self.done or self.closed)
                if self.closed:
                    return
                ticket = self.asked
            self.act()
            with self.changed:
                self.done = ticket
                self.changed.notify_all()

    def act(self) -> None:
        """Act, and survive what fails."""
        try:
            self.action()
        except (*PASSING, HeliosError) as error:
            with suppress(*PASSING):
                self.close_action()
            self.fail(" ".join(str(error).split()))
        else:
            if self.failing and time.monotonic() - self.failed_at > ASIDE:
                self.failing = False

    def fail(self, reason: str) -> None:
        """Let commits pass for a while; say why, once."""
        self.failed_at = time.monotonic()
        if not self.failing:
            log.warning("commits are not in Redis at once, a relay brings them later: %s", reason)
        self.failing = True

    def close(self) -> None:
        """End; commits go on without this."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()
        if self.thread is not None:
            self.thread.join(timeout=30)
        self.close_action()


def note_commit(session: Session) -> None:
    """Remember that the transaction that is about to end was committed; a savepoint's end is none."""
    if not session.in_nested_transaction():
        session.info[COMMITTED] = True
