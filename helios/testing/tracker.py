"""The readable story of a test: which instances its sessions inserted, with their keys, as far as committed.

It guarantees nothing: bulk statements and raw SQL pass by sessions. The undo log sees all; this tells it. Only where
triggers may not be installed, the tracker writes that log as well.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import event, inspect
from sqlalchemy.orm import Mapper, Session, SessionTransaction, scoped_session, sessionmaker

from helios.errors import InputError
from helios.testing.images import Images

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import async_scoped_session, async_sessionmaker

    Followed = sessionmaker[Any] | scoped_session[Any] | async_sessionmaker[Any] | async_scoped_session[Any]
else:
    Followed = object

PENDING = "helios.testing.pending"  # where a session keeps what it has inserted and not yet committed
MirrorKeys = Callable[[object], list[str]]


@dataclass(frozen=True, kw_only=True)
class Inserted:
    """One instance that a session inserted and committed; `mirrors` are the Redis keys that show it."""

    test: str
    table: str
    key: tuple[Any, ...]
    mirrors: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Write it as `orders 0193...`."""
        return f"{self.table} {', '.join(map(str, self.key))}"


@dataclass(frozen=True, kw_only=True)
class Unseen:
    """Rows that were written past the tracker, where it alone follows their table: they stay; 0 are all there were."""

    test: str
    table: str
    rows: int

    def __str__(self) -> str:
        """Write it as the end of a sentence that begins with the test."""
        what = f"wrote {self.rows} rows of {self.table}" if self.rows else f"emptied {self.table}"
        return f"{what}, which the tracker did not see (text SQL, a cursor, a trigger or a cascade): that stays"


@dataclass
class Pending:
    """An inserted instance, and the transaction or savepoint on which its fate hangs."""

    transaction: SessionTransaction | None
    inserted: Inserted


def no_mirrors(_instance: object) -> list[str]:
    """Name no keys: nothing mirrors this metadata."""
    return []


class Tracker:
    """Logs every instance that the followed sessions insert; `test` names whose they are.

    `mirrors` tells the Redis keys that show an instance.
    """

    def __init__(self, mirrors: MirrorKeys = no_mirrors) -> None:
        self.test = ""
        self.mirrors = mirrors
        self.inserted: list[Inserted] = []
        self.unseen: list[Unseen] = []
        self._targets: list[Any] = []
        self._images: Images | None = None

    def follow(self, sessions: Followed) -> None:
        """Log what the sessions of this factory insert: a sessionmaker, scoped_session, or one for asyncio.

        Raises:
            InputError: it is no session factory.

        """
        target = listened(sessions)
        if target in self._targets:
            return
        for name, listener in self._listeners():
            event.listen(target, name, listener)
        self._targets.append(target)

    def write_log(self, log: str, run: int, tables: Mapping[tuple[str, str], int]) -> None:
        """Write the images of these tables, which no trigger watches, to the log of a run from here on."""
        tell = lambda table, rows: self.unseen.append(Unseen(test=self.test, table=table, rows=rows))  # noqa: E731
        self._images = Images(log, run, tables, tell)
        self._images.listen()

    def close(self) -> None:
        """Follow nobody any more."""
        if self._images is not None:
            self._images.close()
            self._images = None
        for target in self._targets:
            for name, listener in self._listeners():
                event.remove(target, name, listener)
        self._targets.clear()

    def of(self, test: str) -> list[Inserted]:
        """List what one test inserted and committed."""
        return [each for each in self.inserted if each.test == test]

    def _listeners(self) -> tuple[tuple[str, Callable[..., None]], ...]:
        return (
            ("after_flush", self._flushed),
            ("after_commit", self._committed),
            ("after_soft_rollback", rolled_back),
            ("after_transaction_end", ended),
        )

    def _flushed(self, session: Session, _context: object) -> None:
        transaction = session.get_nested_transaction() or session.get_transaction()
        for instance in session.new:
            mapper: Mapper[Any] = inspect(instance).mapper
            inserted = Inserted(
                test=self.test,
                table=mapper.local_table.description,
                key=tuple(mapper.primary_key_from_instance(instance)),
                mirrors=tuple(self.mirrors(instance)),
            )
            pending(session).append(Pending(transaction, inserted))

    def _committed(self, session: Session) -> None:
        """Keep what is now certain; what a released savepoint held hangs on the transaction around it."""
        done = session.get_nested_transaction() or session.get_transaction()
        outer = done.parent if done is not None and done.nested else None
        left = []
        for each in pending(session):
            if outer is None:
                self.inserted.append(each.inserted)
            else:
                left.append(Pending(outer, each.inserted) if each.transaction is done else each)
        session.info[PENDING] = left


def pending(session: Session) -> list[Pending]:
    """Give what a session has inserted and not yet committed."""
    found: list[Pending] = session.info.setdefault(PENDING, [])
    return found


def rolled_back(session: Session, transaction: SessionTransaction) -> None:
    """Forget what was taken back with a transaction or savepoint, and with the savepoints inside it."""
    session.info[PENDING] = [each for each in pending(session) if not within(each.transaction, transaction)]


def ended(session: Session, transaction: SessionTransaction) -> None:
    """Forget what a session that was closed without a commit had inserted."""
    if transaction.parent is None:
        session.info[PENDING] = []


def within(inner: SessionTransaction | None, outer: SessionTransaction) -> bool:
    """Tell whether a transaction is another, or a savepoint inside it."""
    while inner is not None and inner is not outer:
        inner = inner.parent
    return inner is outer


def listened(sessions: Followed) -> Any:  # noqa: ANN401 - whatever SQLAlchemy takes as a target of session events
    """Find what SQLAlchemy's events are to listen on; sessions for asyncio do their work in a plain session inside.

    Raises:
        InputError: it is no session factory.

    """
    factory: Any = getattr(sessions, "session_factory", sessions)  # a scoped_session holds its factory
    if isinstance(factory, sessionmaker) or (isinstance(factory, type) and issubclass(factory, Session)):
        return factory
    made = getattr(factory, "class_", None)
    if made is not None and hasattr(made, "sync_session_class"):
        inside = factory.kw.get("sync_session_class")
        if inside is None:
            # a class of its own: listening on the shared one would follow every session of the process
            inside = type("FollowedSession", (made.sync_session_class,), {})
            factory.configure(sync_session_class=inside)
        return inside
    raise InputError(f"{sessions!r} is no session factory: pass a sessionmaker, scoped_session or async_sessionmaker")
