"""Migrations from Python: upgrade, downgrade, and which ones a database still lacks.

Everything runs through Alembic and migrations/env.py, so `helios upgrade`, `alembic upgrade head` and these functions
do the same.
"""

from collections.abc import Collection
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

import helios
from helios.errors import SchemaError


def configuration() -> Config:
    """Make Alembic's configuration: the revisions in the installed package, else those beside it in a checkout."""
    package = Path(helios.__file__).parent
    packed = package / "migrations"
    config = Config()
    config.set_main_option(
        "script_location", str(packed if packed.is_dir() else package.parent / "migrations").replace("%", "%%")
    )
    return config


def upgrade(revision: str = "head", *, sql: bool = False) -> None:
    """Bring the schema of the environment's settings to a revision; with `sql`, print the SQL instead.

    Raises:
        HeliosError: the server is unreachable, rights are missing, or another migration does not end.

    """
    command.upgrade(configuration(), revision, sql=sql)


def downgrade(revision: str, *, sql: bool = False) -> None:
    """Take the schema back to a revision (`base`: before the first).

    Raises:
        EnvironmentRefusedError: the database is production, or does not say what it is.

    """
    command.downgrade(configuration(), revision, sql=sql)


def current(connection: Connection, schema: str) -> tuple[str, ...]:
    """Tell at which revision a schema stands; empty when it was never migrated."""
    context = MigrationContext.configure(connection, opts={"version_table_schema": schema})
    return context.get_current_heads()


def pending(connection: Connection, schema: str) -> list[str]:
    """List the revisions that a schema still lacks, first to apply first; what a service asks at its start.

    Raises:
        SchemaError: the schema stands at a revision that this version of Helios does not know.

    """
    script = ScriptDirectory.from_config(configuration())
    known = [revision.revision for revision in script.walk_revisions()]
    applied: set[str] = set()
    for head in known_heads(connection, schema, known):
        applied |= {revision.revision for revision in script.iterate_revisions(head, "base")}
    return [name for name in reversed(known) if name not in applied]


def refuse_newer(connection: Connection, schema: str, script: ScriptDirectory) -> None:
    """Let only revisions that know the one at which a schema stands change it.

    Raises:
        SchemaError: the schema stands at a revision that is none of the script's.

    """
    known_heads(connection, schema, [revision.revision for revision in script.walk_revisions()])


def known_heads(connection: Connection, schema: str, known: Collection[str]) -> tuple[str, ...]:
    """Tell at which revision a schema stands, which has to be one that this version of Helios knows.

    Raises:
        SchemaError: it is none of them.

    """
    heads = current(connection, schema)
    for head in heads:
        if head not in known:
            raise SchemaError(
                f"schema {schema!r} stands at revision {head!r}, which this version of Helios does not know: "
                "install the version that migrated it, or a newer one"
            )
    return heads


def refuse_pending(connection: Connection, schema: str) -> None:
    """Let a program go on only where the schema stands at the revision that this version of Helios works with.

    Raises:
        SchemaError: revisions are lacking, or the schema is ahead.

    """
    if lacking := pending(connection, schema):
        raise SchemaError(f"schema {schema!r} lacks the revisions {', '.join(lacking)}: run `helios upgrade` first")
