"""Files into empty partitions: filled without their key, which is built at the end, then put in their place.

All of it is one transaction, so a load that is killed leaves nothing: no half table, no right of anybody's. Others see
the old, empty partition until it ends; only then is the interval's table locked, for as long as exchanging takes.
"""

import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from psycopg2.errorcodes import INSUFFICIENT_PRIVILEGE, LOCK_NOT_AVAILABLE, UNIQUE_VIOLATION
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from helios.backfill import tables
from helios.backfill.bounds import Bounds, likely_bounds
from helios.backfill.report import Mode, Report
from helios.backfill.tiers import Tier
from helios.backfill.transform.refusal import OutOfBoundsError, OutOfOrderError
from helios.db.outages import code_of
from helios.errors import HeliosError, InputError, RightsError
from helios.layout import Layout, layout_of
from helios.models import Interval, Kline
from helios.names import quoted

if TYPE_CHECKING:
    from helios.backfill.loading import Load

ONE_WAIT = "500ms"  # for a lock: whoever comes behind waits no longer than that
SORTING = "256MB"  # of memory, for building a key
PATIENCE = 60.0  # seconds of such waits in all
CHANGED = ("role", "maintenance_work_mem", "lock_timeout")  # settings that are the caller's own again at the end


@dataclass
class Initial:
    """Partitions on their way to be filled, in one transaction of a connection."""

    connection: Connection
    leaves: dict[tuple[Interval, int], str] = field(default_factory=dict)
    staged: set[tuple[Interval, int]] = field(default_factory=set)  # leaves that hang on a stage

    def __post_init__(self) -> None:
        """Note where the tables are."""
        self.schema = quoted(str(Kline.__table__.schema))
        self.refuse_unfit()
        self.become_owner()
        self.backend = self.ask("SELECT pg_backend_pid()")  # in names, so that two loads do not meet

    def fill(self, load: "Load") -> Report:
        """Copy a file into new partitions.

        Raises:
            InputError: the file cannot be used, or a partition holds rows already.

        """
        likely = None if load.strict else likely_bounds(load.source, load.file)
        if likely:
            with suppress(OutOfBoundsError):
                return self.filled(load, likely)
        try:
            return self.filled(load, load.looked_at())
        except OutOfBoundsError:
            raise InputError(f"{load.source.path} changed while it was read: load it again") from None

    def filled(self, load: "Load", bounds: Bounds) -> Report:
        """Copy a file whose range is known: each year straight into its partition, where the rows come in order.

        Letting the server send each row to its partition costs a third of a load: it writes the row twice, and
        unpacks it again for its checks.
        """
        interval, years = load.source.interval, bounds.years
        for year in years:
            self.make_leaf(interval, year)
        if load.tier is Tier.FAST or len(years) == 1:
            with suppress(OutOfOrderError):
                return self.copied(load, bounds, [f"{self.schema}.{self.leaves[interval, year]}" for year in years])
        return self.copied(load, bounds, [self.make_stage(interval, years)] if years else [])

    def copied(self, load: "Load", bounds: Bounds, places: list[str]) -> Report:
        """Copy a file into the partitions of its years, or into the one table that is there for all."""
        with self.connection.begin_nested():
            instrument_id = tables.hold_instrument(self.connection, load.source)
            tables.lock_series(self.connection, instrument_id, load.source)
            return load.copied(Mode.INITIAL, bounds, instrument_id, places or [tables.KLINES])

    def refuse_unfit(self) -> None:
        """Refuse klines without partitions, and those being converted, because no trigger notes what is exchanged.

        Raises:
            InputError: so it is.

        """
        layout = layout_of(self.connection, str(Kline.__table__.schema))
        if layout is not Layout.PARTITIONS:
            raise InputError(f"--initial fills partitions, and klines are {layout}: load without --initial")
        if self.ask("SELECT to_regclass(:name) IS NOT NULL", name=f"{self.schema}.klines_next"):
            raise InputError(
                "klines are being converted, and --initial would pass by that: load without --initial, or finish "
                "`helios klines convert` before"
            )

    def become_owner(self) -> None:
        """Act as the role that owns the klines, until the partitions are in their places."""
        statement = "SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = CAST(:klines AS regclass)"
        owner = str(self.ask(statement, klines=tables.KLINES))
        self.before = {name: str(self.ask("SELECT current_setting(:name)", name=name)) for name in CHANGED}
        try:
            self.set("role", owner)
        except DBAPIError as error:
            if code_of(error.orig) != INSUFFICIENT_PRIVILEGE:
                raise
            raise RightsError(
                f"--initial acts as {owner}, who owns the klines, and this login may not: name one that may by "
                "DATABASE_MIGRATION_URL, or load without --initial"
            ) from None

    def name(self, interval: Interval, year: int | None = None) -> str:
        """Name a table as it is called in its place."""
        return f"klines_{interval}" if year is None else f"klines_{interval}_{year}"

    def stage(self, interval: Interval) -> str:
        """Name the table that takes the rows of an interval; it exists in this transaction alone."""
        return f"klines_{interval}_initial_{self.backend}"

    def make_stage(self, interval: Interval, years: list[int]) -> str:
        """Make the table that sends each row to the partition of its year."""
        stage = f"{self.schema}.{self.stage(interval)}"
        self.run(
            f"CREATE TABLE IF NOT EXISTS {stage} (LIKE {self.schema}.{self.name(interval)} INCLUDING ALL "
            "EXCLUDING INDEXES EXCLUDING COMMENTS) PARTITION BY RANGE (open_time)"
        )
        for year in years:
            if (interval, year) not in self.staged:
                self.attach(self.leaves[interval, year], self.stage(interval), year)
                self.staged.add((interval, year))
        return stage

    def make_leaf(self, interval: Interval, year: int) -> None:
        """Make an empty partition without its key, beside the one that it will replace."""
        if (interval, year) in self.leaves:
            return
        name = self.name(interval, year)
        self.ask("SELECT pg_advisory_xact_lock(hashtextextended(:key, 0))", key=f"helios initial {self.schema}.{name}")
        self.refuse_filled(name)
        first, end = span(year)
        leaf = f"{self.stage(interval)}_{year}"
        # With the constraint, attaching has nothing left to look through.
        self.run(
            f"CREATE TABLE {self.schema}.{leaf} (LIKE {self.schema}.{self.name(interval)} INCLUDING ALL "
            f"EXCLUDING INDEXES EXCLUDING COMMENTS, CONSTRAINT fits "
            f"CHECK (\"interval\" = '{interval}' AND open_time >= '{first}' AND open_time < '{end}'))"
        )
        self.leaves[interval, year] = leaf

    def attach(self, leaf: str, parent: str, year: int) -> None:
        """Make a table the partition of a year."""
        first, end = span(year)
        self.run(
            f"ALTER TABLE {self.schema}.{parent} ATTACH PARTITION {self.schema}.{leaf} "
            f"FOR VALUES FROM ('{first}') TO ('{end}')"
        )

    def refuse_filled(self, name: str) -> None:
        """Refuse a partition that is not empty."""
        there = self.ask("SELECT to_regclass(:name) IS NOT NULL", name=f"{self.schema}.{name}")
        if there and self.ask(f"SELECT EXISTS (SELECT FROM {self.schema}.{name})"):
            raise InputError(
                f"partition {name} holds rows, and --initial fills only empty ones: load without --initial"
            )

    def finish(self) -> None:
        """Build the keys, and put the partitions in their places."""
        self.set("maintenance_work_mem", SORTING)
        for interval, year in self.staged:
            leaf = self.leaves[interval, year]
            self.run(f"ALTER TABLE {self.schema}.{self.stage(interval)} DETACH PARTITION {self.schema}.{leaf}")
        for interval in {interval for interval, _ in self.staged}:
            self.run(f"DROP TABLE {self.schema}.{self.stage(interval)}")
        for (interval, year), leaf in self.leaves.items():
            self.build_key(interval, year, leaf)
        for interval in sorted({interval for interval, _ in self.leaves}):
            self.lock(interval)
        # As a writer does: a conversion that begins waits for this, and one that has begun is seen.
        self.run(f"LOCK TABLE ONLY {tables.KLINES} IN ROW EXCLUSIVE MODE")
        self.refuse_unfit()
        for (interval, year), leaf in self.leaves.items():
            self.exchange(interval, year, leaf)
        for setting, value in self.before.items():
            self.set(setting, value)

    def build_key(self, interval: Interval, year: int, leaf: str) -> None:
        """Build the primary key; it fails where two files hold the same candle."""
        key = ", ".join(f'"{column.name}"' for column in Kline.__table__.primary_key)
        try:
            with self.connection.begin_nested():
                self.run(f"ALTER TABLE {self.schema}.{leaf} ADD CONSTRAINT {leaf}_pkey PRIMARY KEY ({key})")
        except DBAPIError as error:
            if code_of(error.orig) != UNIQUE_VIOLATION:
                raise
            raise InputError(
                f"the files for {self.name(interval, year)} hold some candle twice: load them without --initial"
            ) from None

    def lock(self, interval: Interval) -> None:
        """Lock an interval's table; others wait behind this for half a second at most, then pass before it."""
        klines = f"{self.schema}.{self.name(interval)}"
        # The lock of make_kline_partition(), so that nobody makes the same partition meanwhile.
        self.ask(
            "SELECT pg_advisory_xact_lock(hashtext('make_kline_partition'), CAST(:klines AS regclass)::oid::integer)",
            klines=tables.KLINES,
        )
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                with self.connection.begin_nested():
                    self.set("lock_timeout", ONE_WAIT)
                    self.run(f"LOCK TABLE ONLY {klines} IN ACCESS EXCLUSIVE MODE")
            except DBAPIError as error:
                if code_of(error.orig) != LOCK_NOT_AVAILABLE:
                    raise
                if time.monotonic() > deadline:
                    raise HeliosError(
                        f"{self.name(interval)} was in use for {PATIENCE:.0f} seconds without a break, and nothing was "
                        "loaded: load again when less is going on, or without --initial"
                    ) from None
            else:
                return

    def exchange(self, interval: Interval, year: int, leaf: str) -> None:
        """Put a filled partition in the place of the empty one."""
        name = self.name(interval, year)
        self.refuse_filled(name)  # a feed may have written since
        self.run(f"DROP TABLE IF EXISTS {self.schema}.{name}")
        self.run(f"ALTER TABLE {self.schema}.{leaf} RENAME TO {name}")
        self.run(f"ALTER TABLE {self.schema}.{name} RENAME CONSTRAINT {leaf}_pkey TO {name}_pkey")
        self.run(f"COMMENT ON TABLE {self.schema}.{name} IS 'Candles of {interval} in {year}'")
        self.ask(f"SELECT {self.schema}.leave_to_owner(CAST(:name AS regclass))", name=f"{self.schema}.{name}")
        self.attach(name, self.name(interval), year)
        self.run(f"ALTER TABLE {self.schema}.{name} DROP CONSTRAINT fits")
        # No statement wrote klines itself, so no trigger tells the mirrors.
        self.ask(f"SELECT {self.schema}.mirror_series(CAST(:name AS regclass))", name=f"{self.schema}.{name}")

    def set(self, setting: str, value: str) -> None:
        """Change a setting until the transaction ends."""
        self.ask("SELECT set_config(:setting, :value, true)", setting=setting, value=value)

    def run(self, statement: str) -> None:
        """Run a statement."""
        self.connection.exec_driver_sql(statement.replace("%", "%%"))

    def ask(self, statement: str, **binds: str) -> object:
        """Ask for one value."""
        return self.connection.execute(text(statement), binds).scalar()


def span(year: int) -> tuple[str, str]:
    """Write the first moment of a UTC year, and of the next."""
    return f"{year}-01-01 00:00:00+00", f"{year + 1}-01-01 00:00:00+00"
