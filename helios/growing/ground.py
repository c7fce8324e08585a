"""What every place of klines stands on: the copy's name, a statement as it is, a table left to its owner."""

from sqlalchemy import Connection, text

NEXT = "klines_next"
GRANTEES = text("""
    SELECT DISTINCT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END
    FROM pg_class, aclexplode(relacl) WHERE oid = CAST(:name AS regclass) AND grantee <> relowner
""")


def run(connection: Connection, statement: str) -> None:
    """Run a statement as it stands."""
    connection.exec_driver_sql(statement, execution_options={"no_parameters": True})


def take_rights(connection: Connection, name: str) -> None:
    """Take every right on a table, quoted with its schema, from all but its owner: default privileges gave some."""
    for grantee in connection.scalars(GRANTEES, {"name": name}).all():
        run(connection, f"REVOKE ALL ON {name} FROM {grantee}")
