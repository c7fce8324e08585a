"""Runs: beginning one, marking a point in it, undoing it, ending it, and finding those that died."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from psycopg2.errorcodes import LOCK_NOT_AVAILABLE, UNIQUE_VIOLATION
from sqlalchemy import Connection, CursorResult
from sqlalchemy.exc import DBAPIError

from helios.db.outages import code_of
from helios.errors import HeliosError
from helios.testing.undo.blocking import patiently
from helios.testing.undo.place import log_on, present, quoted, refuse_copied
from helios.testing.undo.place import run as run_sql

PATIENCE = 30.0  # seconds


@dataclass(frozen=True)
class Change:
    """What an undo did with rows of a table: deleted, restored, or kept; `why` says why something was kept."""

    table: str
    what: str
    count: int
    why: str = ""


def begin(connection: Connection, run: int, *, schema: str | None = None) -> None:
    """Register a run and take its lease, which ends with this connection.

    Raises:
        HeliosError: the run is alive already.

    """
    try:
        call(connection, schema, "begin_run", run)
    except DBAPIError as error:
        if code_of(error.orig) in (LOCK_NOT_AVAILABLE, UNIQUE_VIOLATION):
            raise HeliosError(f"test run {run} has begun already: begin another, or undo and close this one") from None
        raise


def mark(connection: Connection, run: int, *, schema: str | None = None, patience: float = PATIENCE) -> int:
    """Give a point to undo back to, once the run's open transactions are over; good for many undos.

    Raises:
        HeliosError: a transaction stays open for longer than `patience` seconds; the message names it.

    """
    action = lambda wait: call(connection, schema, "mark_run", run, milliseconds(wait)).scalar_one()  # noqa: E731
    return int(patiently(connection, patience, f"test run {run}", action))


def undo(
    connection: Connection,
    runs: Iterable[int],
    since: int = 0,
    *,
    schema: str | None = None,
    patience: float = PATIENCE,
) -> list[Change]:
    """Take back what runs wrote after a mark, in one transaction; since 0 all of it, and they may write no more.

    What somebody else changed since, or hangs on, is kept and told once; its image stays in the log, and the next
    undo tries again.

    Raises:
        HeliosError: a run is alive elsewhere, a transaction blocks for longer than `patience` seconds, or a trigger
            changes what is written back. Nothing was changed then, and the log is kept.

    """
    chosen = sorted(set(runs))
    if not chosen:
        return []
    words = "the undo of test run " + ", ".join(map(str, chosen))
    action = lambda wait: call(connection, schema, "undo_runs", chosen, since, milliseconds(wait)).all()  # noqa: E731
    try:
        rows = patiently(connection, patience, words, action)
    except DBAPIError as error:
        said = " ".join(str(error.orig).split("CONTEXT:")[0].split())
        raise HeliosError(f"{words} failed and changed nothing, its log is kept: {said}") from error
    return [Change(row[0], row[1], row[2], row[3]) for row in rows]


def close(connection: Connection, run: int, *, schema: str | None = None, patience: float = PATIENCE) -> None:
    """Give the lease back; a run whose log holds something stays registered, for the next sweep to undo.

    Raises:
        HeliosError: a transaction of the run stays open for longer than `patience` seconds; the message names it.

    """
    action = lambda wait: call(connection, schema, "close_run", run, milliseconds(wait))  # noqa: E731
    patiently(connection, patience, f"closing test run {run}", action)


def dead(connection: Connection, *, schema: str | None = None) -> list[int]:
    """List the runs whose lease nobody holds, the oldest first."""
    return listed(connection, schema, "SELECT {log}.dead_runs()")


def unfinished(connection: Connection, *, schema: str | None = None) -> list[int]:
    """List the runs that ended and could not take back everything, because of others, the oldest first."""
    dead = "SELECT dead FROM {log}.dead_runs() AS dead JOIN {log}._runs ON _runs.id = dead WHERE closed"
    return listed(connection, schema, dead)


def registered(connection: Connection, *, schema: str | None = None) -> list[int]:
    """List all runs that the log knows."""
    return listed(connection, schema, "SELECT id FROM {log}._runs ORDER BY began, id")


def transactions(connection: Connection, run: int, since: int = 0, *, schema: str | None = None) -> list[int]:
    """List the ids, with their epoch, of the transactions that undos after a mark know as the run's or their own."""
    return [int(each) for each in call(connection, schema, "transactions_of", run, since).scalars()]


def beside(connection: Connection, run: int, since: int, *, schema: str | None = None) -> bool:
    """Tell whether other runs are at work, or one has ended after a mark: of its transactions nothing is known then."""
    log = quoted(connection, log_on(connection, schema))
    at_work = set(registered(connection, schema=schema)) - set(unfinished(connection, schema=schema))
    ended = int(run_sql(connection, f"SELECT last_value FROM {log}._ended").scalar_one())  # last: one may end meanwhile
    return ended > since or at_work != {run}


def listed(connection: Connection, schema: str | None, statement: str) -> list[int]:
    """Ask the log for numbers of runs; one that is not installed has none.

    Raises:
        SchemaError: the log was copied from another database, where these runs were.

    """
    log = log_on(connection, schema)
    if not present(connection, log):
        return []
    found = [int(each) for each in run_sql(connection, statement.format(log=quoted(connection, log))).scalars()]
    if found:
        refuse_copied(connection, log)
    return found


def call(connection: Connection, schema: str | None, function: str, *values: object) -> CursorResult[*tuple[Any, ...]]:
    """Call a function of the log."""
    log = quoted(connection, log_on(connection, schema)).replace("%", "%%")
    places = ", ".join(["%s"] * len(values))
    return connection.exec_driver_sql(f"SELECT * FROM {log}.{function}({places})", values)


def milliseconds(seconds: float) -> int:
    """Turn seconds into what lock_timeout takes; 0 would wait for ever."""
    return max(1, round(seconds * 1000))
