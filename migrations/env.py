"""What Alembic runs: the schema prepared, the revisions alone and waiting briefly for locks, the grants completed.

`alembic upgrade head` and `helios upgrade` both come here. Everything is read from the environment (helios.settings).
"""

import logging
import logging.config
from typing import Any

from alembic import context
from alembic.autogenerate.api import AutogenContext
from alembic.runtime.migration import MigrationInfo
from sqlalchemy import BLANK_SCHEMA, Engine, MetaData, TypeDecorator, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError

from helios import db
from helios.errors import HeliosError
from helios.schema import environment, grants, migrations, operations, preparation
from helios.schema.roles import roles_here, roles_of
from helios.settings import Settings

operations.register()
log = logging.getLogger("helios.schema")

# made at run time, and so no part of the models
PARTITIONS = text("SELECT relname::text FROM pg_class WHERE relispartition AND relnamespace = to_regnamespace(:schema)")


def models_without_schema() -> MetaData:
    """Copy the models' tables into no schema: revisions name none, the connection's search_path does."""
    from helios.models import metadata  # noqa: PLC0415 - only commands that compare the models wait for them

    target = MetaData(naming_convention=metadata.naming_convention)
    for table in metadata.sorted_tables:
        table.to_metadata(target, schema=None, referred_schema_fn=lambda *_: BLANK_SCHEMA)
    return target


def as_plain_type(kind: str, item: Any, _context: AutogenContext) -> str | bool:  # noqa: ANN401 - Alembic's hook
    """Write a type of Helios's own as the SQL type below it, because revisions import only alembic and sqlalchemy."""
    if kind == "type" and isinstance(item, TypeDecorator):
        return f"sa.{item.impl_instance!r}"
    return False


def tell(*, step: MigrationInfo, **_: object) -> None:
    """Say which revision was applied or taken back."""
    if context.is_offline_mode():
        return
    done = "applied" if step.is_upgrade else "took back"
    log.info("%s revision %s: %s", done, step.up_revision_id, step.up_revision.doc)


OPTIONS: dict[str, Any] = {
    "transaction_per_migration": True,
    "compare_server_default": True,
    "render_item": as_plain_type,
    "on_version_apply": tell,
}


def online(settings: Settings, command: str) -> None:
    """Run a command on the database; only those that change it prepare anything."""
    with db.reaching(db.migration_url(settings)):
        if command in ("upgrade", "downgrade", "do_stamp"):
            change(settings, command)
        else:
            engine = db.create_migration_engine(settings)
            run(engine, settings.database_schema, target_metadata=models_without_schema())


def change(settings: Settings, command: str) -> None:
    """Upgrade, downgrade or stamp: alone, each revision in its own transaction, retried while a lock is taken."""
    schema, wait = settings.database_schema, settings.database_migration_wait
    login = db.create_migration_engine(settings)
    with preparation.alone(login, schema, wait) as connection:
        preparation.refuse_while_an_undo_is_pending(connection, schema)
        if command == "downgrade":
            environment.refuse_production(connection, schema, "a downgrade, which drops tables with their data,")
        roles = roles_here(connection, settings)
        owner = db.create_migration_engine(settings, preparation.prepare(login, schema, roles, wait))
        stamps = command == "do_stamp"  # which is how a wrong revision is set right
        preparation.patiently(owner, wait, lambda: run(owner, schema, only_known=not stamps, helios_wait=wait))
        preparation.finish(login, schema, roles, wait)
        log.info("schema %s stands at %s", schema, ", ".join(migrations.current(connection, schema)) or "its beginning")
        if settings.migration_url is None and not environment.read(connection, schema).marked:
            environment.mark(connection, schema, "development")  # an embedded server knows what it is for


def run(engine: Engine, schema: str, *, only_known: bool = False, **more: Any) -> None:  # noqa: ANN401 - Alembic's options
    """Run the command's revisions, or its comparison, on one connection; with `only_known`, not on a newer schema."""
    with engine.connect() as connection:
        with connection.begin():  # ended here: Alembic would take an open one for the caller's and commit nothing
            if only_known:
                migrations.refuse_newer(connection, schema, context.script)
            partitions = set(connection.scalars(PARTITIONS, {"schema": schema}))
        context.configure(
            connection=connection,
            include_name=lambda name, kind, _parents: not (kind == "table" and name in partitions),
            **OPTIONS,
            **more,
        )
        with context.begin_transaction():
            context.run_migrations()


def offline(settings: Settings) -> None:
    """Print the whole upgrade as SQL, schema, roles and grants included, for a DBA to read and run with psql."""
    url = settings.migration_url
    schema, roles = settings.database_schema, roles_of(settings, (url and url.database) or "helios")
    dialect = postgresql.dialect(paramstyle="named")
    quote = dialect.identifier_preparer.quote_identifier
    completion = grants.offline(dialect, schema, roles, url.username if url else None)
    context.configure(dialect_name="postgresql", literal_binds=True, dialect_opts={"paramstyle": "named"}, **OPTIONS)
    for statement in (
        preparation.LOCK_OR_FAIL.format(schema=schema),
        f"SET lock_timeout = '{round(settings.database_lock_timeout * 1000)}ms'",
        completion,
        *([f"SET ROLE {quote(roles.owner)}"] if roles.owner else []),
        f"SET search_path TO {quote(schema)}, pg_temp",
    ):
        context.execute(statement)
    with context.begin_transaction():
        context.run_migrations()
    for statement in ("RESET ROLE", completion):
        context.execute(statement)


def main() -> None:
    """Run what Alembic was asked for; on the command line a failure is one sentence and exit status 1."""
    if context.config.config_file_name:
        logging.config.fileConfig(context.config.config_file_name, disable_existing_loggers=False)
    try:
        settings = Settings.from_environment()
        if context.is_offline_mode():
            offline(settings)
        else:
            online(settings, context._proxy.context_opts["fn"].__name__)  # noqa: SLF001 - Alembic tells the command nowhere else
    except (HeliosError, DBAPIError) as error:
        if context.config.cmd_opts is None:
            raise
        said = str(error.orig).partition("\n")[0] if isinstance(error, DBAPIError) else error
        raise SystemExit(f"alembic: {said}") from None


main()
