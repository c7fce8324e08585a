"""What a database is for - development, test, production - as the database itself remembers it.

The marker is a line in the comment of the schema: only the schema's owner can write it, everybody can read it, and it
needs no table. It names the server and the database it was written in, so that a copy restored elsewhere is not
trusted. A database without a marker, or with one that is not its own, counts as production.
"""

import re
import shlex
from dataclasses import dataclass
from typing import get_args

from sqlalchemy import Connection, text

from helios.errors import EnvironmentRefusedError, RightsError, SchemaError
from helios.settings import Environment

LINE = re.compile(r"^helios environment: (\w+) \(server (\d+), database (\d+)\)$", re.MULTILINE)

LOOK = text("""
    SELECT obj_description(space.oid, 'pg_namespace') AS comment, pg_get_userbyid(space.nspowner)::text AS owner,
           pg_has_role(space.nspowner, 'USAGE') AS mine, current_user::text AS login,
           (SELECT system_identifier FROM pg_control_system()) AS server,
           (SELECT oid::bigint FROM pg_database WHERE datname = current_database()) AS database
    FROM pg_namespace AS space WHERE space.nspname = :schema
""")


@dataclass(frozen=True, kw_only=True)
class Marker:
    """What the schema's marker says: `environment` is what to act on, `reason` why, in words."""

    environment: Environment
    reason: str
    marked: bool


def read(connection: Connection, schema: str) -> Marker:
    """Read the marker on this very connection; unmarked or restored from elsewhere counts as production."""
    row = connection.execute(LOOK, {"schema": schema}).one_or_none()
    if row is None:
        return Marker(environment="production", marked=False, reason=f"schema {schema!r} does not exist")
    found = LINE.search(row.comment or "")
    if found is None:
        return Marker(environment="production", marked=False, reason="it is not marked, which counts as production")
    name, server, database = found.groups()
    if (int(server), int(database)) != (row.server, row.database):
        reason = (
            f"its marker ({name}) was written in another server or database, so this is a copy: it counts as production"
        )
        return Marker(environment="production", marked=False, reason=reason)
    for known in get_args(Environment):
        if name == known:
            return Marker(environment=known, marked=True, reason=f"it is marked {name}")
    reason = f"its marker says {name!r}, which this version does not know: it counts as production"
    return Marker(environment="production", marked=False, reason=reason)


def mark(connection: Connection, schema: str, environment: Environment) -> None:
    """Write the marker, bound to this server and database; the rest of the schema's comment stays.

    Raises:
        SchemaError: the schema does not exist.
        RightsError: the connected role does not own the schema.

    """
    row = connection.execute(LOOK, {"schema": schema}).one_or_none()
    if row is None:
        raise SchemaError(f"schema {schema!r} does not exist: run `helios upgrade` first")
    if not row.mine:
        raise RightsError(
            f"role {row.login!r} does not own schema {schema!r}: run `{command(environment, schema)}` "
            f"as a member of its owner, {row.owner!r}"
        )
    line = f"helios environment: {environment} (server {row.server}, database {row.database})"
    rest = LINE.sub("", row.comment or "").strip("\n")
    comment = f"{line}\n{rest}" if rest else line
    statement = connection.scalar(
        text("SELECT format('COMMENT ON SCHEMA %I IS %L', CAST(:schema AS text), CAST(:comment AS text))"),
        {"schema": schema, "comment": comment},
    )
    connection.exec_driver_sql(str(statement), execution_options={"no_parameters": True})


def refuse_production(connection: Connection, schema: str, action: str) -> None:
    """Let an action pass only where the marker says development or test.

    Raises:
        SchemaError: the schema does not exist.
        EnvironmentRefusedError: the database is production, or counts as it.

    """
    if connection.execute(LOOK, {"schema": schema}).one_or_none() is None:
        raise SchemaError(f"schema {schema!r} does not exist: there is nothing to act on")
    marker = read(connection, schema)
    if marker.environment == "production":
        raise EnvironmentRefusedError(
            f"{action} is refused in schema {schema!r}: {marker.reason}; "
            f"where it holds nothing of value, run `{command('test', schema)}` (or development) first"
        )


def command(environment: Environment, schema: str) -> str:
    """Write the command that marks a schema; it is always named, as DATABASE_SCHEMA may name another one."""
    return f"helios environment set {environment} --schema {shlex.quote(schema)}"
