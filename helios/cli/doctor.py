"""`helios doctor`: one page on the health of servers, schema, rights, mirrors, partitions and sums."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

import click
import psycopg2
from sqlalchemy import Connection, NullPool, text
from sqlalchemy.exc import DBAPIError

from helios import db, queries
from helios.cli.output import json_option, show
from helios.cli.retain import size
from helios.db.standby import REPLAYED, WRITTEN
from helios.errors import HeliosError, SchemaError
from helios.layout import Layout, layout_of, leaf_of, size_of
from helios.mirrors import Status, statuses
from helios.mirrors.nodes import UNREACHED, nodes_of
from helios.mirrors.status import MOST
from helios.quality.judging import plural
from helios.schema import environment, grants, migrations
from helios.schema.roles import roles_here, shared_elsewhere
from helios.settings import Settings, masked
from helios.testing import undo
from helios.testing.orphans import Rows, links_of
from helios.testing.subject import subject_of


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check found, and what to do where it is wrong."""

    check: str
    ok: bool
    found: str
    remedy: str = ""


SERVER = text("SELECT current_setting('server_version') AS version, current_user::text AS login")
SIZES = text("""
    SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::bigint AS bytes, count(*) AS tables,
           count(*) FILTER (WHERE relispartition) AS partitions
    FROM pg_class WHERE relnamespace = to_regnamespace(:schema) AND relkind = 'r'
""")
MOST_LAG = 1.0  # seconds; a relay that lives says so ten times as often
CATCHES_UP = 2.0  # seconds for a standby to have what was written: the log of an idle server is sent that late
PAUSED = text("SELECT pg_is_wal_replay_paused()")
MOST_UNUSED = 64 << 20  # bytes that the outbox may take where nobody has ever mirrored anything
LEAF = text("SELECT to_regclass(format('%I.%I', CAST(:schema AS text), CAST(:leaf AS text))) IS NOT NULL")
UNDER_WAY = text("SELECT to_regclass(format('%I.klines_next', CAST(:schema AS text))) IS NOT NULL")


@click.command(epilog="Example: helios doctor --json")
@json_option
def doctor(*, as_json: bool) -> int:
    """Check everything and say what is wrong and how to mend it; exit status 1 when something is wrong."""
    findings = list(examine(Settings.from_environment()))
    show([asdict(each) for each in findings], as_json=as_json, nothing="")
    return 0 if all(each.ok for each in findings) else 1


def examine(settings: Settings) -> Iterator[Finding]:
    """Make every check, as far as the ones before allow it."""
    try:
        engine = db.create_migration_engine(settings)
        with db.connect(engine) as connection:
            server = connection.execute(SERVER).one()
            found = f"{server.version} as {server.login} at {masked(engine.url)}"
            yield Finding(check="PostgreSQL", ok=True, found=found)
            yield from examine_schema(connection, settings)
            if settings.database_read_url is not None:
                yield attempt(standby, connection, settings)
    except HeliosError as error:
        remedy = "check DATABASE_URL" if settings.migration_url else "helios up, or set DATABASE_URL"
        yield Finding(check="PostgreSQL", ok=False, found=str(error), remedy=remedy)
    yield redis_answers(settings)


def examine_schema(connection: Connection, settings: Settings) -> Iterator[Finding]:
    """Check the schema, and once its tables are there, what they hold."""
    at = revision(connection, settings)
    yield at
    if migrations.current(connection, settings.database_schema):
        checks: tuple[Callable[[Connection, Settings], Finding], ...] = (
            rights,
            roles_are_its_own,
            marked,
            partitions,
            instruments_are_there,
            positions_are_sums,
            mirrors,
            leftovers,
            sizes,
        )
        for check in checks:
            yield attempt(check, connection, settings)


def attempt(check: Callable[[Connection, Settings], Finding], connection: Connection, settings: Settings) -> Finding:
    """Make one check; what this login may not look at does not stop the others."""
    try:
        with connection.begin_nested():
            return check(connection, settings)
    except (DBAPIError, psycopg2.Error) as error:
        said = str(getattr(error, "orig", error)).partition("\n")[0]
        name = check.__name__.replace("_", " ")
        remedy = "use a login of the reader, writer or owner role, or mend what the server says"
        return Finding(check=name, ok=False, found=f"not checked: {said}", remedy=remedy)


def revision(connection: Connection, settings: Settings) -> Finding:
    """Every migration has been applied."""
    name = "revision"
    try:
        lacking = migrations.pending(connection, settings.database_schema)
    except HeliosError as error:
        return Finding(check=name, ok=False, found=str(error), remedy="install the newer version of Helios")
    at = ", ".join(migrations.current(connection, settings.database_schema)) or "nothing"
    found = f"schema {settings.database_schema} stands at {at}"
    if lacking:
        return Finding(check=name, ok=False, found=f"{found}; lacks {', '.join(lacking)}", remedy="helios upgrade")
    return Finding(check=name, ok=True, found=found)


def rights(connection: Connection, settings: Settings) -> Finding:
    """No role has too few rights, or too many."""
    steps = grants.missing(connection, settings.database_schema, roles_here(connection, settings), None)
    if steps:
        missing = plural(len(steps), "statement is missing", "statements are missing")
        found = f"{missing}, the first: {steps[0].statement}"
        return Finding(check="grants", ok=False, found=found, remedy="helios upgrade, or helios grants --sql")
    return Finding(check="grants", ok=True, found="complete")


def roles_are_its_own(connection: Connection, settings: Settings) -> Finding:
    """No role of this schema has rights elsewhere, which whoever joins it would get as well."""
    roles = roles_here(connection, settings)
    if shared := shared_elsewhere(connection, settings.database_schema, roles):
        found = "; ".join(f"{role} has rights in {place}" for role, place in shared)
        return Finding(check="roles", ok=False, found=found, remedy="give each schema its own DATABASE_ROLE_PREFIX")
    return Finding(check="roles", ok=True, found=f"{roles.owner} and its like" if roles.managed else "none are managed")


def marked(connection: Connection, settings: Settings) -> Finding:
    """The database says what it is for, and this process believes the same."""
    marker = environment.read(connection, settings.database_schema)
    if not marker.marked:
        return Finding(check="environment", ok=False, found=marker.reason, remedy="helios environment set NAME")
    if marker.environment != settings.helios_environment:
        found = f"{marker.reason}, but HELIOS_ENVIRONMENT says {settings.helios_environment}"
        return Finding(check="environment", ok=False, found=found, remedy="set HELIOS_ENVIRONMENT, or mark it anew")
    return Finding(check="environment", ok=True, found=marker.reason)


def partitions(connection: Connection, settings: Settings) -> Finding:
    """Each interval in use has its partitions of this year and the next."""
    if connection.scalar(UNDER_WAY, {"schema": settings.database_schema}):
        found = "klines were being converted when that ended, and changes are noted until it goes on"
        return Finding(check="partitions", ok=False, found=found, remedy="helios klines convert, as before")
    layout = layout_of(connection, settings.database_schema)
    if layout is Layout.TIMESCALEDB:
        return Finding(check="partitions", ok=True, found="klines are a hypertable, which makes its chunks by itself")
    year = datetime.now(UTC).year
    used = sorted({each.interval.value for each in queries.coverage(connection, count=False)})
    wanted = [leaf_of(layout, interval, each) for interval in used for each in (year, year + 1)]
    schema = settings.database_schema
    lacking = [leaf for leaf in wanted if not connection.scalar(LEAF, {"schema": schema, "leaf": leaf})]
    if lacking:
        remedy = "SELECT make_kline_partition(interval, year), as a member of the writer role"
        return Finding(check="partitions", ok=False, found=f"lacks {', '.join(lacking)}", remedy=remedy)
    found = f"ready until {year + 2} for {', '.join(used)}" if used else "no klines yet"
    if layout is Layout.CITUS:
        found = (
            f"shards of Citus, {found}; what is written past Helios's loader and feed the mirrors learn by their audit"
        )
    return Finding(check="partitions", ok=True, found=found)


def instruments_are_there(connection: Connection, _settings: Settings) -> Finding:
    """Every series of klines has its instrument."""
    if ownerless := queries.ownerless_series().rows(connection):
        found = ", ".join(f"{row.interval} of instrument {row.instrument_id}" for row in ownerless)
        remedy = "insert these instruments again with their ids, or delete their klines"
        return Finding(check="instruments", ok=False, found=f"no instrument for {found}", remedy=remedy)
    return Finding(check="instruments", ok=True, found="every series has its instrument")


def positions_are_sums(connection: Connection, _settings: Settings) -> Finding:
    """Every position equals the sum of its fills."""
    if differing := queries.position_differences().rows(connection):
        first = differing[0]
        found = (
            f"{len(differing)} differ from their fills; the first: account {first.account_id}, instrument "
            f"{first.instrument_id}, {first.position_side}: {first.position} against {first.fills}"
        )
        return Finding(check="positions", ok=False, found=found, remedy="read the account's trades from the exchange")
    return Finding(check="positions", ok=True, found="each equals the sum of its fills")


def mirrors(connection: Connection, settings: Settings) -> Finding:
    """Where mirrors are used a relay leads, and nowhere does what waits for one pile up."""
    name = "mirrors"
    try:
        with db.create_redis(settings) as client:
            # The bucket that is the furthest behind speaks for all.
            seen = max(
                statuses(connection.engine, client),
                key=lambda each: math.inf if each.lag_seconds is None else each.lag_seconds,
            )
    except SchemaError as error:
        return Finding(check=name, ok=False, found=str(error), remedy="as it says")
    except (HeliosError, *UNREACHED, ValueError, TypeError):
        return Finding(check=name, ok=True, found="not looked at, for Redis does not answer")
    if seen.lag_seconds is not None and seen.lag_seconds <= MOST_LAG:
        found = f"a relay leads, {seen.lag_seconds:.1f} s behind at most; {waiting(seen)}; helios mirror check compares"
        return Finding(check=name, ok=True, found=found)
    if seen.rebuilt_at is None and seen.backlog_bytes <= MOST_UNUSED:
        return Finding(check=name, ok=True, found="not used")
    if not seen.backlog:
        return Finding(check=name, ok=True, found="no relay runs, and nothing waits; readers ask PostgreSQL")
    last = "ever" if seen.rebuilt_at is None else f"since {seen.last_batch_at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    found = f"nobody has relayed {last}: {waiting(seen)}, readers ask PostgreSQL"
    return Finding(
        check=name, ok=False, found=found, remedy="helios mirror run, as a service; then helios mirror check"
    )


def waiting(seen: Status) -> str:
    """Tell what waits to be mirrored."""
    changes = plural(seen.backlog, "change waits", "or more changes wait" if seen.backlog == MOST else "changes wait")
    return f"{changes}, the outbox takes {seen.backlog_bytes / 2**20:,.1f} MiB"


def leftovers(connection: Connection, settings: Settings) -> Finding:
    """No test run died without its traces being undone; what looks like test data is counted, which is no proof."""
    tables = subject_of().metadata
    rows = list(Rows(connection, tables, links_of(tables)).find())
    looks = plural(len(rows), "row looks", "rows look") if rows else "no row looks"
    suspects = f"{looks} like test data{' (helios orphans)' if rows else ''}"
    try:
        dead = undo.dead(connection)
    except SchemaError as error:
        return Finding(check="leftovers", ok=False, found=str(error), remedy="as it says")
    if dead:
        died = plural(len(dead), "test run died and left what it wrote", "test runs died and left what they wrote")
        found = f"{died}; {suspects}"
        return Finding(check="leftovers", ok=False, found=found, remedy="helios sweep")
    return Finding(
        check="leftovers", ok=True, found=f"no dead test run in schema {settings.database_schema}; {suspects}"
    )


def sizes(connection: Connection, settings: Settings) -> Finding:
    """How much there is; never wrong."""
    schema = settings.database_schema
    row = connection.execute(SIZES, {"schema": schema}).one()
    layout, count = layout_of(connection, schema), row.bytes
    if layout is not Layout.PARTITIONS:  # chunks lie in a schema of their own, shards on the workers
        count += size_of(connection, schema, layout)[1]
    return Finding(
        check="size", ok=True, found=f"{size(count)} in {row.tables} tables, {row.partitions} of them partitions"
    )


def standby(connection: Connection, settings: Settings) -> Finding:
    """DATABASE_READ_URL leads to a standby of this database, which replays what is written."""
    engine = db.create_engine(replace(settings, database_url=settings.database_read_url), poolclass=NullPool)
    try:
        with engine.connect() as there:
            found, remedy = look_at_standby(connection, there)
    except DBAPIError as error:
        found = db.hide(" ".join(str(error.orig).split()), engine.url)
        remedy = "check DATABASE_READ_URL, and that the server runs and lets this login in"
    instead = "; the primary is read instead" if remedy else ""
    return Finding(check="standby", ok=not remedy, found=f"{masked(engine.url)} {found}{instead}", remedy=remedy)


def look_at_standby(primary: Connection, there: Connection) -> tuple[str, str]:
    """Say what a standby is like, and what to do where sessions will not read from it."""
    written, began = primary.execute(WRITTEN).one(), time.monotonic()
    replayed = there.execute(REPLAYED).one_or_none()
    if replayed is None:
        return "is no standby, for it takes writes itself", "name a hot standby in DATABASE_READ_URL, or unset it"
    if (replayed.server, database(there)) != (written.server, database(primary)):
        return "is a standby of another server or database", "name one of DATABASE_URL's in DATABASE_READ_URL"
    if replayed.timeline != written.timeline:
        found = f"follows timeline {replayed.timeline}, and the primary writes {written.timeline}"
        return found, "have it follow this primary: pg_rewind, or make it anew by pg_basebackup"
    while replayed.position < written.position and time.monotonic() < began + CATCHES_UP:
        time.sleep(0.02)
        replayed = there.execute(REPLAYED).one()
    if replayed.position >= written.position:
        return f"had all that was written after {time.monotonic() - began:.1f} s", ""
    found = f"lacks {size(written.position - replayed.position)} of what was written {CATCHES_UP:g} s ago"
    if there.scalar(PAUSED):
        return f"{found}: its replay is paused", "SELECT pg_wal_replay_resume() there, as a superuser"
    return found, "look at pg_stat_replication on the primary, and at the standby's log"


def redis_answers(settings: Settings) -> Finding:
    """Redis answers, and evicts nothing."""
    try:
        with db.create_redis(settings) as client:
            infos = [node.info() for node in nodes_of(client)]
            info = next((each for each in infos if policy_of(each) != "noeviction"), infos[0])
            policy = policy_of(info)
    except HeliosError as error:
        return Finding(
            check="Redis",
            ok=False,
            found=str(error),
            remedy="check REDIS_URL" if settings.redis_url else "helios up, or set REDIS_URL",
        )
    except (*UNREACHED, ValueError, TypeError) as error:  # redis-py reads the URL's parameters only here
        found = db.hide(str(error), db.redis_url(settings))
        return Finding(check="Redis", ok=False, found=found, remedy="check REDIS_URL, and that the server runs")
    version = info.get("valkey_version", info.get("redis_version"))
    if policy != "noeviction":
        remedy = "CONFIG SET maxmemory-policy noeviction"
        return Finding(check="Redis", ok=False, found=f"{version}, which evicts keys ({policy})", remedy=remedy)
    many = f" on {len(infos)} masters" if len(infos) > 1 else ""
    return Finding(check="Redis", ok=True, found=f"{version}{many}, evicts nothing")


def policy_of(info: Mapping[str, Any]) -> str:
    """Tell what a Redis evicts; of INFO, because managed servers refuse CONFIG."""
    return str(info.get("maxmemory_policy", "unknown"))


def database(connection: Connection) -> str:
    """Name the connected database."""
    return str(connection.scalar(text("SELECT current_database()::text")))
