"""The environment marker: what a database is for, and whom it believes."""

import pytest
from installation import ask, dump, engine_of, login, made, psql, run_sql, use
from sqlalchemy import URL

from helios.errors import EnvironmentRefusedError, RightsError, SchemaError
from helios.schema import environment, migrations

SCHEMA = "helios_trading"
COMMENT = "SELECT obj_description('helios_trading'::regnamespace)"


@pytest.fixture
def installed(database: URL, monkeypatch: pytest.MonkeyPatch) -> URL:
    """A schema without tables is all that the marker needs."""
    use(monkeypatch, database)
    run_sql(database, f"CREATE SCHEMA {SCHEMA}")
    return database


def read(url: URL) -> environment.Marker:
    """Read the marker."""
    with engine_of(url).connect() as connection:
        return environment.read(connection, SCHEMA)


def mark(url: URL, name: str) -> None:
    """Write the marker."""
    with engine_of(url).begin() as connection:
        environment.mark(connection, SCHEMA, name)


def test_an_unmarked_database_counts_as_production(installed):
    """What nobody marked is treated with the greatest care."""
    assert ("production", False) == (read(installed).environment, read(installed).marked)


def test_a_schema_that_is_not_there_counts_as_production(database):
    """Neither is there a marker, nor can one be written."""
    assert "production" == read(database).environment
    with pytest.raises(SchemaError, match="run `helios upgrade` first"):
        mark(database, "test")


@pytest.mark.parametrize("name", ["development", "test", "production"])
def test_a_marked_database_is_believed(installed, name):
    """The database remembers what it was told, and refuses where that is production."""
    mark(installed, name)
    assert (name, True) == (read(installed).environment, read(installed).marked)
    with engine_of(installed).connect() as connection:
        if name == "production":
            with pytest.raises(EnvironmentRefusedError, match="emptying it is refused"):
                environment.refuse_production(connection, SCHEMA, "emptying it")
        else:
            environment.refuse_production(connection, SCHEMA, "emptying it")


@pytest.mark.parametrize(("what", "number"), [("server", r"server \d+"), ("database", r"database \d+")])
def test_a_marker_restored_elsewhere_is_not_trusted(installed, what, number):
    """A marker that names another server, or another database of this one, makes nothing of a copy."""
    mark(installed, "test")
    line = ask(
        installed,
        "SELECT regexp_replace(:line, :number, :other)",
        line=ask(installed, COMMENT),
        number=number,
        other=f"{what} 1",
    )
    run_sql(installed, f"COMMENT ON SCHEMA {SCHEMA} IS '{line}'")
    assert ("production", False) == (read(installed).environment, read(installed).marked)
    assert "copy" in read(installed).reason


def test_a_dump_restored_into_another_database_is_not_trusted(installed, cluster, programs):
    """pg_dump carries the comment along; the copy does not believe it."""
    mark(installed, "test")
    with made(cluster) as copy:
        psql(programs, copy, dump(programs, installed))
        assert ask(installed, COMMENT) == ask(copy, COMMENT)
        assert "production" == read(copy).environment


def test_an_unknown_environment_counts_as_production(installed):
    """A newer version's word is not guessed at."""
    mark(installed, "test")
    run_sql(installed, f"COMMENT ON SCHEMA {SCHEMA} IS '{ask(installed, COMMENT).replace('test', 'staging')}'")
    assert "production" == read(installed).environment


def test_a_comment_of_others_stays(installed):
    """Marking keeps what the comment said, quotes and percent signs included, and marking again adds no second line."""
    run_sql(installed, f"COMMENT ON SCHEMA {SCHEMA} IS 'Ours: don''t touch, 100 %'")
    mark(installed, "test")
    mark(installed, "development")
    assert ask(installed, COMMENT).endswith("\nOurs: don't touch, 100 %")
    assert 1 == ask(installed, COMMENT).count("helios environment")
    assert "development" == read(installed).environment


def test_only_the_owner_marks(installed):
    """A login that may use the schema cannot say what it is for, and is told who can."""
    bot = login(installed, "bot", f"GRANT USAGE, CREATE ON SCHEMA {SCHEMA} TO {{login}}")
    with pytest.raises(RightsError, match=rf"does not own schema.*`helios environment set test --schema {SCHEMA}`"):
        mark(bot, "test")
    assert "production" == read(bot).environment


@pytest.mark.usefixtures("upgraded")
def test_the_command_shows_and_sets(helios):
    """`helios environment` tells what the database is; `set` marks it; an unknown name is refused."""
    status, said, _ = helios("environment")
    assert 0 == status
    assert "it is not marked, which counts as production" in said
    assert 0 == helios("environment", "set", "test")[0]
    status, said, _ = helios("environment", "--json")
    assert 0 == status
    assert '"environment": "test"' in said
    status, _, talk = helios("environment", "set", "staging")
    assert 2 == status
    assert "'staging'" in talk


def test_an_upgrade_leaves_the_marker(installed):
    """Neither an upgrade nor a downgrade to base forgets what the database is for."""
    mark(installed, "test")
    migrations.upgrade()
    migrations.downgrade("base")
    assert "test" == read(installed).environment
