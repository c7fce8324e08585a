"""The revisions: they make what the models say, whole and in any schema, and take all of it away again."""

import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata, render_python_code
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.operations.ops import CreateTableOp, UpgradeOps
from installation import REVISIONS
from sqlalchemy import BLANK_SCHEMA, URL, Connection, Engine, MetaData, create_engine, text
from sqlalchemy.dialects import postgresql
from tables import SCHEMA, catalog, look_into, run

from helios.models import metadata

EMPTY: dict[str, list[Any]] = {
    subject: []
    for subject in ("tables", "columns", "constraints", "indexes", "partitions", "functions", "triggers", "types")
}


@pytest.fixture
def connection(database: URL) -> Iterator[Connection]:
    """A transaction in a fresh database, with two schemas to work in."""
    engine: Engine = create_engine(database)
    with engine.connect() as connection:
        connection.execute(text(f'CREATE SCHEMA "{SCHEMA}"'))
        connection.execute(text("CREATE SCHEMA other"))
        yield connection
    engine.dispose()


@pytest.fixture
def upgraded_tables(engine: Engine) -> Iterator[Connection]:
    """A transaction in a database with all tables."""
    with engine.connect() as connection:
        yield connection


def plain() -> MetaData:
    """A copy of the models' tables that names no schema."""
    copy = MetaData(naming_convention=metadata.naming_convention)
    for table in metadata.sorted_tables:
        table.to_metadata(copy, schema=None, referred_schema_fn=lambda *_: BLANK_SCHEMA)
    return copy


def differences(connection: Connection, target: MetaData) -> list[Any]:
    """What Alembic would change to make the database of the connection like the target."""
    look_into(connection, SCHEMA)
    partitions = set(connection.scalars(text("SELECT relname::text FROM pg_class WHERE relispartition")))
    context = MigrationContext.configure(
        connection,
        opts={
            "compare_type": True,
            "compare_server_default": True,
            "include_name": lambda name, kind, _: kind != "table" or name not in partitions,
        },
    )
    return list(compare_metadata(context, target))


def test_models_and_tables_agree(upgraded_tables: Connection) -> None:
    """Alembic finds nothing to change, comments and server defaults included."""
    assert [] == differences(upgraded_tables, plain())


def other_comment(target: MetaData) -> None:
    target.tables["orders"].c.price.comment = "something else"


def other_table_comment(target: MetaData) -> None:
    target.tables["orders"].comment = "something else"


def other_default(target: MetaData) -> None:
    target.tables["orders"].c.origin.server_default.arg = "manual"


def other_nullability(target: MetaData) -> None:
    target.tables["klines"].c.trades.nullable = False


@pytest.mark.parametrize("change", [other_comment, other_table_comment, other_default, other_nullability])
def test_a_disagreement_is_found(upgraded_tables: Connection, change: Callable[[MetaData], None]) -> None:
    """The comparison above can fail: each small change of the models shows, and nothing else."""
    target = plain()
    change(target)
    assert 1 == len(differences(upgraded_tables, target))


def test_a_revision_that_alembic_writes_forgets_no_check() -> None:
    """The CHECKs of choices stand at the table, where Alembic finds them for the next revision."""
    written = render_python_code(UpgradeOps([CreateTableOp.from_table(plain().tables["grid_levels"])]))
    for name in ("side", "state", "price_is_positive", "level_is_not_negative"):
        assert f"ck_grid_levels_{name}" in written


def test_the_models_make_the_same_tables(connection: Connection) -> None:
    """Also what Alembic does not compare: CHECKs, names, order of columns, partition keys, fill factors, predicates."""
    run(connection, SCHEMA, "upgrade")
    look_into(connection, "other")
    plain().create_all(connection)
    by_revision, by_models = catalog(connection, SCHEMA), catalog(connection, "other")
    for subject in ("tables", "columns", "constraints", "indexes", "types"):
        assert by_models[subject] == by_revision[subject], subject
        assert by_models[subject] or subject == "types"


def test_downgrade_leaves_nothing(connection: Connection) -> None:
    """Partitions made at run time go too; up again gives what was there before."""
    run(connection, SCHEMA, "upgrade")
    before = catalog(connection, SCHEMA)
    connection.execute(text(f"SELECT \"{SCHEMA}\".make_kline_partition(i, 2031) FROM unnest(ARRAY['1m', '1h']) i"))
    run(connection, SCHEMA, "downgrade")
    assert EMPTY == catalog(connection, SCHEMA)
    run(connection, SCHEMA, "upgrade")
    assert before == catalog(connection, SCHEMA)


def test_two_schemas_do_not_know_of_each_other(connection: Connection) -> None:
    """Both hold the same; one goes, the other works on; nothing is ever made in public."""
    run(connection, SCHEMA, "upgrade")
    run(connection, "other", "upgrade")
    first, second = catalog(connection, SCHEMA), catalog(connection, "other")
    assert first == second
    run(connection, "other", "downgrade")
    assert EMPTY == catalog(connection, "other")
    assert first == catalog(connection, SCHEMA)
    assert EMPTY == catalog(connection, "public")
    connection.execute(text("RESET search_path"))
    assert connection.scalar(text(f"SELECT \"{SCHEMA}\".make_kline_partition('1m', 2031)"))


def test_an_owner_without_any_other_right_can_run_it(connection: Connection) -> None:
    """A role that may use the schema and create in it, and nothing else; all that was made belongs to it."""
    connection.execute(text("CREATE ROLE plain_owner"))
    connection.execute(text(f'GRANT USAGE, CREATE ON SCHEMA "{SCHEMA}" TO plain_owner'))
    connection.execute(text("SET LOCAL ROLE plain_owner"))
    run(connection, SCHEMA, "upgrade")
    owners = text(
        f"SELECT DISTINCT relowner::regrole::text FROM pg_class WHERE relnamespace = '\"{SCHEMA}\"'::regnamespace "
        f"UNION SELECT proowner::regrole::text FROM pg_proc WHERE pronamespace = '\"{SCHEMA}\"'::regnamespace"
    )
    assert ["plain_owner"] == connection.scalars(owners).all()
    run(connection, SCHEMA, "downgrade")
    assert EMPTY == catalog(connection, SCHEMA)


def test_default_privileges_do_not_reach_partitions(connection: Connection) -> None:
    """They cover klines itself, as they should; no part of it, of which no right may pass by the parent's."""
    connection.execute(text(f'ALTER DEFAULT PRIVILEGES IN SCHEMA "{SCHEMA}" GRANT ALL ON TABLES TO PUBLIC'))
    run(connection, SCHEMA, "upgrade")
    open_to_all = text(
        "SELECT relispartition, count(*) FROM pg_class WHERE relkind IN ('r', 'p') "
        f"AND relnamespace = '\"{SCHEMA}\"'::regnamespace "
        "AND EXISTS (SELECT FROM aclexplode(relacl) WHERE grantee = 0) GROUP BY relispartition"
    )
    assert [(False, len(metadata.tables))] == connection.execute(open_to_all).all()
    assert 16 * 6 == len(catalog(connection, SCHEMA)["partitions"])


def offline(step: str) -> str:
    """The SQL that `--sql` prints for a step."""
    out = io.StringIO()
    context = MigrationContext.configure(
        dialect=postgresql.dialect(paramstyle="named"), opts={"as_sql": True, "output_buffer": out}
    )
    with Operations.context(context):
        for each in REVISIONS if step == "upgrade" else reversed(REVISIONS):
            getattr(each.module, step)()
    return out.getvalue()


def test_offline_makes_the_same(connection: Connection) -> None:
    """What `--sql` prints makes the same as the upgrade itself, and its downgrade leaves nothing either."""
    run(connection, SCHEMA, "upgrade")
    look_into(connection, "other")
    execute(connection, offline("upgrade"))
    assert catalog(connection, SCHEMA) == catalog(connection, "other")
    execute(connection, offline("downgrade"))
    assert EMPTY == catalog(connection, "other")


def execute(connection: Connection, script: str) -> None:
    """Send a script as psql would: nothing in it stands for a parameter."""
    with connection.connection.cursor() as cursor:
        cursor.execute(script)
