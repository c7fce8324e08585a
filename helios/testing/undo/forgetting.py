"""Letting stand what a run wrote, where somebody has looked at it and wants it so."""

from sqlalchemy import Connection

from helios.testing.undo.place import log_on, quoted, run, transaction


def forget(connection: Connection, number: int, *, schema: str | None = None) -> None:
    """Drop the images of a run, in one transaction, so that nothing of it is undone any more."""
    log = quoted(connection, log_on(connection, schema))
    tables = connection.exec_driver_sql(f"SELECT log FROM {log}._tables".replace("%", "%%")).scalars().all()
    with transaction(connection):
        for table in tables:
            run(connection, f"DELETE FROM {table} WHERE helios_run = {number:d}")
