"""Tables on which the role of a test run may not install triggers: what it needs instead, and which they are."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Row, text

from helios.errors import RightsError, SchemaError
from helios.testing.undo.place import log_on, quoted, run

RIGHTS = text("""
    SELECT current_user::text AS role, pg_has_role(c.relowner, 'USAGE') AS owns,
           ARRAY(SELECT each FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS each
                 WHERE NOT has_table_privilege(c.oid, each)) AS missing,
           ARRAY(SELECT DISTINCT conrelid::regclass::text FROM pg_constraint
                 WHERE contype = 'f' AND confrelid = c.oid AND NOT has_table_privilege(conrelid, 'SELECT')) AS unread,
           row_security_active(c.oid) AS filtered, current_setting('track_counts')::boolean AS counts
    FROM pg_class AS c WHERE c.oid = :rel
""")


def refuse_untrackable(connection: Connection, row: Row[Any]) -> None:
    """Refuse a table on which this role may neither install triggers, nor let the tracker write the log.

    Raises:
        RightsError: a right is missing; the message holds the SQL that grants it.
        SchemaError: rows are hidden from this role, or the server does not count what is written.

    """
    rights = connection.execute(RIGHTS, {"rel": row.oid}).one()
    if rights.owns:
        return
    name, role = f"{row.schema}.{row.name}", quoted(connection, rights.role)
    if rights.missing or rights.unread:
        needed = f"{', '.join(rights.missing)} ON {name}" if rights.missing else f"SELECT ON {rights.unread[0]}"
        raise RightsError(
            f"role {rights.role!r} may not install triggers on {name}, which {row.owner!r} owns; "
            f"run: GRANT {quoted(connection, row.owner)} TO {role}; "
            f"or, for the tracker to write the log, GRANT {needed} TO {role};"
        )
    if rights.filtered:
        raise SchemaError(
            f"the tracker cannot follow {name}: row-level security hides rows from role {rights.role!r}; "
            f"run: ALTER ROLE {role} BYPASSRLS;"
        )
    if not rights.counts:
        raise SchemaError(f"the tracker cannot follow {name}: track_counts is off; set it on in postgresql.conf")


def unwatched(connection: Connection, *, schema: str | None = None) -> Mapping[tuple[str, str], int]:
    """Give the tables whose log the tracker has to write, with their oids, by schema and name, and let it do so."""
    log = quoted(connection, log_on(connection, schema))
    found = run(
        connection,
        f"SELECT nspname::text, relname::text, rel::bigint FROM {log}._tables JOIN pg_class ON pg_class.oid = rel "
        "JOIN pg_namespace ON pg_namespace.oid = relnamespace WHERE NOT watched ORDER BY 1, 2",
    ).all()
    if found:
        run(connection, f"SELECT {log}.let_writers_in()")
    return {(space, name): number for space, name, number in found}
