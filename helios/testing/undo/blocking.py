"""Waiting for locks: not for ever, deadlocks tried again, and who blocks is named."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from psycopg2.errorcodes import DEADLOCK_DETECTED, LOCK_NOT_AVAILABLE
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from helios.db.outages import code_of
from helios.errors import HeliosError

Result = TypeVar("Result")
DEADLOCKS = 5  # with other runs, in a row
QUICK = 0.5  # seconds of waiting before somebody looks who blocks

BLOCKERS = text("""
    WITH blocker AS (SELECT DISTINCT unnest(pg_blocking_pids(:pid)) AS pid)
    SELECT coalesce(
        'pid ' || activity.pid || ' (' || coalesce(nullif(application_name, ''), usename, 'unknown') || ', ' ||
            coalesce(state || '), whose last query was: ' || left(regexp_replace(query, '\\s+', ' ', 'g'), 200),
                     'a member of pg_read_all_stats could see its query)'),
        'a prepared transaction, which COMMIT PREPARED or ROLLBACK PREPARED ends: ' || coalesce((
            SELECT string_agg(quote_literal(gid) || ', prepared ' || prepared, '; ' ORDER BY prepared)
            FROM pg_prepared_xacts WHERE database = current_database()), 'it is gone by now')
    )
    FROM blocker LEFT JOIN pg_stat_activity AS activity ON activity.pid = blocker.pid AND blocker.pid <> 0
""")


def patiently(connection: Connection, patience: float, what: str, action: Callable[[float], Result]) -> Result:
    """Do something that waits for locks for as many seconds as it is told, again after a deadlock.

    Raises:
        HeliosError: somebody holds a lock for longer; the message names who, and what they do.

    """
    deadlocks = 0
    quick = min(QUICK, patience / 2)
    while True:
        with watching(connection, None if quick else patience / 2) as blockers:
            try:
                return action(quick or patience)
            except DBAPIError as error:
                code = code_of(error.orig)
                if code == LOCK_NOT_AVAILABLE and quick:
                    quick = 0.0  # now with somebody who looks who it is
                elif code == LOCK_NOT_AVAILABLE:
                    who = "; ".join(blockers) or "somebody who has ended since"
                    raise HeliosError(
                        f"{what} waited for more than {patience:g} s, blocked by {who}: end that, then try again"
                    ) from None
                elif code == DEADLOCK_DETECTED and deadlocks < DEADLOCKS:
                    deadlocks += 1
                else:
                    raise


@contextmanager
def watching(connection: Connection, after: float | None) -> Iterator[list[str]]:
    """Note who blocks this connection, if it still waits after some seconds; asked on another connection."""
    found: list[str] = []
    if after is None:
        yield found
        return
    driver = connection.connection.driver_connection
    pid = driver.info.backend_pid  # type: ignore[union-attr] # psycopg2's

    def look() -> None:
        with connection.engine.connect() as other:
            found[:] = list(other.scalars(BLOCKERS, {"pid": pid}))

    timer = threading.Timer(after, look)
    timer.daemon = True
    timer.start()
    try:
        yield found
    finally:
        timer.cancel()
        timer.join()
