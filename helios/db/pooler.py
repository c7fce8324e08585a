"""Whether a pooler stands between this process and PostgreSQL, and what is said where a session of one's own is needed.

PostgreSQL tells each new session the number of its server process, to cancel by. A pooler has no server process for a
client yet and makes a number up, so the two differ; what merely forwards bytes changes nothing, and is no pooler.
"""

from typing import Any

import psycopg2
from sqlalchemy import URL, Engine, event
from sqlalchemy.engine.interfaces import Dialect

from helios.errors import PoolerError
from helios.settings import masked

REFUSED = "unsupported startup parameter"  # pgbouncer, of options that would be a session's state


def pooled(connection: Any) -> bool:  # noqa: ANN401 - a driver's connection
    """Tell whether a pooler stands before PostgreSQL; takes a connection of psycopg2 or psycopg 3, and one look."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (process,) = cursor.fetchone()
    if not connection.autocommit:
        connection.rollback()
    return bool(process != connection.info.backend_pid)


def refuse_pooler(connection: Any, url: URL, what: str) -> None:  # noqa: ANN401 - a driver's connection
    """Close a driver's connection that goes through a pooler.

    Raises:
        PoolerError: it does; `what` needs a session of its own.

    """
    if pooled(connection):
        connection.close()
        raise PoolerError(told(url, what))


def told(url: URL, what: str) -> str:
    """Say what is wrong with a pooler, and what to do."""
    return (
        f"{masked(url)} leads through a pooler, which shares its sessions between clients: "
        f"{what} need a direct connection, so name one in DATABASE_MIGRATION_URL"
    )


def stay_direct(engine: Engine, what: str) -> None:
    """Have an engine on psycopg2 refuse to connect through a pooler."""

    @event.listens_for(engine, "do_connect")
    def connect_directly(dialect: Dialect, _record: object, positional: Any, named: dict[str, Any]) -> Any:  # noqa: ANN401 - a driver's arguments and connection
        try:
            connection = dialect.connect(*positional, **named)
        except psycopg2.OperationalError as error:
            if REFUSED in str(error):
                raise PoolerError(told(engine.url, what)) from None
            raise
        refuse_pooler(connection, engine.url, what)
        return connection
