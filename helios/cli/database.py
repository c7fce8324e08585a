"""Commands of the database: upgrade, downgrade, grants, environment."""

import click

from helios import db
from helios.cli.output import json_option, say, show
from helios.schema import environment as marker
from helios.schema import grants as rights
from helios.schema import migrations
from helios.schema.preparation import migrator
from helios.schema.roles import roles_here
from helios.settings import ENVIRONMENTS, Environment, Settings

sql_option = click.option("--sql", is_flag=True, help="Print the SQL instead of running it.")


@click.command(epilog="Example: helios upgrade --sql | psql -v ON_ERROR_STOP=1 mydatabase")
@click.argument("revision", default="head")
@sql_option
def upgrade(revision: str, *, sql: bool) -> None:
    """Make the schema, its roles and grants, and bring its tables to REVISION (the newest)."""
    migrations.upgrade(revision, sql=sql)


@click.command(epilog="Example: helios downgrade -1", context_settings={"ignore_unknown_options": True})
@click.argument("revision")
@sql_option
def downgrade(revision: str, *, sql: bool) -> None:
    """Take the tables back to REVISION (base: before the first); refused in production."""
    migrations.downgrade(revision, sql=sql)


@click.command(epilog="Example: helios grants --sql | psql --username postgres mydatabase")
@click.option("--sql", is_flag=True, help="Print only the SQL, for a role that may run it.")
@json_option
def grants(*, sql: bool, as_json: bool) -> None:
    """Show which roles and grants are missing, and whether this login may add them."""
    settings = Settings.from_environment()
    engine = db.create_migration_engine(settings)
    with db.connect(engine) as connection:
        roles = roles_here(connection, settings)
        login = migrator(connection, settings.database_schema)
        steps = rights.missing(connection, settings.database_schema, roles, login)
    if sql:
        for step in steps:
            click.echo(f"{step.statement};")
    else:
        rows = [{"missing": step.statement, "this_login_may": step.able} for step in steps]
        show(rows, as_json=as_json, nothing="nothing is missing")


schema_option = click.option(
    "--schema",
    metavar="NAME",
    help="Another schema than Helios's own, such as that of a project that uses the testing kit.",
)


@click.group(invoke_without_command=True, epilog="Example: helios environment set test")
@click.pass_context
@schema_option
@json_option
def environment(context: click.Context, *, schema: str | None, as_json: bool) -> None:
    """Show what this database is for: development, test or production."""
    if context.invoked_subcommand is not None:
        return
    settings = Settings.from_environment()
    with db.connect(db.create_migration_engine(settings)) as connection:
        found = marker.read(connection, schema or settings.database_schema)
    row = {"schema": schema or settings.database_schema, "environment": found.environment, "because": found.reason}
    show([row], as_json=as_json, nothing="")


@environment.command("set", epilog="Example: helios environment set production")
@click.argument("name", type=click.Choice(ENVIRONMENTS))
@schema_option
def set_environment(name: Environment, schema: str | None) -> None:
    """Mark this database, on this server, as NAME."""
    settings = Settings.from_environment()
    with db.connect(db.create_migration_engine(settings)) as connection:
        marker.mark(connection, schema or settings.database_schema, name)
    say(f"schema {schema or settings.database_schema} is marked {name}")
