"""What happens around the revisions: one migration at a time, the schema made and owned before, all granted after."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from psycopg2.errorcodes import DEADLOCK_DETECTED, LOCK_NOT_AVAILABLE
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from helios.errors import RightsError, SchemaError
from helios.schema import grants
from helios.schema.roles import Roles, roles_here, shared_elsewhere
from helios.settings import Settings

Result = TypeVar("Result")
log = logging.getLogger("helios.schema")

LOCK = text("SELECT pg_try_advisory_lock(hashtextextended(:key, 0))")
LOCK_OR_FAIL = """DO $$ BEGIN
    IF NOT pg_try_advisory_lock(hashtextextended('helios:{schema}', 0)) THEN
        RAISE EXCEPTION 'another migration of schema {schema} is running: wait for it, then run this again';
    END IF;
END $$"""
HOLDER = text("""
    SELECT format('pid %s (%s)', activity.pid, coalesce(nullif(activity.application_name, ''), activity.usename))
    FROM pg_locks AS held JOIN pg_stat_activity AS activity USING (pid)
    WHERE held.locktype = 'advisory' AND held.granted AND held.objsubid = 1
      AND (held.classid::bigint << 32) + held.objid::bigint = hashtextextended(:key, 0)
    LIMIT 1
""")
ONE_AT_A_TIME = text("SELECT pg_advisory_xact_lock(hashtextextended('helios:grants', 0))")
FACTS = text("""
    SELECT current_user::text AS login, current_database()::text AS database,
           to_regnamespace(quote_ident(:schema)) IS NOT NULL AS exists,
           has_database_privilege(current_database(), 'CREATE') AS may_create,
           coalesce(has_schema_privilege(to_regnamespace(quote_ident(:schema))::oid, 'USAGE')
                    AND has_schema_privilege(to_regnamespace(quote_ident(:schema))::oid, 'CREATE'), false) AS may_use,
           (SELECT pg_get_userbyid(nspowner)::text FROM pg_namespace WHERE nspname = :schema) AS keeper,
           quote_ident(:schema) AS quoted_schema, quote_ident(current_user) AS quoted_login
""")
OWNED = text("""
    SELECT pg_get_userbyid(nspowner) = :owner
           AND CASE WHEN current_setting('server_version_num')::int >= 160000 AND NOT rolsuper
                    THEN pg_has_role(nspowner, 'SET') ELSE pg_has_role(nspowner, 'MEMBER') END
    FROM pg_namespace, pg_roles WHERE nspname = :schema AND rolname = current_user
""")
MAY_JOIN = text("SELECT pg_has_role(nspowner, 'MEMBER') FROM pg_namespace WHERE nspname = :schema")
MIGRATES = text("""
    SELECT coalesce((SELECT has_schema_privilege(oid, 'CREATE') OR pg_has_role(nspowner, 'MEMBER')
                     FROM pg_namespace WHERE nspname = :schema), has_database_privilege(current_database(), 'CREATE'))
""")
HOLDERS = text("""
    SELECT string_agg(format('pid %s (%s)', pid, coalesce(nullif(application_name, ''), usename)), ', ' ORDER BY pid)
    FROM pg_stat_activity
    WHERE pid <> pg_backend_pid() AND pid IN (
        SELECT pid FROM pg_locks JOIN pg_class ON pg_class.oid = relation
        WHERE granted AND relkind IN ('r', 'p') AND relnamespace = to_regnamespace(current_schema())
    )
""")
LOG = text("SELECT to_regclass(format('%I._runs', CAST(:log AS text)))::text")


@contextmanager
def alone(engine: Engine, schema: str, wait: float) -> Iterator[Connection]:
    """Hold the migration lock of a schema, waiting up to `wait` seconds for another migration to end.

    The lock is asked for again and again rather than waited for: a waiting statement would hold a snapshot, and an
    index that the other migration builds CONCURRENTLY would wait for that snapshot for ever.

    Raises:
        SchemaError: the other migration did not end in time; the message names it.

    """
    key = f"helios:{schema}"
    deadline, told = time.monotonic() + wait, False
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        while not connection.scalar(LOCK, {"key": key}):
            holder = connection.scalar(HOLDER, {"key": key}) or "another process"
            if time.monotonic() > deadline:
                raise SchemaError(
                    f"{holder} has been migrating schema {schema!r} for more than {wait:g} s: "
                    "wait for it, or raise DATABASE_MIGRATION_WAIT"
                )
            if not told:
                log.info("waiting for %s, which migrates schema %s", holder, schema)
                told = True
            time.sleep(0.1)
        yield connection


def open_runs(connection: Connection, schema: str) -> list[int]:
    """List the test runs that have still to undo what they wrote in a schema, whether they live or have died."""
    log = connection.scalar(LOG, {"log": f"{schema}_undo"})
    if log is None:
        return []
    return list(connection.scalars(text(f"SELECT id FROM {log} WHERE NOT closed ORDER BY began, id")))


def refuse_while_an_undo_is_pending(connection: Connection, schema: str) -> None:
    """Refuse to change tables under a test run: what it has to put back are rows of the tables as they are.

    Raises:
        SchemaError: a run is at work, or has died and waits to be swept.

    """
    if runs := open_runs(connection, schema):
        named = ", ".join(f"test run {run}" for run in runs)
        raise SchemaError(
            f"{named} in schema {schema!r} has still to undo what it wrote: wait for its end, "
            "or, where it has died, run `helios sweep`; then migrate again"
        )


def migrator(connection: Connection, schema: str) -> str | None:
    """Name the connected login if it is one that migrates; a writer's or reader's has no business in the owner role."""
    return (
        connection.scalar(text("SELECT current_user::text"))
        if connection.scalar(MIGRATES, {"schema": schema})
        else None
    )


def owner_role(login: Engine, settings: Settings) -> str | None:
    """Name the role that owns the tables, where the login may become it; None stays the login."""
    with login.connect() as connection:
        roles = roles_here(connection, settings)
        names = {"owner": roles.owner, "schema": settings.database_schema}
        return roles.owner if connection.scalar(OWNED, names) else None


def prepare(engine: Engine, schema: str, roles: Roles, wait: float) -> str | None:
    """Make the schema and its roles where they are missing, in a transaction of its own.

    Gives the owner role that a migration is to become; None where it stays the login.

    Raises:
        RightsError: the role may neither make the schema nor work in it; the message holds the SQL that helps.

    """

    def run() -> str | None:
        with engine.begin() as connection:
            login = check_rights(connection, schema, roles)
            connection.execute(ONE_AT_A_TIME)
            grants.complete(connection, schema, roles, login)
            return roles.owner if connection.scalar(OWNED, {"owner": roles.owner, "schema": schema}) else None

    return patiently(engine, wait, run)


def finish(engine: Engine, schema: str, roles: Roles, wait: float) -> None:
    """Grant what the revisions made, and say what could not be granted."""

    def run() -> list[str]:
        with engine.begin() as connection:
            connection.execute(ONE_AT_A_TIME)
            login = connection.scalar(text("SELECT current_user::text"))
            for role, place in shared_elsewhere(connection, schema, roles):
                log.warning(
                    "role %s also has rights in %s: who joins it has both; see DATABASE_ROLE_PREFIX", role, place
                )
            return grants.complete(connection, schema, roles, login)

    if skipped := patiently(engine, wait, run):
        log.warning(
            "skipped %d statements on roles and grants that this login may not run: "
            "`helios grants --sql` prints them for a role that may",
            len(skipped),
        )


def check_rights(connection: Connection, schema: str, roles: Roles) -> str:
    """Refuse early, with the remedy, where the upgrade could not succeed; return the login's name."""
    facts = connection.execute(FACTS, {"schema": schema}).one()
    if not facts.exists and not facts.may_create:
        raise RightsError(
            f"role {facts.login!r} may not create schema {schema!r} in database {facts.database!r}; "
            f"as the database's owner run: CREATE SCHEMA {facts.quoted_schema} AUTHORIZATION {facts.quoted_login};"
        )
    if facts.exists and not facts.may_use and not connection.scalar(MAY_JOIN, {"schema": schema}):
        if facts.keeper == roles.owner:
            raise RightsError(
                f"role {facts.login!r} may not migrate schema {schema!r} of database {facts.database!r}: "
                f"use a login that is a member of {facts.keeper!r}, in DATABASE_MIGRATION_URL"
            )
        raise RightsError(
            f"role {facts.login!r} may not create tables in schema {schema!r} of database {facts.database!r}; as the "
            f"schema's owner run: GRANT USAGE, CREATE ON SCHEMA {facts.quoted_schema} TO {facts.quoted_login};"
        )
    return str(facts.login)


def patiently(
    engine: Engine,
    wait: float,
    action: Callable[[], Result],
    remedy: str = "let that end, then migrate again; nothing was left half done",
) -> Result:
    """Do an action again and again while other transactions hold the locks it needs, for up to `wait` seconds.

    The action gives up its place in the lock queue after DATABASE_LOCK_TIMEOUT, so that writers behind it never stall
    longer; the pause before the next try lets them catch up.

    Raises:
        SchemaError: the locks did not become free in time; the message names who holds them.

    """
    deadline, pause = time.monotonic() + wait, 0.5
    while True:
        try:
            return action()
        except DBAPIError as error:
            if getattr(error.orig, "pgcode", None) not in (LOCK_NOT_AVAILABLE, DEADLOCK_DETECTED):
                raise
            with engine.connect() as connection:
                holder = connection.scalar(HOLDERS) or "someone who has ended since"
            if time.monotonic() + pause > deadline:
                raise SchemaError(
                    f"a table was in use for more than {wait:g} s (DATABASE_MIGRATION_WAIT), now by {holder}: {remedy}"
                ) from None
            log.info("a table is in use, trying again in %.1f s; its tables are held by %s", pause, holder)
        time.sleep(pause)
        pause = min(pause * 2, 5.0)
