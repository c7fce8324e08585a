"""The five group roles of a schema, and their names.

Roles belong to the whole server, not to a database, so a name is made of both: `<database>_<schema>_<kind>`.
"""

import hashlib
from dataclasses import dataclass

from sqlalchemy import Connection, text

from helios.settings import Settings

LONGEST_NAME = 63  # bytes: PostgreSQL cuts a longer name silently, which would make five roles one


@dataclass(frozen=True, kw_only=True)
class Roles:
    """Group roles (NOLOGIN) that logins join; None where Helios was told to manage none (DATABASE_ROLE_PREFIX=off)."""

    owner: str | None = None
    writer: str | None = None
    reader: str | None = None
    monitor: str | None = None
    relay: str | None = None

    @property
    def managed(self) -> bool:
        """Tell whether Helios makes and grants these roles."""
        return self.owner is not None


def roles_of(settings: Settings, database: str) -> Roles:
    """Name the roles of the schema in this database."""
    prefix = settings.database_role_prefix or f"{database}_{settings.database_schema}"
    if prefix == "off":
        return Roles()
    if prefix.startswith("pg_"):
        prefix = f"db_{prefix}"  # PostgreSQL keeps role names that begin with pg_ for itself
    return Roles(
        owner=role_name(prefix, "owner"),
        writer=role_name(prefix, "writer"),
        reader=role_name(prefix, "reader"),
        monitor=role_name(prefix, "monitor"),
        relay=role_name(prefix, "relay"),
    )


def roles_here(connection: Connection, settings: Settings) -> Roles:
    """Name the roles of the schema in the connected database."""
    return roles_of(settings, str(connection.scalar(text("SELECT current_database()::text"))))


def role_name(prefix: str, kind: str) -> str:
    """Join prefix and kind in at most 63 bytes; what does not fit is replaced by a hash of the whole prefix."""
    name = f"{prefix}_{kind}"
    if len(name.encode()) <= LONGEST_NAME:
        return name
    ending = f"_{hashlib.sha256(prefix.encode()).hexdigest()[:8]}_{kind}"
    return prefix.encode()[: LONGEST_NAME - len(ending)].decode(errors="ignore") + ending


SHARED = text("""
    SELECT role.rolname::text AS role, coalesce(other.datname, '(the whole server)')::text AS place
    FROM pg_roles AS role
    JOIN pg_shdepend AS used ON used.refclassid = 'pg_authid'::regclass AND used.refobjid = role.oid
    LEFT JOIN pg_database AS other ON other.oid = CASE WHEN used.dbid = 0 THEN used.objid ELSE used.dbid END
    WHERE role.rolname = ANY (:roles) AND other.datname <> current_database()
    UNION
    SELECT role.rolname::text, format('schema %s of this database', space.nspname)
    FROM pg_roles AS role, pg_namespace AS space, aclexplode(space.nspacl) AS acl
    WHERE role.rolname = ANY (:roles) AND acl.grantee = role.oid AND space.nspname <> :schema
    ORDER BY 1, 2
""")


def shared_elsewhere(connection: Connection, schema: str, roles: Roles) -> list[tuple[str, str]]:
    """List (role, place) where a role of this schema has rights elsewhere too: whoever joins it gets those as well."""
    if not roles.managed:
        return []
    names = [roles.owner, roles.writer, roles.reader, roles.monitor, roles.relay]
    return [(row.role, row.place) for row in connection.execute(SHARED, {"roles": names, "schema": schema})]
