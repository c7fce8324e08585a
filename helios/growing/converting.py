"""A conversion carried out: copied in batches, compared, swapped; killed at any moment, the next run goes on."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from typing import TypeVar

from psycopg2.errorcodes import SERIALIZATION_FAILURE
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from helios import db
from helios.db.outages import code_of
from helios.errors import SchemaError
from helios.growing import swapping
from helios.growing.ground import run
from helios.growing.places import Hypertable, place_for
from helios.growing.planning import Plan, plan
from helios.growing.work import AT_ONCE, CHANGES, Batch, Work
from helios.layout import Layout
from helios.schema import preparation
from helios.schema.roles import roles_here
from helios.settings import Settings

Result = TypeVar("Result")
log = logging.getLogger("helios.growing")
FEW = 200  # changes that are taken over under the lock: some milliseconds each at worst
TRIES, LOOKS = 20, 3  # at a batch, of which so many without stopping who writes to shards
# To each worker: Citus changes tables, functions and rows in one transaction no other way.
ONE_CONNECTION = "SET LOCAL citus.multi_shard_modify_mode TO 'sequential'"
THEN = "let that end, then convert again, which goes on where this ended"


class Stage(StrEnum):
    """What a conversion is doing."""

    COPYING = "copying"
    COMPARING = "comparing"
    COMPRESSING = "compressing"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a stage has come, in batches or chunks; `rows` were copied by this run so far."""

    stage: Stage
    done: int
    total: int
    rows: int = 0


def convert(settings: Settings, wanted: Plan) -> Iterator[Progress]:
    """Carry out a plan, and tell how far it has come.

    Raises:
        RightsError: the login of migrations does not own the tables.
        SchemaError: a table did not become free in time, or both sides do not come to agree.

    """
    login = db.create_migration_engine(settings)
    schema, wait = settings.database_schema, settings.database_migration_wait
    with db.reaching(login.url), preparation.alone(login, schema, wait) as connection:
        quoted = str(connection.scalar(text("SELECT quote_ident(:schema)"), {"schema": schema}))
        engine = db.create_migration_engine(settings, preparation.owner_role(login, settings))
        current = plan(connection, schema, wanted.to, wanted.chunk)  # somebody else may have converted meanwhile
        with engine.connect() as held:  # one for all batches
            yield from Conversion(engine, held, quoted, current, wait).run()
        roles = roles_here(connection, settings)
        preparation.finish(login, schema, roles, wait)


@dataclass
class Conversion:
    """The steps, each a transaction or many, on an engine of the owner; the schema is quoted."""

    engine: Engine
    connection: Connection
    schema: str
    plan: Plan
    wait: float

    def __post_init__(self) -> None:
        """Choose the place."""
        self.place = place_for(self.plan, self.schema)

    def run(self) -> Iterator[Progress]:
        """Go through the steps that are still to be done."""
        if self.plan.copies:
            if self.plan.swapped:  # what a run to the other side has left
                self.patiently(lambda: self.in_transaction(self.clean_up))
            if not self.plan.begun:
                self.patiently(self.begin)
            yield from self.copy()
            yield from self.compare()
            self.swap()
        self.patiently(lambda: self.in_transaction(self.clean_up))
        yield from self.compress("klines", datetime.now(UTC))
        if self.plan.copies:
            self.patiently(self.analyze)

    def begin(self) -> None:
        """Make the tables of the conversion; writers wait for the triggers no longer than the lock timeout."""
        with self.working() as work:
            work.begin()

    def copy(self) -> Iterator[Progress]:
        """Copy batch after batch; of a hypertable, each chunk is compressed once the batches have passed it."""
        with self.working() as work:
            total, done, _ = work.count()
            if total == 0:
                work.plan_batches()
                total, done, _ = work.count()
        rows, before = 0, None
        while True:
            with self.working() as work:
                batch = work.following("copied")
                if batch is None:
                    return
                rows += work.copy(batch)
            done += 1
            yield Progress(stage=Stage.COPYING, done=done, total=total, rows=rows)
            if before is not None and batch.first > before:
                for _ in self.compress("klines_next", min(batch.first, datetime.now(UTC))):
                    pass
            before = batch.first

    def compare(self) -> Iterator[Progress]:
        """Take over what changed meanwhile, and compare batch after batch."""
        self.take_over()
        while True:
            with self.working() as work:
                total, _, agreed = work.count()
                batch = work.following("agreed")
            if batch is None:
                return
            self.agree(batch)
            yield Progress(stage=Stage.COMPARING, done=agreed + 1, total=total)

    def agree(self, batch: Batch) -> None:
        """Make a batch equal on both sides; where it is written to at that moment, it takes more than one look.

        Raises:
            SchemaError: it does not come to agree.

        """
        for look in range(TRIES):
            if self.patiently(partial(self.agrees, batch, alone=look >= LOOKS)):
                return
            self.take_over()
        raise SchemaError(
            f"klines of {batch.interval} from {batch.first:%Y-%m-%d} differ from their copy after {TRIES} looks, and "
            "nothing was put in place: somebody writes to partitions or chunks themselves; end that, then convert again"
        )

    def agrees(self, batch: Batch, *, alone: bool) -> bool:
        """Compare a batch, as of one moment on both sides; of shards only `alone`, while writers wait."""
        with self.working(steady=self.plan.here is not Layout.CITUS) as work:
            if alone and self.plan.here is Layout.CITUS:
                run(work.connection, f"LOCK TABLE ONLY {work.klines} IN SHARE ROW EXCLUSIVE MODE")
            while work.take_over() == AT_ONCE:
                pass
            if work.agrees(batch):
                work.done(batch, "agreed")
                return True
            work.distrust(batch)
        return False

    def take_over(self) -> None:
        """Take over what changed, until less than a transaction takes is left; beside writers there is always more."""
        while True:
            with self.working() as work:
                taken = work.take_over()
            if taken < AT_ONCE:
                return

    def swap(self) -> None:
        """Put the copy in the place of klines: all that is left of changes under a brief lock, then the names."""
        self.patiently(lambda: self.in_transaction(lambda work: swapping.dress(work, self.plan.to)))
        for _ in range(TRIES):
            self.take_over()
            if self.patiently(self.try_to_swap):
                return
        raise SchemaError(f"klines change faster than they can be taken over, and nothing was put in place: {THEN}")

    def try_to_swap(self) -> bool:
        """Swap where few enough changes are left; everything is held up meanwhile, for some milliseconds."""
        with self.working() as work:
            run(work.connection, f"LOCK TABLE ONLY {work.klines} IN ACCESS EXCLUSIVE MODE")
            waiting = work.connection.scalar(text(f"SELECT count(*) FROM {self.schema}.{CHANGES}"))
            if int(waiting or 0) > FEW:
                return False
            work.take_over()
            swapping.put_in_place(work, self.plan.to)
        return True

    def clean_up(self, work: Work) -> None:
        """Drop what is left over, now that klines are where they are to be."""
        swapping.clean_up(work.connection, self.schema, self.plan.to if self.plan.copies else self.plan.here)

    def compress(self, table: str, until: datetime) -> Iterator[Progress]:
        """Compress the chunks that have ended, each in a transaction; one that is written to just then is left."""
        if not isinstance(self.place, Hypertable):
            return
        with self.engine.connect() as connection:
            chunks = self.place.ended(connection, table, until)
        for number, chunk in enumerate(chunks, 1):
            self.patiently(partial(self.compress_one, self.place, chunk))
            yield Progress(stage=Stage.COMPRESSING, done=number, total=len(chunks))

    def compress_one(self, place: Hypertable, chunk: str) -> None:
        """Compress a chunk; where TimescaleDB gives way to somebody who writes to it, a later run does."""
        try:
            with self.engine.begin() as connection:
                place.compress(connection, chunk)
        except DBAPIError as error:
            if code_of(error.orig) != SERIALIZATION_FAILURE:
                raise
            log.info("%s is being written to: it is compressed when this is run again", chunk)

    def analyze(self) -> None:
        """Tell the planner what there is now."""
        with self.engine.begin() as connection:
            connection.exec_driver_sql(f"ANALYZE {self.schema}.klines")

    @contextmanager
    def working(self, *, steady: bool = False) -> Iterator[Work]:
        """Work in a transaction; a steady one sees nothing of what others write meanwhile."""
        with self.connection.begin():
            if steady:
                run(self.connection, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                # Before the first look: decompress_chunk() moves rows to where an earlier look finds none of them.
                run(self.connection, f"LOCK TABLE {self.schema}.klines IN ACCESS SHARE MODE")
            if Layout.CITUS in (self.plan.here, self.plan.to):
                run(self.connection, ONE_CONNECTION)
            yield Work(self.connection, self.schema, self.place, self.plan.here)

    def in_transaction(self, action: Callable[[Work], None]) -> None:
        """Do one thing in a transaction."""
        with self.working() as work:
            action(work)

    def patiently(self, action: Callable[[], Result]) -> Result:
        """Do what needs a lock again and again until it is free."""
        return preparation.patiently(self.engine, self.wait, action, THEN)
