"""Reading sessions: on a hot standby while it is proved to be no staler than a limit, else on the primary.

The age of a standby cannot be told from the standby alone: the time of the last transaction it replayed grows while an
idle primary has nothing to send, and stays small while a cut-off standby works through what it holds. So the primary is
asked now and then where its log ends. A standby that has replayed the log up to there holds whatever was committed
before that moment: its age is the time since, on this process's own clock.
"""

import time
from collections import deque
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, Executable, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, SessionTransaction, sessionmaker

from helios.db.engines import create_async_engine, create_engine
from helios.db.outages import lost
from helios.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

SECOND = timedelta(seconds=1)
OFTEN = 4  # times in each `max_lag` that the primary is asked, while sessions come
ASIDE = 1.0  # seconds in which a server that failed is left alone
# Of the standby's engine as a whole; of the primary's only this transaction: a connection of which that is taken back
# says BEGIN READ WRITE from then on, which a server refuses that a pooler has put in the primary's place.
ONLY_READS = text("SET TRANSACTION READ ONLY")
READS: dict[str, Any] = {"execution_options": {"postgresql_readonly": True}}
SERVER = "(SELECT system_identifier FROM pg_control_system())"
# Where nothing follows a page's header, the log ends before it: a standby has nothing to replay there.
WRITTEN = text(f"""
    SELECT {SERVER} AS server, substr(pg_walfile_name(written), 1, 8) AS timeline,
           position - CASE WHEN position % segment = 40 THEN 40 WHEN position % page = 24 THEN 24 ELSE 0 END AS position
    FROM (SELECT pg_current_wal_insert_lsn() AS written) AS log,
         LATERAL (SELECT CAST(pg_wal_lsn_diff(written, '0/0') AS bigint) AS position,
                         CAST(current_setting('wal_block_size') AS bigint) AS page,
                         pg_size_bytes(current_setting('wal_segment_size')) AS segment) AS sizes
""")
# The control file tells a new timeline some time after a failover; the receiver at once, where it may be seen.
REPLAYED = text(f"""
    SELECT {SERVER} AS server,
           lpad(upper(to_hex(greatest(
               (SELECT timeline_id FROM pg_control_checkpoint()),
               (SELECT min_recovery_end_timeline FROM pg_control_recovery()),
               (SELECT received_tli FROM pg_stat_wal_receiver)))), 8, '0') AS timeline,
           CAST(pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0') AS bigint) AS position
    WHERE pg_is_in_recovery()
""")


@dataclass(frozen=True)
class Position:
    """How far the log of a server reached at a moment of this process's clock; no earlier than that."""

    moment: float
    server: int
    timeline: str
    position: int


class Route:
    """Decides for each transaction which server it reads from; one for each factory, any thread may use it.

    Args:
        primary: the engine of DATABASE_URL.
        standby: the engine of DATABASE_READ_URL; None always reads from the primary.
        max_lag: how old what a transaction finds may be when it begins; None takes whatever the standby has.

    """

    def __init__(self, primary: Engine, standby: Engine | None, max_lag: timedelta | None) -> None:
        self.primary = primary
        self.standby = standby
        self.max_lag = None if max_lag is None else max_lag.total_seconds()
        self.positions: deque[Position] = deque(maxlen=OFTEN * 4)
        self.primary_aside_until = self.standby_aside_until = 0.0

    def connect(self) -> Connection:
        """Begin a transaction that only reads, on the standby where it is fresh enough, else on the primary."""
        return self.fresh_standby() or begun(self.primary, ONLY_READS)

    def fresh_standby(self) -> Connection | None:
        """Begin a transaction on the standby; None where it does not answer, or cannot be proved to be fresh."""
        if self.standby is None or time.monotonic() < self.standby_aside_until:
            return None
        try:
            connection = begun(self.standby)
        except DBAPIError as error:
            self.leave_aside(error)
            return None
        try:
            if self.is_fresh(connection):
                return connection
        except BaseException:
            connection.close()
            raise
        connection.close()
        return None

    def is_fresh(self, connection: Connection) -> bool:
        """Tell whether a standby is fresh enough; one that fails meanwhile is not."""
        if self.max_lag is None:
            return True
        self.ask_primary_if_due(self.max_lag)  # connected before: that may take long, and a proof grows old
        try:
            return self.age(connection) <= self.max_lag
        except DBAPIError as error:
            self.leave_aside(error)
            return False

    def leave_aside(self, error: DBAPIError) -> None:
        """Ask a standby that is gone no more for a moment: to wait for it would cost more than the primary does."""
        if not lost(error):
            raise error
        self.standby_aside_until = time.monotonic() + ASIDE

    def ask_primary_if_due(self, max_lag: float) -> None:
        """Ask the primary where its log ends; one that does not answer proves nothing, and what was proved still holds.

        No lock is held: two sessions that ask at once do no harm, and an asynchronous one may wait here for another.
        """
        began = time.monotonic()
        if began < self.primary_aside_until:
            return
        if self.positions and began - self.positions[-1].moment < max_lag / OFTEN:
            return
        try:
            with self.primary.connect() as connection:
                began = time.monotonic()  # connecting may have taken long
                self.positions.append(Position(began, *connection.execute(WRITTEN).one()))
        except DBAPIError as error:
            if not lost(error):
                raise
            self.primary_aside_until = time.monotonic() + ASIDE

    def age(self, connection: Connection) -> float:
        """Tell how many seconds old what a standby shows may be; infinite where nothing proves it, or it is no standby.

        Positions on another timeline prove nothing: after a failover an old standby may have replayed what never was.
        """
        row = connection.execute(REPLAYED).one_or_none()
        now = time.monotonic()
        if row is None:  # promoted: it answers, so that nothing else would take its connections out of the pool
            connection.invalidate()
            self.standby_aside_until = now + ASIDE
            return float("inf")
        proofs = (
            now - each.moment
            for each in list(self.positions)
            if (each.server, each.timeline) == (row.server, row.timeline) and each.position <= row.position
        )
        return min(proofs, default=float("inf"))


class ReadSession(Session):
    """A session whose transactions only read, each from the server that its route chooses when it begins.

    `on_standby` tells which: True, False, or None while there is no transaction.
    """

    def __init__(self, bind: Engine, *, route: Route, **options: Any) -> None:  # noqa: ANN401 - SQLAlchemy's own options
        super().__init__(bind, **options)
        self.route = route
        self.connected: Connection | None = None

    def get_bind(self, *_arguments: Any, **_named: Any) -> Connection:  # noqa: ANN401 - SQLAlchemy's own options
        """Give the connection of this transaction."""
        if self.connected is None:
            self.connected = self.route.connect()
        return self.connected

    @property
    def on_standby(self) -> bool | None:
        """Which server answers this transaction."""
        return None if self.connected is None else self.connected.engine is not self.route.primary

    def give_back(self) -> None:
        """Give the connection back to its pool."""
        connected, self.connected = self.connected, None
        if connected is not None:
            connected.close()


@event.listens_for(ReadSession, "after_transaction_end")
def give_back_connection(session: ReadSession, transaction: SessionTransaction) -> None:
    """Let the next transaction choose anew."""
    if transaction.parent is None:
        session.give_back()


def begun(engine: Engine, *statements: Executable) -> Connection:
    """Connect, and begin a transaction with some statements."""
    connection = engine.connect()
    try:
        connection.begin()
        for each in statements:
            connection.execute(each)
    except BaseException:
        connection.close()
        raise
    return connection


def create_read_engine(settings: Settings | None = None, **options: Any) -> Engine | None:  # noqa: ANN401 - SQLAlchemy's own options
    """Make an engine of DATABASE_READ_URL as `create_engine` does, which only reads; None where that is not set."""
    settings = settings or Settings.from_environment()
    if settings.database_read_url is None:
        return None
    return create_engine(replace(settings, database_url=settings.database_read_url), **READS, **options)


def create_async_read_engine(settings: Settings | None = None, **options: Any) -> "AsyncEngine | None":  # noqa: ANN401 - SQLAlchemy's own options
    """Make an asynchronous engine of DATABASE_READ_URL, which only reads; None where that is not set."""
    settings = settings or Settings.from_environment()
    if settings.database_read_url is None:
        return None
    return create_async_engine(replace(settings, database_url=settings.database_read_url), **READS, **options)


def create_read_session_factory(
    engine: Engine, standby: Engine | None, *, max_lag: timedelta | None = SECOND
) -> sessionmaker[ReadSession]:
    """Make the factory of sessions that only read: `with factory() as session:`.

    Each transaction reads from the standby where that is proved to hold what was committed `max_lag` before it began,
    or later; else from the primary, which is asked for a proof a few times in each `max_lag`. A write is refused by
    either.

    Args:
        engine: of the primary, as `create_engine` makes it.
        standby: of the standby, as `create_read_engine` makes it; None always reads from the primary.
        max_lag: how old what a transaction finds may be when it begins; None takes whatever the standby has.

    """
    route = Route(engine, standby, max_lag)
    return sessionmaker(engine, class_=ReadSession, route=route, expire_on_commit=False)


def create_async_read_session_factory(
    engine: "AsyncEngine", standby: "AsyncEngine | None", *, max_lag: timedelta | None = SECOND
) -> "async_sessionmaker[AsyncSession]":
    """Make the factory of asynchronous sessions that only read, as `create_read_session_factory` does.

    Which server answers, `session.sync_session.on_standby` tells.
    """
    from sqlalchemy.ext.asyncio import async_sessionmaker  # noqa: PLC0415 - an extra

    route = Route(engine.sync_engine, None if standby is None else standby.sync_engine, max_lag)
    return async_sessionmaker(engine, sync_session_class=ReadSession, route=route, expire_on_commit=False)
