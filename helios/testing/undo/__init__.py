"""The undo log of PostgreSQL: what labelled connections write is logged by triggers, and taken back exactly.

On tables where a role may not install triggers the tracker writes the log, by functions of tracking.sql.

The log of a schema's tables lies in a schema of its own, `<schema>_undo`, owned by the same role; everything that
works on it is a function there, made by the .sql files beside this one. All functions here take a SQLAlchemy connection
in AUTOCOMMIT on psycopg2, direct and without a pooler between, that belongs to the kit: the one that `begin` was called
on holds the run's lease until it closes.
"""

from helios.testing.undo.digest import digest, objects
from helios.testing.undo.following import bookkeeping, install, remove
from helios.testing.undo.forgetting import forget
from helios.testing.undo.runs import (
    Change,
    begin,
    beside,
    close,
    dead,
    mark,
    registered,
    transactions,
    undo,
    unfinished,
)
from helios.testing.undo.tracking import unwatched

__all__ = [
    "Change",
    "begin",
    "beside",
    "bookkeeping",
    "close",
    "dead",
    "digest",
    "forget",
    "install",
    "mark",
    "objects",
    "registered",
    "remove",
    "transactions",
    "undo",
    "unfinished",
    "unwatched",
]
