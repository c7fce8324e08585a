"""What a conversion of the klines would do: looked up, nothing changed."""

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import Connection, text

from helios.errors import InputError, SchemaError
from helios.layout import Layout, layout_of, size_of, version_of
from helios.schema import preparation

OLDEST = (2, 18)  # of TimescaleDB: the first that calls its compression a columnstore
OLDEST_CITUS = (13, 0)  # nothing older was tried
DEFAULT_CHUNK = timedelta(days=28)
SHORTEST_CHUNK, LONGEST_CHUNK = timedelta(days=1), timedelta(days=366)
FACTS = text("""
    SELECT to_regclass(format('%I.klines_next', CAST(:schema AS text))) IS NOT NULL AS begun,
           to_regclass(format('%I.klines_former', CAST(:schema AS text))) IS NOT NULL AS swapped,
           EXISTS (SELECT FROM pg_available_extensions WHERE name = 'timescaledb') AS available,
           current_setting('timescaledb.license', true) AS license
""")
# Asked only where the extension is installed.
OF_CITUS = text("""
    SELECT (SELECT count(*) FROM pg_dist_node WHERE isactive AND shouldhaveshards) AS nodes,
           pg_get_userbyid(relowner)::text AS owner, quote_ident(pg_get_userbyid(relowner)) AS quoted, rolcanlogin
    FROM pg_class JOIN pg_roles ON pg_roles.oid = relowner
    WHERE pg_class.oid = to_regclass(format('%I.klines', CAST(:schema AS text)))
""")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Where the klines are, where they are to go, and what that takes; `rows` is the server's estimate."""

    here: Layout
    to: Layout
    rows: int
    bytes: int
    begun: bool
    swapped: bool
    chunk: timedelta

    @property
    def copies(self) -> bool:
        """Whether rows are to be moved."""
        return self.here is not self.to

    @property
    def sentence(self) -> str:
        """Say what a conversion would do."""
        if not self.copies and (self.begun or self.swapped):
            left = "the table from before" if self.swapped else "the copy that was begun"
            return f"klines are {self.here} already; {left} is dropped"
        if not self.copies:
            done = "; chunks that have ended are compressed" if self.to is Layout.TIMESCALEDB else ": nothing to do"
            return f"klines are {self.here} already{done}"
        goes_on = " (goes on where it was stopped)" if self.begun else ""
        chunks = ""
        if self.to is Layout.TIMESCALEDB:
            chunks = f", in chunks of {self.chunk.days} days that are compressed once they have ended"
        if self.to is Layout.CITUS:
            chunks = ", distributed by instrument"
        return (
            f"about {self.rows:,} klines are copied from {self.here} to {self.to}"
            f"{chunks}, compared, and put in place under a brief lock{goes_on}; until then both need room"
        )


def plan(connection: Connection, schema: str, to: str, chunk: timedelta = DEFAULT_CHUNK) -> Plan:
    """Look up what converting the klines of a schema would take, and refuse what cannot be done.

    Raises:
        InputError: `to` is no layout, or chunks cannot be so long.
        SchemaError: TimescaleDB or Citus is not installed in this database, too old, or not ready for it; or a test run
            has still to undo what it wrote.

    """
    if to not in tuple(Layout):
        raise InputError(f"{to!r} is not a layout of klines: choose from {', '.join(Layout)}")
    if not SHORTEST_CHUNK <= chunk <= LONGEST_CHUNK:
        raise InputError(f"chunks of {chunk.days} days are not to be had: choose from 1 to 366 days")
    here = layout_of(connection, schema)
    facts = connection.execute(FACTS, {"schema": schema}).one()
    if Layout.CITUS in (here, to) and Layout.TIMESCALEDB in (here, to):
        raise SchemaError(f"klines go from {here} to {to} by way of partitions: run with --to partitions before")
    if to == Layout.TIMESCALEDB:
        refuse_unfit(version_of(connection, "timescaledb"), facts.license, available=facts.available)
    if to == Layout.CITUS:
        refuse_unfit_citus(connection, schema)
    preparation.refuse_while_an_undo_is_pending(connection, schema)
    rows, size = size_of(connection, schema, here)
    return Plan(
        here=here,
        to=Layout(to),
        rows=rows,
        bytes=size,
        begun=facts.begun,
        swapped=facts.swapped,
        chunk=chunk,
    )


def refuse_unfit(version: str | None, license_: str | None, *, available: bool) -> None:
    """Refuse a database where TimescaleDB is missing, too old, or may not compress.

    Raises:
        SchemaError: so it is; the message says what to do.

    """
    if version is None and not available:
        raise SchemaError(
            "TimescaleDB is not installed on this server: install its package for this PostgreSQL, add timescaledb to "
            "shared_preload_libraries, restart, and run CREATE EXTENSION timescaledb"
        )
    if version is None:
        raise SchemaError(
            "TimescaleDB is not installed in this database: as its owner run CREATE EXTENSION timescaledb, "
            "with timescaledb in shared_preload_libraries"
        )
    if tuple(int(each) for each in version.split("-")[0].split(".")[:2]) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise SchemaError(f"TimescaleDB {version} is too old: update it to {oldest} or newer (ALTER EXTENSION UPDATE)")
    if license_ not in (None, "timescale"):
        raise SchemaError(
            f"timescaledb.license is {license_!r}, which has no compression: set it to 'timescale' and restart"
        )


def refuse_unfit_citus(connection: Connection, schema: str) -> None:
    """Refuse a database where Citus is missing, too old, without workers, or cannot act as the owner on them.

    Raises:
        SchemaError: so it is; the message says what to do.

    """
    version = version_of(connection, "citus")
    if version is None:
        raise SchemaError(
            "Citus is not installed in this database: install its package on each node, put citus first in "
            "shared_preload_libraries, restart, run CREATE EXTENSION citus in it on each, and citus_add_node() here"
        )
    if tuple(int(each) for each in version.split("-")[0].split(".")[:2]) < OLDEST_CITUS:
        oldest = ".".join(map(str, OLDEST_CITUS))
        raise SchemaError(f"Citus {version} is too old: update it to {oldest} or newer (ALTER EXTENSION UPDATE)")
    facts = connection.execute(OF_CITUS, {"schema": schema}).one()
    if not facts.nodes:
        raise SchemaError("Citus has no node for shards: add one by SELECT citus_add_node('host', 5432)")
    if not facts.rolcanlogin:
        raise SchemaError(
            f"role {facts.owner!r} owns the klines, and Citus cannot connect to its workers as it: run "
            f"ALTER ROLE {facts.quoted} LOGIN (it needs no password), and let pg_hba.conf of the workers trust the "
            "coordinator's connections"
        )
