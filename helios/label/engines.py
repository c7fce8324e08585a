"""Engines that carry the label: at connect, and by replacing pooled connections that carry another one, or none."""

import os
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import ConnectionPoolEntry

from helios import label

NOTED = "helios_test_run"


def follow(engine: Engine, environment: str) -> None:
    """Let the connections of an engine carry the label that this process has at the time.

    A connection that was opened under another label, or before there was one, is replaced when it is next taken out of
    the pool.

    Args:
        engine: one on psycopg2 or psycopg 3; of an asynchronous one its `sync_engine`.
        environment: what this process believes to be; in production a label is refused.

    """

    @event.listens_for(engine, "do_connect")
    def connect_labelled(
        dialect: Dialect, record: ConnectionPoolEntry | None, positional: tuple[Any, ...], named: dict[str, Any]
    ) -> Any:  # noqa: ANN401 - a driver's connection
        run = label.permitted_run(environment)
        if run is None:
            return None  # SQLAlchemy connects as if nobody listened
        if record is not None:
            record.info[NOTED] = run
        options = label.labelled(named.get("options") or os.environ.get("PGOPTIONS", ""), run)
        return dialect.connect(*positional, **{**named, "options": options})

    @event.listens_for(engine, "checkout")
    def replace_if_labelled_otherwise(_connection: object, record: ConnectionPoolEntry, _fairy: object) -> None:
        run = label.permitted_run(environment)
        if run != record.info.get(NOTED):
            raise DisconnectionError(f"opened under the label {record.info.get(NOTED)}, not {run}")
