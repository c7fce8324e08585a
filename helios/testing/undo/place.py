"""Where the log of a schema lies, and a transaction on a connection in autocommit."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from psycopg2.extensions import quote_ident
from sqlalchemy import Connection, CursorResult, text

from helios.errors import HeliosError, SchemaError

LONGEST_NAME = 63  # bytes
CURRENT = text("SELECT current_schema()")
PRESENT = text("SELECT to_regclass(format('%I._runs', CAST(:log AS text))) IS NOT NULL")
IDENTITY = text("""
    SELECT (SELECT system_identifier FROM pg_control_system()) || '/'
           || (SELECT oid FROM pg_database WHERE datname = current_database())
""")
COMMENT = text("SELECT obj_description(to_regnamespace(quote_ident(:log)), 'pg_namespace')")
OF = " of database "  # what in the comment of a log's schema stands before the identity of its database
REMEMBERED = "helios undo log"  # in connection.info, which lives as long as the driver's connection


def log_of(schema: str) -> str:
    """Name the schema that holds the log of a schema's tables; a long name ends in a hash."""
    name = f"{schema}_undo"
    if len(name.encode()) <= LONGEST_NAME:
        return name
    ending = f"_{hashlib.sha256(schema.encode()).hexdigest()[:8]}_undo"
    return schema.encode()[: LONGEST_NAME - len(ending)].decode(errors="ignore") + ending


def log_on(connection: Connection, schema: str | None = None) -> str:
    """Name the log to work on: of the schema given, else of the one installed on this connection, else the current."""
    if schema is not None:
        return log_of(schema)
    if REMEMBERED not in connection.info:
        connection.info[REMEMBERED] = log_of(str(connection.scalar(CURRENT)))
    return str(connection.info[REMEMBERED])


def present(connection: Connection, log: str) -> bool:
    """Tell whether the log is installed."""
    return bool(connection.scalar(PRESENT, {"log": log}))


def refuse_copied(connection: Connection, log: str) -> None:
    """Refuse to work with the images of a log that was copied from another database: it had other transactions.

    Raises:
        SchemaError: the log says that it is another database's; the message says what to do.

    """
    _, copied, identity = str(connection.scalar(COMMENT, {"log": log})).partition(OF)
    if copied and identity != connection.scalar(IDENTITY):
        raise SchemaError(
            f"schema {log!r} was copied from another database, with test runs that nothing can undo here: look for "
            f"what they wrote with `helios orphans`, and run: DROP SCHEMA {quoted(connection, log)} CASCADE;"
        )


def quoted(connection: Connection, name: str) -> str:
    """Quote an identifier; not as SQLAlchemy, which doubles every % for the driver."""
    return quote_ident(name, connection.connection.driver_connection)


def run(connection: Connection, statement: str) -> CursorResult[*tuple[Any, ...]]:
    """Run SQL as it stands, of one statement or of many."""
    return connection.exec_driver_sql(statement, execution_options={"no_parameters": True})


@contextmanager
def transaction(connection: Connection, beginning: str = "BEGIN") -> Iterator[None]:
    """Make one transaction of several statements, on a connection that otherwise commits each.

    Raises:
        HeliosError: the connection is not in autocommit.

    """
    if not connection.connection.driver_connection.autocommit:  # type: ignore[union-attr] # psycopg2's
        raise HeliosError(
            "the undo log works on a connection in autocommit: "
            'use engine.connect().execution_options(isolation_level="AUTOCOMMIT")'
        )
    run(connection, beginning)
    try:
        yield
    except BaseException:
        if not connection.invalidated:
            run(connection, "ROLLBACK")
        raise
    run(connection, "COMMIT")
