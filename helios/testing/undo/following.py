"""Installing the log: which tables it follows, what it refuses, and what has changed since the last time."""

import hashlib
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Any

from sqlalchemy import Connection, Row, Table, text

from helios.errors import HeliosError, RightsError, SchemaError
from helios.layout import version_of
from helios.schema.environment import refuse_production
from helios.testing.undo.blocking import patiently
from helios.testing.undo.place import (
    COMMENT,
    IDENTITY,
    OF,
    REMEMBERED,
    log_of,
    present,
    quoted,
    refuse_copied,
    run,
    transaction,
)
from helios.testing.undo.tracking import refuse_untrackable

PARTS = ("registry.sql", "follow.sql", "steps.sql", "tracking.sql", "undo.sql")
FORGOTTEN = ("alembic_version",)  # written by migrations, which no test run undoes
PATIENCE = 10.0  # seconds for the locks that triggers need

LOOK = text("""
    SELECT c.oid, wanted.schema, wanted.name, c.relkind IN ('r', 'p') AS is_table, c.relispartition AS is_partition,
           pg_get_userbyid(c.relowner)::text AS owner,
           EXISTS (SELECT FROM pg_index WHERE indrelid = c.oid AND indisprimary) AS has_key,
           EXISTS (SELECT FROM pg_index JOIN pg_attribute ON attrelid = c.oid AND attnum = ANY (indkey)
                   WHERE indrelid = c.oid AND indisprimary AND attgenerated <> '') AS has_generated_key,
           EXISTS (SELECT FROM pg_rewrite WHERE ev_class = c.oid) AS has_rules,
           NOT c.relispartition AND EXISTS (
                   SELECT FROM pg_inherits JOIN pg_class AS parent ON parent.oid = inhparent
                   WHERE inhrelid = c.oid OR inhparent = c.oid AND parent.relkind = 'r') AS inherits,
           (SELECT min(tgname)::text FROM pg_trigger WHERE tgrelid = c.oid AND NOT tgisinternal
                   AND tgtype & 1 = 1 AND tgtype & 2 = 2 AND tgname > '~helios_9' COLLATE "C") AS later_trigger
    FROM unnest(CAST(:schemas AS text[]), CAST(:names AS text[])) AS wanted (schema, name)
    LEFT JOIN pg_namespace AS n ON n.nspname = wanted.schema
    LEFT JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = wanted.name
    ORDER BY wanted.schema, wanted.name
""")
OWNER = text("""
    SELECT pg_get_userbyid(role)::text AS owner, current_user::text AS login,
           CASE WHEN current_setting('server_version_num')::int >= 160000 THEN pg_has_role(role, 'SET')
                ELSE pg_has_role(role, 'MEMBER') END AS acts,
           has_database_privilege(current_database(), 'CREATE') AS creates,
           has_database_privilege(role, current_database(), 'CREATE') AS owner_creates,
           current_database()::text AS database,
           EXISTS (SELECT FROM pg_namespace WHERE nspname = :log) AS exists,
           EXISTS (SELECT FROM pg_namespace JOIN pg_roles ON pg_roles.oid = nspowner
                   WHERE nspname = :log AND rolname = current_user) AS keeps
    FROM pg_namespace
    CROSS JOIN LATERAL (
        -- `public` belongs to a role that stands for the database's owner, and that nobody can become
        SELECT CASE pg_get_userbyid(nspowner) WHEN 'pg_database_owner' THEN datdba ELSE nspowner END AS role
        FROM pg_database WHERE datname = current_database()
    ) AS acting
    WHERE nspname = :schema
""")
USABLE = text("SELECT has_schema_privilege(to_regnamespace(quote_ident(:log))::oid, 'USAGE')")
DONE = """
    SELECT tables.rel
    FROM {log}._tables AS tables, LATERAL (SELECT {log}._suspicious(tables.rel) AS suspicious) AS guard
    WHERE tables.rel = ANY (%(wanted)s) AND tables.shape = {log}._shape_of(tables.rel)
      AND tables.watched = (
        SELECT pg_has_role(nspowner, relowner, 'USAGE') FROM pg_class, pg_namespace
        WHERE pg_class.oid = tables.rel AND pg_namespace.oid = (
            SELECT relnamespace FROM pg_class WHERE oid = '{log}._tables'::regclass))
      AND NOT (tables.watched AND EXISTS (
        SELECT FROM (SELECT tables.rel AS oid UNION SELECT relid FROM pg_partition_tree(tables.rel::regclass)) AS part
        WHERE (SELECT count(*) FROM pg_trigger AS t WHERE tgrelid = part.oid AND tgenabled = 'A' AND (tgname = ANY (
                   ARRAY['!helios_guard', '~helios_1_rows', '~helios_2_hold', '~helios_inserted', '~helios_truncated'])
                   OR tgname = '!helios_guard_insert' AND obj_description(t.oid, 'pg_trigger') = suspicious)) < 6))
"""


def bookkeeping(table: Table) -> bool:
    """Tell whether a table is Helios's own bookkeeping, which is outside of log and digest."""
    return bool(table.info.get("bookkeeping")) or table.name in FORGOTTEN


def install(connection: Connection, schema: str, tables: Iterable[Table]) -> None:
    """Follow these tables from now on; what is followed already as it looks now is left alone.

    Args:
        connection: in autocommit, of a role that is, or may become, the schema's owner; of tables that it does not
            own, the tracker has to write the log.
        schema: names the log, `<schema>_undo`, and its owner.
        tables: of any metadata and of several schemas; bookkeeping is left out, partitions come with their table.

    Raises:
        EnvironmentRefusedError: one of the schemas is production, or not marked.
        SchemaError: a table is not there, or cannot be followed; or the database has Citus.
        RightsError: the role may not make the log's schema, or neither install triggers nor do without.

    """
    default = connection.dialect.default_schema_name or "public"
    wanted = sorted({(each.schema or default, each.name) for each in tables if not bookkeeping(each)})
    for each in sorted({schema, *(name for name, _ in wanted)}):
        refuse_production(connection, each, "installing an undo log, which adds triggers to tables,")
    refuse_citus(connection)
    found = list(
        connection.execute(LOOK, {"schemas": [space for space, _ in wanted], "names": [name for _, name in wanted]})
    )
    for row in found:
        refuse(row)
    log = log_of(schema)
    connection.info[REMEMBERED] = log
    if not up_to_date(connection, log, found):
        patiently(connection, PATIENCE, f"installing {log}", lambda wait: follow(connection, schema, log, found, wait))


def refuse_citus(connection: Connection) -> None:
    """Refuse a database with Citus: it takes no triggers on what it distributes, and carries the log to workers.

    Raises:
        SchemaError: so it is.

    """
    if version_of(connection, "citus") is not None:
        raise SchemaError(
            "the undo log needs triggers, which Citus does not take on shards: run tests on a database without the "
            "extension citus"
        )


def refuse(row: Row[Any]) -> None:
    """Refuse by name what cannot be undone exactly.

    Raises:
        SchemaError: the table cannot be followed; the message says why.

    """
    name = f"{row.schema}.{row.name}"
    reasons = {
        "is not there: migrate first": row.oid is None,
        "is no table: only tables can be undone": row.oid is not None and not row.is_table,
        "is a partition: name the table it belongs to, and it is followed as well": row.is_partition,
        "has no primary key, so its rows cannot be told apart: give it one, or leave it out": row.has_key is False,
        "has a generated column in its primary key, which triggers cannot see: leave it out": row.has_generated_key,
        "has rules, which rewrite what an undo does: leave it out": row.has_rules,
        "inherits, or is inherited from: use partitions, or leave it out": row.inherits,
        f"has a trigger {row.later_trigger!r} that would run after the log's: rename it": row.later_trigger is not None,
    }
    for reason, holds in reasons.items():
        if holds:
            raise SchemaError(f"the undo log cannot follow {name}: it {reason}")


def sources() -> list[str]:
    """Read the SQL that makes the log."""
    return [(files("helios.testing.undo") / each).read_text() for each in PARTS]


def version(connection: Connection) -> str:
    """Tell which SQL made the log, and in which database: in a copy it knows other tables and transactions."""
    made_by = hashlib.sha256("".join(sources()).encode()).hexdigest()[:12]
    return f"helios undo log {made_by}{OF}{connection.scalar(IDENTITY)}"


def up_to_date(connection: Connection, log: str, found: Sequence[Row[Any]]) -> bool:
    """Look without a lock whether all is there."""
    if connection.scalar(COMMENT, {"log": log}) != version(connection):
        return False
    if not connection.scalar(USABLE, {"log": log}):
        return False
    statement = DONE.format(log=quoted(connection, log).replace("%", "%%"))
    wanted = [row.oid for row in found]
    done = connection.exec_driver_sql(statement, {"wanted": wanted}).scalars()
    return set(wanted) == set(done)


def follow(connection: Connection, schema: str, log: str, found: Sequence[Row[Any]], wait: float) -> None:
    """Make the log's schema, functions, tables and triggers, in one transaction and as the schema's owner."""
    with transaction(connection):
        run(connection, f"SET LOCAL lock_timeout = {round(wait * 1000)}")
        connection.execute(
            text("SELECT pg_advisory_xact_lock(hashtextextended(:key, 0))"), {"key": f"helios undo log {log}"}
        )
        become_owner(connection, schema, log, found)
        run(connection, f"SET LOCAL search_path TO {quoted(connection, log)}, pg_temp")
        if connection.scalar(COMMENT, {"log": log}) != version(connection):
            make_functions(connection, log)
        forget_dropped(connection)
        for row in found:
            connection.execute(text("SELECT _follow(:rel), _watch(:rel)"), {"rel": row.oid})
        connection.execute(text("SELECT _finish()"))


def become_owner(connection: Connection, schema: str, log: str, found: Sequence[Row[Any]]) -> None:
    """Take the role that owns the schema for this transaction, and see that it owns the log's schema too.

    A login that may not, but may make the log's schema, owns the log itself: the tracker writes it then.

    Raises:
        RightsError: this login may not; the message says what helps.

    """
    facts = connection.execute(OWNER, {"schema": schema, "log": log}).one()
    quoted_log, quoted_owner = quoted(connection, log), quoted(connection, facts.owner)
    grant = f"GRANT CREATE ON DATABASE {quoted(connection, facts.database)} TO {quoted(connection, facts.login)}"
    if not facts.acts and not (facts.keeps or (not facts.exists and facts.creates)):
        raise RightsError(
            f"role {facts.login!r} may not install the undo log of schema {schema!r}: "
            f"use a login that is a member of its owner {facts.owner!r}, in DATABASE_MIGRATION_URL"
            + ("" if facts.exists else f", or, for the tracker to write it, as the database's owner run: {grant};")
        )
    if facts.acts and not facts.exists and not (facts.creates or facts.owner_creates):
        raise RightsError(
            f"role {facts.login!r} may not create schema {log!r} in database {facts.database!r}; as the database's "
            f"owner run: CREATE SCHEMA {quoted_log} AUTHORIZATION {quoted_owner};"
        )
    if not facts.acts:
        quoted_owner = quoted(connection, facts.login)
    if not facts.exists and facts.creates:
        run(connection, f"CREATE SCHEMA {quoted_log} AUTHORIZATION {quoted_owner}")
    run(connection, f"SET LOCAL ROLE {quoted_owner}")
    if not facts.exists and not facts.creates:
        run(connection, f"CREATE SCHEMA {quoted_log}")
    for row in found:
        refuse_untrackable(connection, row)


def make_functions(connection: Connection, log: str) -> None:
    """Make what all tables share, anew where another version of Helios or another database made it.

    Raises:
        SchemaError: runs of the other version are not undone yet, or cannot be undone in this database.

    """
    if present(connection, log):
        if connection.scalar(text("SELECT count(*) FROM _runs")):
            refuse_copied(connection, log)
            raise SchemaError(
                f"schema {log!r} was made by another version of Helios and holds runs that are not undone: "
                "let them end, or run `helios sweep` with that version first"
            )
        remove_objects(connection, log)
        run(connection, f"SET LOCAL search_path TO {quoted(connection, log)}, pg_temp")
    run(connection, "SET LOCAL check_function_bodies TO off")  # they name each other
    for each in sources():
        run(connection, each)
    run(connection, f"COMMENT ON SCHEMA {quoted(connection, log)} IS '{version(connection)}'")


def remove_objects(connection: Connection, log: str) -> None:
    """Drop everything in the log's schema, triggers that call it included."""
    statement = text("""
        SELECT format('DROP %s IF EXISTS %s CASCADE', kind, name) FROM (
            SELECT 'TABLE' AS kind, oid::regclass::text AS name FROM pg_class
            WHERE relnamespace = to_regnamespace(quote_ident(:log)) AND relkind = 'r'
            UNION ALL
            SELECT 'SEQUENCE', oid::regclass::text FROM pg_class
            WHERE relnamespace = to_regnamespace(quote_ident(:log)) AND relkind = 'S'
            UNION ALL
            SELECT 'FUNCTION', oid::regprocedure::text FROM pg_proc
            WHERE pronamespace = to_regnamespace(quote_ident(:log))
            UNION ALL
            SELECT 'TYPE', oid::regtype::text FROM pg_type
            WHERE typnamespace = to_regnamespace(quote_ident(:log)) AND typname IN ('_change', '_entries')
        ) AS each
    """)
    for each in connection.scalars(statement, {"log": log}).all():
        run(connection, each)


def forget_dropped(connection: Connection) -> None:
    """Forget tables that are gone from the database, with their logs: there is nothing to restore them to."""
    gone = text("DELETE FROM _tables WHERE NOT EXISTS (SELECT FROM pg_class WHERE oid = rel) RETURNING log, plan")
    for row in connection.execute(gone):
        run(connection, f"DROP TABLE IF EXISTS {row.log}, {row.plan}")


def remove(connection: Connection, schema: str) -> None:
    """Take the log and its triggers out again.

    Raises:
        HeliosError: runs are not undone yet.

    """
    log = log_of(schema)
    if not present(connection, log):
        return
    with transaction(connection):
        if run(connection, f"SELECT count(*) FROM {quoted(connection, log)}._runs").scalar():
            raise HeliosError(f"schema {log!r} holds runs that are not undone: run `helios sweep` first")
        remove_objects(connection, log)
        run(connection, f"DROP SCHEMA {quoted(connection, log)}")
