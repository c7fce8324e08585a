"""Tables that belong to somebody else: a role that may read and write them, make a schema for the log, and no more."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from installation import engine_of, login, made, run_sql
from sqlalchemy import URL, MetaData
from undo_shop import SCHEMA, SQL, Shop, tables_of

from helios.schema import environment
from helios.settings import Settings
from helios.testing.run import Run
from helios.testing.subject import Subject

DML = "SELECT, INSERT, UPDATE, DELETE"


@contextmanager
def foreign_shop(cluster: URL) -> Iterator[Shop]:
    """Make a database with the shop; its writer is the plain role."""
    with made(cluster) as url:
        owner, plain, neighbour = login(url, "owner"), login(url, "plain"), login(url, "neighbour")
        run_sql(url, f"ALTER DATABASE {url.database} OWNER TO {owner.username}")
        script = (
            SQL.read_text().replace("{writer}", str(plain.username)).replace("{neighbour}", str(neighbour.username))
        )
        with engine_of(owner).begin() as connection:
            connection.exec_driver_sql(script, execution_options={"no_parameters": True})
            environment.mark(connection, SCHEMA, "test")
        run_sql(
            owner,
            f"REVOKE ALL ON ALL TABLES IN SCHEMA shop FROM {plain.username}",
            f"GRANT {DML} ON ALL TABLES IN SCHEMA shop TO {plain.username}",
            f"GRANT CREATE ON DATABASE {url.database} TO {plain.username}",
        )
        # a foreign key to a partitioned table is reflected as several, to its partitions too
        tables = [each for each in tables_of(owner) if each.name not in ("pins", "slots")]
        yield Shop(url, owner, plain, neighbour, tables)


def subject(shop: Shop, *more: str) -> Subject:
    """Put the tables under test, as their owner knows them."""
    metadata = MetaData(schema=SCHEMA)
    with engine_of(shop.admin).connect() as connection:
        metadata.reflect(connection, only=[each.name for each in shop.tables] + list(more))
    return Subject(settings=Settings.from_environment(), metadata=metadata)


def table(run: Run, name: str) -> Any:
    """Give a table under test."""
    return run.subject.metadata.tables[f"{SCHEMA}.{name}"]
