"""A plan carried out: partitions detached and dropped beside trading, rows deleted in batches.

A partition goes in three steps, each of which a later run takes up where this one was killed:

1. its table is marked as going, and the files that were loaded into it are forgotten, in one transaction;
2. it is detached CONCURRENTLY, which no writer notices; what was interrupted is a partition that is still detaching,
   and is finished by DETACH ... FINALIZE (PostgreSQL, ALTER TABLE);
3. it is dropped, and files loaded into it between are forgotten, in one transaction.

Every statement gives up its place in a lock's queue after DATABASE_LOCK_TIMEOUT and is tried again, for as long as
DATABASE_MIGRATION_WAIT says.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from psycopg2.errorcodes import OBJECT_NOT_IN_PREREQUISITE_STATE
from sqlalchemy import Connection, Delete, Engine, Row, delete, select, text
from sqlalchemy.exc import DBAPIError

from helios import db
from helios.db.outages import code_of
from helios.errors import SchemaError
from helios.models import KlineFile, Order, OrderHistory
from helios.models.orders import OPEN_STATUSES
from helios.retention.planning import MARK, SCHEMA, Part, Plan, Share, State, age_column, parts_of, table_of
from helios.retention.policy import Subject
from helios.schema import preparation
from helios.settings import Settings

Result = TypeVar("Result")
log = logging.getLogger("helios.retention")
BATCH = 5_000  # rows of a transaction: some ten milliseconds, in which nobody waits for long
THEN = "let that end, then retain again, which goes on where this ended"
COMMENT = text("""
    SELECT format('COMMENT ON TABLE %I.%I IS %L',
                  CAST(:schema AS text), CAST(:name AS text), CAST(:comment AS text))
""")
HAS_DEFAULT = text("""
    SELECT partdefid <> 0 FROM pg_partitioned_table
    WHERE partrelid = to_regclass(format('%I.%I', CAST(:schema AS text), CAST(:parent AS text)))
""")


@dataclass(frozen=True)
class Removed:
    """What is gone: a partition (rows as the plan estimated them) or rows of a table, counted."""

    what: str
    rows: int


def apply(settings: Settings, plan: Plan, *, batch: int = BATCH) -> Iterator[Removed]:
    """Remove what a plan shows, one thing after the other; each is gone when it is yielded.

    Raises:
        RightsError: the login of migrations does not own the tables.
        SchemaError: a table did not become free in time, or is not what the plan showed.

    """
    wait = settings.database_migration_wait
    login = db.create_migration_engine(settings)
    with db.reaching(login.url), preparation.alone(login, settings.database_schema, wait):
        engine = db.create_migration_engine(settings, preparation.owner_role(login, settings))
        work = Work(engine, wait, batch)
        for part in plan.going:
            if work.drop(part):
                yield Removed(part.name, part.rows)
        for share in plan.shares:
            yield Removed(share.rule.name, work.delete(share))


@dataclass
class Work:
    """The statements, on an engine of the owner."""

    engine: Engine
    wait: float
    batch: int

    def drop(self, part: Part) -> bool:
        """Detach and drop one partition, or drop what goes at once; False when somebody else has done so."""
        if part.state in (State.CHUNK, State.SHARDED):
            return self.patiently(lambda: self.remove_at_once(part))
        concurrently = self.patiently(lambda: self.mark(part))
        if concurrently is None:
            return False
        if concurrently:
            self.patiently(lambda: self.detach(part))
        self.patiently(lambda: self.remove(part))
        log.debug("dropped %s", part.name)
        return True

    def mark(self, part: Part) -> bool | None:
        """Mark a table as going, and forget the files that were loaded into it.

        Tells whether it may be detached concurrently, which it may not beside a DEFAULT partition; None: it is gone.
        """
        words = MARK.format(interval=part.interval, lower=part.lower.isoformat(), upper=part.upper.isoformat())
        comment = f"Candles of {part.interval} from {part.lower:%Y-%m-%d}; {words}"
        with self.engine.begin() as connection:
            if look(connection, part) is None:
                return None
            self.expect(connection, part)
            quoted = connection.scalar(COMMENT, {"schema": SCHEMA, "name": part.name, "comment": comment})
            run(connection, str(quoted))
            connection.execute(forget_files(part))
            if part.parent is None:  # detached already
                return True
            return not connection.scalar(HAS_DEFAULT, {"schema": SCHEMA, "parent": part.parent})

    def detach(self, part: Part) -> None:
        """Detach a partition while others write; or finish what was begun."""
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            state = self.expect(connection, part)
            if state is State.DETACHED:
                return
            how = "CONCURRENTLY" if state is State.ATTACHED else "FINALIZE"
            try:
                run(connection, f"{self.detaching(part)} {how}")
            except DBAPIError as error:
                if code_of(error.orig) != OBJECT_NOT_IN_PREREQUISITE_STATE:  # another one of the same parent detaches
                    raise
                said = str(error.orig).partition("\n")[0]
                raise SchemaError(f"{part.name} cannot be detached: {said}; finish that, then retain again") from None

    def remove(self, part: Part) -> None:
        """Drop a table; one that could not be detached before is detached here, which stops others for a moment."""
        with self.engine.begin() as connection:
            connection.execute(forget_files(part))
            if self.expect(connection, part) is State.ATTACHED:
                run(connection, self.detaching(part))
            # No statement wrote klines, so no trigger tells the mirrors; where the drop was killed, the next run does.
            mirror = f"SELECT {self.quoted('mirror_series')}(CAST(:part AS regclass))"
            connection.execute(text(mirror), {"part": self.quoted(part.name)})
            run(connection, f"DROP TABLE {self.quoted(part.name)}")

    def remove_at_once(self, part: Part) -> bool:
        """Drop a chunk or shards, and forget the files that were loaded into them; False when they are gone."""
        with self.engine.begin() as connection:
            if look(connection, part) is None:
                return False
            self.expect(connection, part)
            connection.execute(forget_files(part))
            chunk = f"{self.quote(part.home)}.{self.quote(part.name)}"
            mirror = f"SELECT {self.quoted('mirror_series')}(CAST(:part AS regclass))"
            connection.execute(text(mirror), {"part": chunk})
            run(connection, f"DROP TABLE {chunk}")
        return True

    def expect(self, connection: Connection, part: Part) -> State:
        """Find the partition as the plan showed it, and tell where it stands now."""
        found = look(connection, part)
        if found is None or (found.name, found.lower, found.upper) != (part.name, part.lower, part.upper):
            raise SchemaError(f"{part.name} is not what the plan showed: make a new plan; nothing more was dropped")
        return State(found.state)

    def delete(self, share: Share) -> int:
        """Delete old rows in transactions of bounded size; count them."""
        step = self.delete_history if share.rule.subject is Subject.HISTORY else self.delete_rows
        after, total = self.patiently(lambda: step(share, None))
        while after is not None:
            after, rows = self.patiently(partial(step, share, after))
            total += rows
        return total

    def delete_rows(self, share: Share, after: Any) -> tuple[Any, int]:  # noqa: ANN401 - an id, of either type
        """Delete the next old rows by id; the last id, and how many."""
        table = table_of(share.rule.subject)
        old = select(table.c.id).where(age_column(share.rule.subject) < share.cutoff).order_by(table.c.id)
        if after is not None:
            old = old.where(table.c.id > after)
        with self.engine.begin() as connection:
            ids = connection.scalars(old.limit(self.batch)).all()
            gone = connection.execute(delete(table).where(table.c.id.in_(ids))).rowcount if ids else 0
        return (ids[-1] if len(ids) == self.batch else None), gone

    def delete_history(self, share: Share, after: Any) -> tuple[Any, int]:  # noqa: ANN401 - an id, of either type
        """Delete the whole history of the next orders that ended and have not changed since; the last id, how many.

        Whole, because versions have no holes. The orders are held before their history is looked at: the trigger
        writes history only to who holds the order, so nothing can be added between.
        """
        following = select(Order.id).order_by(Order.id).limit(self.batch)
        if after is not None:
            following = following.where(Order.id > after)
        with self.engine.connect().execution_options(isolation_level="READ COMMITTED") as connection:
            ids = connection.scalars(following).all()
            ended = select(Order.id).where(Order.id.in_(ids), Order.status.not_in(OPEN_STATUSES))
            held = connection.scalars(ended.with_for_update(key_share=True, skip_locked=True)).all()
            newer = select(OrderHistory.order_id).where(
                OrderHistory.order_id.in_(held), OrderHistory.recorded_at >= share.cutoff
            )
            young = set(connection.scalars(newer))
            going = [each for each in held if each not in young]
            gone = connection.execute(delete(OrderHistory).where(OrderHistory.order_id.in_(going))).rowcount
            connection.commit()
        return (ids[-1] if len(ids) == self.batch else None), gone

    def patiently(self, action: Callable[[], Result]) -> Result:
        """Do what needs a lock again and again until it is free."""
        return preparation.patiently(self.engine, self.wait, action, THEN)

    def detaching(self, part: Part) -> str:
        """Write the statement that detaches a partition."""
        return f"ALTER TABLE {self.quoted(str(part.parent))} DETACH PARTITION {self.quoted(part.name)}"

    def quoted(self, name: str) -> str:
        """Quote a table with its schema."""
        return f"{self.quote(SCHEMA)}.{self.quote(name)}"

    def quote(self, name: str) -> str:
        """Quote an identifier."""
        return self.engine.dialect.identifier_preparer.quote_identifier(name)


def look(connection: Connection, part: Part) -> Row[Any] | None:
    """Find a partition by its number in the catalog, which no other table will have."""
    found = parts_of(connection, part.oid)
    return found[0] if found else None


def run(connection: Connection, statement: str) -> None:
    """Run a statement as it stands."""
    connection.exec_driver_sql(statement, execution_options={"no_parameters": True})


def forget_files(part: Part) -> Delete:
    """Forget the files with candles of a partition, so that loading one again reads it and writes what is gone."""
    return delete(KlineFile).where(
        KlineFile.interval == part.interval,
        KlineFile.first_open_time < part.upper,
        KlineFile.last_open_time >= part.lower,
    )
