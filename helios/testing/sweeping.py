"""Sweeping: what runs that died had written is undone, by the next run or by `helios sweep`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sqlalchemy import Connection, text

from helios.errors import HeliosError
from helios.schema import environment
from helios.testing import undo
from helios.testing.halves import Halves, joined

if TYPE_CHECKING:
    from helios.testing.subject import Subject
    from helios.testing.undo import Change

LOCK = text("SELECT pg_try_advisory_lock(hashtextextended('helios testing ' || :schema, 0))")
UNLOCK = text("SELECT pg_advisory_unlock(hashtextextended('helios testing ' || :schema, 0))")


@dataclass(frozen=True, kw_only=True)
class Repair:
    """What was undone of dead runs."""

    runs: tuple[int, ...]
    schema: str
    changes: tuple[Change, ...]


def sweep(subject: Subject) -> list[Repair]:
    """Undo what dead runs left in the schema under test, and in those of the workers of pytest-xdist beside it.

    Raises:
        EnvironmentRefusedError: the database is production, or does not say what it is.
        HeliosError: something could not be undone; the log is kept.

    """
    repairs: list[Repair] = []
    with subject.direct() as connection:
        schemas = subject.siblings(connection)
    for schema in schemas:
        own = replace(subject, settings=replace(subject.settings, database_schema=schema))
        with own.direct() as connection, joined(own, connection) as halves, starting(connection, schema):
            repairs += repair(halves, schema, halves.dead())
    return repairs


def repair(halves: Halves, schema: str, dead: list[int]) -> list[Repair]:
    """Undo what dead runs left in one schema, all of them as one: overlapping runs need no order among themselves.

    That nothing could be done about what a run had to leave is told once, at its end.
    """
    if not dead:
        return []
    unfinished = undo.unfinished(halves.connection)
    environment.refuse_production(halves.connection, schema, "undoing a dead test run")
    changes = halves.undo(dead)
    for run in dead:
        halves.close(run)
    if not changes and set(dead) <= set(unfinished):
        return []
    return [Repair(runs=tuple(dead), schema=schema, changes=tuple(changes))]


@contextmanager
def starting(connection: Connection, schema: str, wait: float = 60.0) -> Iterator[None]:
    """Let one run at a time begin, and one sweep: they migrate, install, and undo what is dead.

    Raises:
        HeliosError: another one did not come to its end in time.

    """
    deadline = time.monotonic() + wait
    while not connection.scalar(LOCK, {"schema": schema}):
        if time.monotonic() > deadline:
            raise HeliosError(f"another test run has been beginning in schema {schema!r} for more than {wait:g} s")
        time.sleep(0.02)
    try:
        yield
    finally:
        if not connection.invalidated and not connection.closed:
            connection.scalar(UNLOCK, {"schema": schema})
