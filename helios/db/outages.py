"""What an error tells about the server: whether the connection is lost, and whether the transaction counts."""

import re

from psycopg2 import errorcodes as codes
from sqlalchemy import Engine, event
from sqlalchemy.engine.interfaces import ExceptionContext
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

ROLLED_BACK = frozenset({codes.SERIALIZATION_FAILURE, codes.DEADLOCK_DETECTED})  # PostgreSQL itself says so
# Shut down, crashed, starting or recovering; and a primary that is a standby now.
GONE = frozenset(
    {codes.ADMIN_SHUTDOWN, codes.CRASH_SHUTDOWN, codes.CANNOT_CONNECT_NOW, codes.READ_ONLY_SQL_TRANSACTION}
)
# A driver has no code of an attempt to connect that failed, but only what the server says, in its own language.
LOGIN_REFUSED_WORDS = re.compile(
    r"authentication failed|pg_hba\.conf|role .+ (does not exist|is not permitted to log in)|no password supplied"
)


def code_of(error: BaseException | None) -> str:
    """Find PostgreSQL's code of a driver's error, in psycopg2 and psycopg 3; empty where it has none."""
    return getattr(error, "pgcode", None) or getattr(error, "sqlstate", None) or ""


def lost(error: DBAPIError) -> bool:
    """Tell whether a connection was lost, could not be made, or leads to a server that takes no writes any longer."""
    code = code_of(error.orig)
    if error.connection_invalidated or code in GONE or code.startswith(codes.CLASS_CONNECTION_EXCEPTION):
        return True
    return without_statement(error) and isinstance(error, (OperationalError, InterfaceError))


def without_statement(error: DBAPIError) -> bool:
    """Tell whether an attempt to connect failed, or a commit that nobody answered: only these have no code either."""
    return error.statement is None and not code_of(error.orig)


def login_refused(error: DBAPIError) -> bool:
    """Tell whether the server is there and lets this login not in; not known where it says so in another language."""
    if without_statement(error):
        return LOGIN_REFUSED_WORDS.search(str(error.orig)) is not None
    return code_of(error.orig).startswith(codes.CLASS_INVALID_AUTHORIZATION_SPECIFICATION)


def leave_standbys(engine: Engine) -> None:
    """Have an engine give up its connections to a server that has become a standby, so that it looks for the primary.

    Such a server answers, so that nothing else would tell: every write would fail until the connection is old.
    """

    @event.listens_for(engine, "handle_error")
    def note_a_standby(context: ExceptionContext) -> None:
        if code_of(context.original_exception) == codes.READ_ONLY_SQL_TRANSACTION and context.connection is not None:
            context.is_disconnect = True
