"""What is under test: which tables, in which schema of which database, and how they get there."""

import hashlib
import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, MetaData, Table, inspect, text
from sqlalchemy.schema import CreateSchema

from helios import db
from helios import schema as migrations
from helios.errors import EnvironmentRefusedError, InputError
from helios.schema import environment
from helios.settings import Settings, masked

Migrate = Callable[[Connection], object]

HELIOS = "helios.models:metadata"
LONGEST_NAME = 63 - len("_undo")  # bytes: the log's schema is named after the tables' own
WORKER = re.compile(r"_gw\d+$")
MARKED_PRODUCTION = text("""
    SELECT nspname::text FROM pg_namespace
    WHERE obj_description(oid, 'pg_namespace') LIKE '%helios environment: production%' ORDER BY 1 LIMIT 1
""")
SIBLINGS = text("""
    SELECT nspname::text FROM pg_namespace WHERE nspname = :base OR nspname ~ ('^' || :base || '_gw[0-9]+$') ORDER BY 1
""")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The tables under test and where they are; `migrate` makes them, where they are not Helios's own."""

    settings: Settings
    metadata: MetaData
    migrate: Migrate | None = None

    @property
    def schema(self) -> str:
        """The schema of the tables."""
        return self.settings.database_schema

    @property
    def helios(self) -> bool:
        """Whether these are Helios's own tables."""
        return self.metadata is getattr(sys.modules.get("helios.models.base"), "metadata", None)

    @property
    def tables(self) -> list[Table]:
        """The tables under test."""
        return self.metadata.sorted_tables

    @contextmanager
    def direct(self) -> Iterator[Connection]:
        """Open a direct connection without a label and in no transaction; it is closed whatever happens.

        Raises:
            UnreachableError: the server does not answer, or lets this login not in.

        """
        engine = db.create_migration_engine(self.settings)
        with db.reaching(engine.url):
            connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        try:
            yield connection
        finally:
            connection.close()

    def ready(self, connection: Connection) -> bool:
        """Refuse production, and bring the tables up to date; tell whether the schema was made for this run.

        Raises:
            EnvironmentRefusedError: the database is production, or does not say what it is.

        """
        made = not inspect(connection).has_schema(self.schema)
        if made:
            refuse_beside_production(connection, self.schema)
        else:
            environment.refuse_production(connection, self.schema, "a test run, which writes and deletes,")
        if self.helios:
            self.upgrade(connection, made=made)
        else:
            self.make(connection, made=made)
        if made:
            environment.mark(connection, self.schema, "test")
        return made

    def upgrade(self, connection: Connection, *, made: bool) -> None:
        """Apply the revisions of Helios's own tables that are lacking."""
        if made or migrations.pending(connection, self.schema):
            with variables({"DATABASE_SCHEMA": self.schema}):
                migrations.upgrade()

    def make(self, connection: Connection, *, made: bool) -> None:
        """Make or migrate somebody else's tables."""
        if made:
            connection.execute(CreateSchema(self.schema))
        if self.migrate is not None:
            self.migrate(connection)
        elif not set(inspect(connection).get_table_names(self.schema)) & {
            each.name for each in self.metadata.tables.values()
        }:
            self.metadata.create_all(connection)

    def siblings(self, connection: Connection) -> list[str]:
        """List this schema and those of the workers of pytest-xdist beside it, as far as they are there."""
        return list(connection.scalars(SIBLINGS, {"base": WORKER.sub("", self.schema)}))

    def __str__(self) -> str:
        """Name the schema and the server, without any password."""
        url = self.settings.database_url
        tables = "" if self.helios else f"{len(self.metadata.tables)} tables in "
        return f"{tables}schema {self.schema} of {masked(url) if url else 'the embedded PostgreSQL'}"


def subject_of(
    metadata: str = "", migrate: str = "", *, shared: bool = True, setting: str = "helios_metadata"
) -> Subject:
    """Find what is under test: `metadata` and `migrate` are written package.module:attribute, empty for Helios's own.

    Unless `shared`, the tables of a worker of pytest-xdist are moved to a schema of its own. `setting` is where the
    caller read `metadata`, as an error names it.

    Raises:
        InputError: there is no such attribute, or it is no metadata.

    """
    found = load(metadata or HELIOS, setting)
    tables = found if isinstance(found, MetaData) else getattr(found, "metadata", None)
    if not isinstance(tables, MetaData):
        raise InputError(f"{setting}={metadata!r} is {found!r}: name a MetaData, or a declarative base")
    schema = tables.schema or next((each.schema for each in tables.tables.values() if each.schema), None) or "public"
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker and not shared and not schema.endswith(f"_{worker}"):
        move(tables, schema, worker_schema(schema, worker))
        schema = worker_schema(schema, worker)
    return Subject(
        settings=replace(Settings.from_environment(), database_schema=schema),
        metadata=tables,
        migrate=load(migrate, "helios_migrate") if migrate else None,
    )


def load(name: str, setting: str) -> Any:  # noqa: ANN401 - whatever the project has there
    """Import `package.module:attribute`.

    Raises:
        InputError: it is written otherwise, or there is no such thing.

    """
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise InputError(f"{setting}={name!r} names nothing: write package.module:attribute")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        lacking = isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")
        where = "; it is looked for on PYTHONPATH, such as PYTHONPATH=. in your project's folder" if lacking else ""
        raise InputError(f"{setting}={name!r} cannot be imported: {error}{where}") from None
    except AttributeError:
        raise InputError(f"{setting}={name!r}: module {module} has no {attribute!r}") from None


def own_schema(worker: str) -> None:
    """Name a schema of this worker's own in DATABASE_SCHEMA, for everything that is imported from here on."""
    schema = Settings.from_environment().database_schema
    os.environ["DATABASE_SCHEMA"] = worker_schema(schema, worker)


def worker_schema(schema: str, worker: str) -> str:
    """Name the schema of a worker; what does not fit is replaced by a hash."""
    base = WORKER.sub("", schema)
    name = f"{base}_{worker}"
    if len(name.encode()) <= LONGEST_NAME:
        return name
    ending = f"_{hashlib.sha256(base.encode()).hexdigest()[:8]}_{worker}"
    return base.encode()[: LONGEST_NAME - len(ending)].decode(errors="ignore") + ending


def move(metadata: MetaData, schema: str, other: str) -> None:
    """Let the tables of one schema stand in another; statements that name no schema look there as well."""
    if any(table.schema is None for table in metadata.tables.values()):
        os.environ["PGOPTIONS"] = f"{os.environ.get('PGOPTIONS', '')} -c search_path={other}".strip()
    for table in metadata.tables.values():
        if (table.schema or "public") == schema:
            table.schema = other


def named(metadata: str, migrate: str) -> str:
    """Name what is under test, for pytest's header; what is wrong with it is said when it is used."""
    try:
        return str(subject_of(metadata, migrate))
    except InputError as error:
        return str(error)


def refuse_beside_production(connection: Connection, schema: str) -> None:
    """Refuse to make a schema for tests in a database that holds one marked production.

    Raises:
        EnvironmentRefusedError: there is one.

    """
    if beside := connection.scalar(MARKED_PRODUCTION):
        raise EnvironmentRefusedError(
            f"a test run would make schema {schema!r}, but schema {beside!r} of the same database is production: "
            "name another database in DATABASE_URL"
        )


@contextmanager
def variables(wanted: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for a while, for this process and the children that it starts."""
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
