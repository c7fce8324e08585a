"""A run: from the first use of the kit to the last undo, with a lease that the server takes back when the run dies."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from sqlalchemy import Engine, NullPool, text
from sqlalchemy.orm import Session, sessionmaker

from helios import db, label
from helios.errors import HeliosError, PoolerError
from helios.settings import masked
from helios.testing import story, undo
from helios.testing.catalog import Catalog
from helios.testing.halves import Mark, joined
from helios.testing.mirrored import mirror_keys
from helios.testing.signals import terminating_politely
from helios.testing.subject import Subject, subject_of, variables
from helios.testing.sweeping import Repair, repair, starting, sweep
from helios.testing.tracker import Inserted, Tracker
from helios.testing.undo import Change
from helios.testing.undo.place import log_of

if TYPE_CHECKING:
    from redis import Redis
    from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker


log = logging.getLogger("helios.testing")
WHOLE = "the run"
LABEL = text("SELECT current_setting(:setting, true)")


@dataclass(kw_only=True)
class Scope:
    """One test, or all that is outside of tests: what it wrote, what was undone of it, and what it left.

    `others` says what somebody without the label changed meanwhile; nobody knows whether the test had to do with it.
    """

    test: str
    since: Mark
    changes: list[Change] = field(default_factory=list)
    inserted: list[Inserted] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


class Run:
    """A run in progress; `engine`, `sessions` and `redis` are labelled, as is every child process.

    `repaired` says what dead runs had left, `finished` what earlier runs had to leave because of this one, `scopes`
    what each test did, `failures` what could not be undone.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.id = secrets.randbits(63) or 1
        self.repaired: list[Repair] = []
        self.finished: list[Repair] = []
        self.scopes: list[Scope] = []
        self.failures: list[str] = []
        self.servers: list[str] = []
        self.untriggered: list[str] = []  # tables whose log the tracker has to write
        self.scope: Scope | None = None
        self.kept = False
        self.tracker = Tracker(mirror_keys) if subject.helios else Tracker()
        self._redis: Redis | None = None
        self._open = ExitStack()

    @classmethod
    def begin(cls, subject: Subject) -> Run:
        """Refuse production, make the tables ready, undo what dead runs left, and begin.

        Raises:
            HeliosError: the database is production or unreachable, or what a dead run left cannot be undone.

        """
        run = cls(subject)
        try:
            run._begin()
        except BaseException:
            run._open.close()
            raise
        return run

    def _begin(self) -> None:
        self.connection = self._open.enter_context(self.subject.direct())
        self.repaired = sweep(self.subject)  # first: migrations wait for it
        self.subject.ready(self.connection)
        self.halves = self._open.enter_context(joined(self.subject, self.connection))
        self._open.enter_context(terminating_politely())
        with starting(self.connection, self.subject.schema):
            undo.install(self.connection, self.subject.schema, self.subject.tables)
            self.halves.begin(self.id)
        self.servers = self.halves.versions()
        self.halves.watch(self.subject.tables)
        self.catalog = Catalog(self.connection, self.subject.schema)
        own = {"DATABASE_SCHEMA": self.subject.schema} if self.subject.helios else {}
        self._open.enter_context(variables(label.variables(self.id) | own))
        self.engine: Engine = db.create_engine(self.subject.settings)
        self._open.callback(self.engine.dispose)
        refuse_unlabelled(self.engine, self.id)
        self._open.callback(self.tracker.close)
        if tables := undo.unwatched(self.connection):
            self.untriggered = [name for _, name in tables]
            self.tracker.write_log(log_of(self.subject.schema), self.id, tables)
        self.sessions = sessionmaker(self.engine, expire_on_commit=False)
        self.tracker.follow(self.sessions)

    def enter(self, test: str) -> None:
        """Begin a test: what is written from here on is its own."""
        self.scope = Scope(test=test, since=self.halves.mark(self.id))
        self.halves.watch_anew()
        self.tracker.test = test
        self.scopes.append(self.scope)

    def leave(self) -> Scope | None:
        """Undo what the test wrote, and note what it left.

        Raises:
            HeliosError: something could not be undone; the run remembers it, and tries once more at its end.

        """
        scope, self.scope, self.tracker.test = self.scope, None, ""
        if scope is not None:
            scope.inserted = self.tracker.of(scope.test)
            self.undo(scope)
        return scope

    def undo(self, scope: Scope) -> None:
        """Undo what was written since a scope began, and note what is left of it."""
        try:
            changes, scope.others = self.halves.undo_and_tell(self.id, scope.since)
        except HeliosError as error:
            self.failures.append(f"{scope.test} could not be undone: {error}")
            raise
        scope.changes += changes
        scope.left += [f"{each.table} {each.count}: {each.why}" for each in changes if each.what == "kept"]
        scope.left += self.catalog.changes()

    def keep(self) -> None:
        """Leave what the test wrote, and what the run wrote before: the next run, or `helios sweep`, undoes it."""
        self.scope, self.kept, self.tracker.test = None, True, ""

    def end(self, *, undone: bool = True) -> None:
        """Undo the rest and end; what cannot be undone stands in `failures`, and stays for the next run to undo.

        Unless `undone`, everything is left as it is, for good.
        """
        try:
            if self.connection.invalidated:  # the server was restarted: the lease is gone, the log is not
                self.connection.rollback()
            if not undone:
                self.halves.forget(self.id)
            elif not self.kept:
                self.scope = Scope(test=WHOLE, since=Mark())
                self.scopes.append(self.scope)
                self.undo(self.scope)
                self.halves.close(self.id)
                self.finish_others()
        except Exception as error:  # noqa: BLE001 - whatever stops a clean-up, the run fails and says what is left
            if not self.failures:
                self.failures.append(f"{type(error).__name__}: {error}")
        finally:
            self.scope = None
            self._open.close()

    def finish_others(self) -> None:
        """Undo what runs that ended before this one had to leave, because this one had to do with the same rows."""
        if not undo.unfinished(self.connection):  # nearly always: then nobody who begins is waited for
            return
        with starting(self.connection, self.subject.schema):
            self.finished = repair(self.halves, self.subject.schema, undo.unfinished(self.connection))

    @contextmanager
    def rollback_session(self) -> Iterator[Session]:
        """Open a session whose commits stay inside a transaction that is rolled back at the end."""
        with self.engine.connect() as connection:
            transaction = connection.begin()
            with Session(connection, join_transaction_mode="create_savepoint", expire_on_commit=False) as session:
                yield session
            transaction.rollback()

    @cached_property
    def async_sessions(self) -> async_sessionmaker[AsyncSession]:
        """A factory of asynchronous sessions; each opens a connection of its own, for the loop it is used in."""
        engine = db.create_async_engine(self.subject.settings, poolclass=NullPool)
        factory = db.create_async_session_factory(engine)
        self.tracker.follow(factory)
        return factory

    @property
    def redis(self) -> Redis:
        """A Redis client that records what it writes.

        Raises:
            HeliosError: no Redis is configured, and no embedded one can serve.

        """
        if self.halves.redis is None:
            raise HeliosError(no_redis(helios=self.subject.helios))
        if self._redis is None:
            self._redis = db.create_redis(self.subject.settings)
            self._open.callback(self._redis.close)
        return self._redis


def no_redis(*, helios: bool) -> str:
    """Say what brings a Redis; beside tables that are not Helios's own, the embedded one is not started unasked."""
    if helios:
        return "this run has no Redis: set REDIS_URL, or install the extra helios[embedded]"
    return (
        "this run has no Redis, which a project with its own tables has to name: set REDIS_URL; "
        "`helios up` starts an embedded one and shows its URL"
    )


def refuse_unlabelled(engine: Engine, run: int) -> None:
    """Refuse connections that lose the run's label on their way: what is written by them could not be undone.

    Raises:
        PoolerError: a pooler drops the label, or refuses it.
        UnreachableError: the server does not answer, or lets this login not in.

    """
    try:
        with db.reaching(engine.url), engine.connect() as connection:
            carried = connection.scalar(LABEL, {"setting": label.SETTING})
    except PoolerError:
        carried = None
    if carried != str(run):
        raise PoolerError(
            f"{masked(engine.url)} leads through a pooler, which drops the label of a test run: "
            "name PostgreSQL itself in DATABASE_URL"
        )


@contextmanager
def tracked(metadata: str = "", migrate: str = "", *, name: str = "tracked()") -> Iterator[Run]:
    """Undo everything that is written inside, also by threads and child processes; outside of pytest.

    Args:
        metadata: the tables, as package.module:attribute; Helios's own if empty.
        migrate: the function(connection) that makes them, written likewise.
        name: what the story calls it.

    Raises:
        HeliosError: the database is production, or something could not be undone; the message lists it.

    """
    run = Run.begin(subject_of(metadata, migrate))
    if run.untriggered:
        log.warning(story.untriggered(run.untriggered))
    try:
        run.enter(name)
        yield run
    finally:
        run.tracker.test = ""
        run.end()
        for each in run.tracker.unseen:
            log.warning("%s %s", each.test, each)
    if run.failures:
        raise HeliosError("; ".join(run.failures))
