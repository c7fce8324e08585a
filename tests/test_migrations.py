"""Migrations: who may run them, beside whom, killed when, and what they leave; each against a real server."""

import logging
import os
import re
import time

import pytest
from alembic import command
from installation import (
    COPIED,
    HEAD,
    REVISIONS,
    alembic,
    ask,
    dump,
    engine_of,
    finish,
    login,
    made,
    psql,
    rows,
    run_sql,
    start,
    use,
    variables,
)
from server_user import until
from sqlalchemy import URL, text
from sqlalchemy.exc import ProgrammingError

from helios.errors import EnvironmentRefusedError, RightsError, SchemaError, SettingError, UnreachableError
from helios.schema import environment, grants, migrations
from helios.schema.roles import LONGEST_NAME, roles_of, shared_elsewhere
from helios.settings import Settings

SCHEMA = "helios_trading"
PUBLIC = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace"
TYPES_IN_PUBLIC = "SELECT count(*) FROM pg_type WHERE typnamespace = 'public'::regnamespace"
CONNECTED = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
OPEN_TO_PUBLIC = """
    SELECT proname FROM pg_proc
    WHERE pronamespace = to_regnamespace(:schema) AND has_function_privilege('public', oid, 'EXECUTE')
"""
TABLES = "SELECT count(*) FROM pg_tables WHERE schemaname = :schema"


def mark(url: URL, name: str, schema: str = SCHEMA) -> None:
    """Mark a schema as its owner would with `helios environment set`."""
    with engine_of(url).begin() as connection:
        environment.mark(connection, schema, name)


def version(url: URL, schema: str = SCHEMA) -> str | None:
    """Tell at which revision a schema stands."""
    if ask(url, "SELECT to_regclass(:name)", name=f"{schema}.alembic_version") is None:
        return None
    return ask(url, f"SELECT version_num FROM {schema}.alembic_version")


def missing(url: URL, schema: str = SCHEMA) -> list[str]:
    """List the statements on roles and grants that a schema lacks."""
    settings = Settings.from_environment(variables(url, schema))
    with engine_of(url).connect() as connection:
        roles = roles_of(settings, url.database)
        return [step.statement for step in grants.missing(connection, schema, roles, url.username)]


def role(url: URL, kind: str, schema: str = SCHEMA) -> str:
    """Name a group role of a schema."""
    return getattr(roles_of(Settings.from_environment(variables(url, schema)), url.database), kind)


# --- who may migrate ---------------------------------------------------------------------------------------------


def test_a_fresh_database_gets_everything_and_public_nothing(database, monkeypatch):
    """A superuser's upgrade makes schema, roles, grants and tables; nothing appears in `public`."""
    use(monkeypatch, database)
    before = (ask(database, PUBLIC), ask(database, TYPES_IN_PUBLIC))
    migrations.upgrade()
    assert HEAD == version(database)
    assert ask(database, TABLES, schema=SCHEMA) > 15
    assert [] == missing(database)
    assert before == (ask(database, PUBLIC), ask(database, TYPES_IN_PUBLIC))


def test_one_who_may_create_in_the_database_migrates(database, monkeypatch):
    """CREATE on the database is enough; what takes CREATEROLE is skipped."""
    plain = login(database, "plain", f"GRANT CREATE ON DATABASE {database.database} TO {{login}}")
    use(monkeypatch, plain)
    migrations.upgrade()
    assert HEAD == version(plain)


def test_one_who_only_owns_the_schema_migrates(database, monkeypatch):
    """A DBA made the schema for the login and nothing else."""
    owner = login(database, "owner", f"CREATE SCHEMA {SCHEMA} AUTHORIZATION {{login}}")
    use(monkeypatch, owner)
    migrations.upgrade()
    assert HEAD == version(owner)


def test_one_who_was_only_granted_usage_and_create_migrates(database, monkeypatch):
    """A schema of somebody else is enough, with USAGE and CREATE on it."""
    guest = login(database, "guest", f"CREATE SCHEMA {SCHEMA}", f"GRANT USAGE, CREATE ON SCHEMA {SCHEMA} TO {{login}}")
    use(monkeypatch, guest)
    migrations.upgrade()
    assert HEAD == version(guest)


def test_one_with_no_rights_is_told_the_sql_to_run(database, monkeypatch):
    """One sentence on stderr that holds the SQL, exit status 1, no traceback; the SQL helps."""
    nobody = login(database, "nobody")
    said, talk = alembic("upgrade", "head", env=variables(nobody), expected=1)
    assert "" == said
    assert 1 == len(talk.strip().splitlines())
    statement = re.search(r"run: (CREATE SCHEMA .*;)", talk)[1]
    run_sql(database, statement)
    use(monkeypatch, nobody)
    migrations.upgrade()
    assert HEAD == version(database)


def test_one_without_rights_in_the_schema_is_told_the_sql_to_run(database, monkeypatch):
    """The schema is there but closed: one sentence with the GRANT, which helps."""
    stranger = login(database, "stranger", f"CREATE SCHEMA {SCHEMA}")
    use(monkeypatch, stranger)
    with pytest.raises(RightsError, match="GRANT USAGE, CREATE ON SCHEMA") as caught:
        migrations.upgrade()
    run_sql(database, re.search(r"run: (GRANT .*;)", str(caught.value))[1])
    migrations.upgrade()
    assert HEAD == version(database)


def test_without_createrole_the_upgrade_says_what_it_skipped_and_a_dba_completes_it(
    database, monkeypatch, caplog, programs
):
    """The upgrade works, and what `helios grants --sql` prints makes the installation a complete one."""
    plain = login(database, "plain", f"GRANT CREATE ON DATABASE {database.database} TO {{login}}")
    use(monkeypatch, plain)
    with caplog.at_level(logging.WARNING, "helios.schema"):
        migrations.upgrade()
    assert "`helios grants --sql` prints them" in caplog.text
    script, _ = finish(start("helios.cli", "grants", "--sql", env=variables(plain)))
    psql(programs, database, script)
    assert [] == missing(plain)
    assert role(plain, "owner") == ask(plain, "SELECT tableowner FROM pg_tables WHERE tablename = 'orders'")
    migrations.upgrade()
    assert [] == missing(plain)


def test_one_with_createrole_migrates_as_the_owner_role(database, monkeypatch):
    """PostgreSQL 16 and later refuse a creator SET ROLE by default; the upgrade lets itself in."""
    creator = login(
        database, "creator", f"GRANT CREATE ON DATABASE {database.database} TO {{login}}", options="CREATEROLE"
    )
    use(monkeypatch, creator)
    migrations.upgrade()
    assert [] == missing(creator)
    assert role(creator, "owner") == ask(creator, "SELECT tableowner FROM pg_tables WHERE tablename = 'orders'")


def test_roles_are_left_alone_where_the_prefix_is_off(database, monkeypatch):
    """DATABASE_ROLE_PREFIX=off makes and grants no role, and still closes the schema to PUBLIC."""
    use(monkeypatch, database, DATABASE_ROLE_PREFIX="off")
    migrations.upgrade()
    assert 0 == ask(database, "SELECT count(*) FROM pg_roles WHERE rolname LIKE :like", like=f"{database.database}%")
    assert [] == rows(database, OPEN_TO_PUBLIC, schema=SCHEMA)
    outsider = login(database, "outsider")
    with pytest.raises(ProgrammingError, match="permission denied for schema"):
        ask(outsider, f"SELECT count(*) FROM {SCHEMA}.orders")


# --- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ['x"; DROP SCHEMA public; --', "a" * 64, "pg_foo", "information_schema", "", " ", "Helios", "é"]
)
def test_a_hostile_schema_name_is_refused_before_any_connection(name, monkeypatch):
    """The refusal comes although nothing listens at the URL."""
    use(monkeypatch, URL.create("postgresql", host="127.0.0.1", port=1, database="none"), schema=name)
    with pytest.raises(SettingError, match="DATABASE_SCHEMA="):
        migrations.upgrade()


def test_a_hostile_schema_name_is_one_sentence_on_the_command_line(database):
    """Alembic's command shows the sentence and exits with 1."""
    _, talk = alembic("upgrade", "head", env=variables(database, 'x"; DROP SCHEMA public; --'), expected=1)
    assert 1 == len(talk.strip().splitlines())
    assert "is not a plain PostgreSQL name" in talk


@pytest.mark.parametrize("scheme", ["postgres", "postgresql"])
def test_both_url_schemes_work(database, scheme, monkeypatch):
    """Providers hand out either; both mean psycopg2."""
    use(monkeypatch, database.set(drivername=scheme))
    migrations.upgrade()
    assert HEAD == version(database)


def test_names_of_63_characters_give_five_roles(cluster, monkeypatch):
    """Names are cut with a hash, so that the five stay five, each of at most 63 bytes, and the upgrade works."""
    name, schema = "d" * 63, "s" * 63
    with engine_of(cluster).execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
        try:
            url = cluster.set(database=name)
            use(monkeypatch, url, schema)
            migrations.upgrade()
            roles = roles_of(Settings.from_environment(), name)
            names = {roles.owner, roles.writer, roles.reader, roles.monitor, roles.relay}
            assert [] == missing(url, schema)
            assert (
                5
                == len(names)
                == ask(url, "SELECT count(*) FROM pg_roles WHERE rolname = ANY (:names)", names=list(names))
            )
            assert all(len(each.encode()) <= LONGEST_NAME for each in names)
        finally:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


def test_a_database_of_any_name_is_migrated(cluster, monkeypatch):
    """Quotes, blanks, capitals and percent signs in a database's name reach the names of its roles."""
    name = "My Db%s'x\"y"
    with engine_of(cluster).execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        quoted = connection.dialect.identifier_preparer.quote_identifier(name).replace("%%", "%")
        connection.exec_driver_sql(f"CREATE DATABASE {quoted}", execution_options={"no_parameters": True})
        try:
            url = cluster.set(database=name)
            use(monkeypatch, url)
            migrations.upgrade()
            assert HEAD == version(url)
            assert [] == missing(url)
        finally:
            drop = f"DROP DATABASE {quoted} WITH (FORCE)"
            connection.exec_driver_sql(drop, execution_options={"no_parameters": True})


def test_role_names_keep_their_database_apart():
    """Two long prefixes that differ only at their end give different roles, and a prefix of pg_ is legal."""
    settings = Settings.from_environment({"DATABASE_SCHEMA": "s" * 63})
    assert roles_of(settings, "d" * 62 + "a").writer != roles_of(settings, "d" * 62 + "b").writer
    assert "db_pg_x_" in roles_of(Settings.from_environment({}), "pg_x").owner
    assert len(roles_of(settings, "é" * 31).reader.encode()) <= LONGEST_NAME


def test_a_role_used_in_another_database_is_reported(cluster, monkeypatch, caplog):
    """Two databases under one role prefix share their roles: who joins a writer writes both, so it is said."""
    with made(cluster) as other, made(cluster) as database:
        for each in (other, database):
            use(monkeypatch, each, DATABASE_ROLE_PREFIX="shared")
            with caplog.at_level(logging.WARNING, "helios.schema"):
                migrations.upgrade()
        assert f"shared_writer also has rights in {other.database}" in caplog.text
        with engine_of(database).connect() as here:
            roles = roles_of(Settings.from_environment(), database.database)
            assert {other.database} == {place for _, place in shared_elsewhere(here, SCHEMA, roles)}
    run_sql(cluster, *(f"DROP ROLE shared_{kind}" for kind in ("owner", "writer", "reader", "monitor", "relay")))


# --- unreachable ---------------------------------------------------------------------------------------------------


def test_an_unreachable_server_is_one_sentence_without_the_password():
    """Nothing listens there: one sentence, exit status 1, and the password is nowhere, not even in a debug log."""
    url = URL.create("postgresql", "bot", "s3cret", host="127.0.0.1", port=1, database="trading")
    said, talk = alembic("upgrade", "head", env=variables(url), expected=1)
    assert 1 == len(talk.strip().splitlines())
    assert "127.0.0.1:1/trading" in talk
    assert "s3cret" not in said + talk


def test_an_unreachable_server_leaves_no_password_in_a_log_or_error(monkeypatch, caplog):
    """With every logger at DEBUG the password shows nowhere, nor in the error or its causes."""
    use(monkeypatch, URL.create("postgresql", "bot", "s3cret", host="127.0.0.1", port=1, database="trading"))
    with caplog.at_level(logging.DEBUG), pytest.raises(UnreachableError) as caught:
        migrations.upgrade()
    assert "s3cret" not in caplog.text + repr(caught.value) + str(caught.value)


# --- beside others ---------------------------------------------------------------------------------------------


def test_two_upgrades_at_once_make_one_schema(database):
    """The second waits for the first, then finds nothing to do."""
    running = [start("alembic", "upgrade", "head", env=variables(database)) for _ in range(2)]
    talk = "".join(finish(each)[1] for each in running)
    assert [each.revision for each in REVISIONS] == re.findall(r"applied revision (\w+)", talk)
    assert [] == missing(database)


def test_four_schemas_of_one_database_at_once(database):
    """Four upgrades side by side, each in a schema of its own, do not know of each other."""
    schemas = [f"desk_{each}" for each in range(4)]
    for each in [start("alembic", "upgrade", "head", env=variables(database, schema)) for schema in schemas]:
        finish(each)
    for schema in schemas:
        assert HEAD == version(database, schema)
        assert [] == missing(database, schema)


def test_of_two_schemas_one_goes_back_and_the_other_stays(database, monkeypatch, programs):
    """A downgrade touches its own schema only."""
    for schema in ("desk_a", "desk_b"):
        use(monkeypatch, database, schema)
        migrations.upgrade()
    before = dump(programs, database, "--schema=desk_a")
    mark(database, "test", "desk_b")
    migrations.downgrade("base")
    assert 1 == ask(database, TABLES, schema="desk_b")  # alembic_version
    assert before == dump(programs, database, "--schema=desk_a")


def test_public_stays_byte_for_byte(database, monkeypatch, programs):
    """Tables and types of the same names in `public`, with data, are the same before and after everything."""
    run_sql(
        database,
        "CREATE TYPE public.side AS ENUM ('BUY', 'SELL')",
        "CREATE TABLE public.orders (id serial PRIMARY KEY, side public.side, note text DEFAULT 'x')",
        "CREATE TABLE public.klines (symbol text, at timestamptz) PARTITION BY RANGE (at)",
        "CREATE TABLE public.alembic_version (version_num varchar(32) PRIMARY KEY)",
        "INSERT INTO public.alembic_version VALUES ('legacy')",
        "INSERT INTO public.orders (side) VALUES ('BUY'), ('SELL')",
        "CREATE FUNCTION public.make_kline_partition(text, int) RETURNS int LANGUAGE sql AS 'SELECT 1'",
    )
    before = dump(programs, database, "--schema=public")
    use(monkeypatch, database)
    migrations.upgrade()
    command.check(migrations.configuration())
    mark(database, "test")
    migrations.downgrade("base")
    migrations.upgrade()
    assert before == dump(programs, database, "--schema=public")


# --- killed, repeated, taken back --------------------------------------------------------------------------------


def test_a_killed_upgrade_leaves_nothing_half_applied(database, programs, monkeypatch):
    """SIGKILL at several moments of an upgrade; then it completes, equal to one that was never disturbed."""
    kills = int(os.environ.get("HELIOS_KILLS", "4"))
    env = variables(database, DATABASE_ROLE_PREFIX="killed")
    for each in range(kills):
        process = start("alembic", "upgrade", "head", env=env)
        until(lambda: ask(database, CONNECTED) > 0)
        time.sleep(0.9 * each / kills)  # from the connection to the grants
        process.kill()
        process.communicate()
        assert version(database) in (None, *(each.revision for each in REVISIONS))
        assert (version(database) is None) == (ask(database, TABLES, schema=SCHEMA) == 0)
        if version(database):
            run_sql(database, f"DROP SCHEMA {SCHEMA} CASCADE")
    use(monkeypatch, database, DATABASE_ROLE_PREFIX="killed")
    migrations.upgrade()
    killed = dump(programs, database)
    run_sql(database, f"DROP SCHEMA {SCHEMA} CASCADE")
    migrations.upgrade()
    assert killed == dump(programs, database)


def test_down_to_base_and_up_again(database, monkeypatch, programs):
    """What comes back is what was there; partitions made at run time go with their table."""
    use(monkeypatch, database)
    migrations.upgrade()
    before = dump(programs, database)
    run_sql(database, f"SELECT {SCHEMA}.make_kline_partition('1m', 2031)")
    mark(database, "test")
    migrations.downgrade("base")
    assert 1 == ask(
        database,
        "SELECT count(*) FROM pg_class WHERE relkind = 'r' AND relnamespace = CAST(:s AS regnamespace)",
        s=SCHEMA,
    )
    assert 0 == ask(database, "SELECT count(*) FROM pg_proc WHERE pronamespace = CAST(:s AS regnamespace)", s=SCHEMA)
    migrations.upgrade()
    run_sql(database, f"COMMENT ON SCHEMA {SCHEMA} IS NULL")
    assert before == dump(programs, database)


PARTS = """
    SELECT relname::text, relacl::text, (SELECT array_agg(pg_get_triggerdef(t.oid) ORDER BY tgname)
                                         FROM pg_trigger AS t WHERE tgrelid = c.oid)
    FROM pg_class AS c WHERE relispartition AND relkind IN ('r', 'p') ORDER BY relname
"""


def test_partitions_are_closed_again_by_a_downgrade(upgraded):
    """Before 0004 whoever writes to a part has everything mirrored anew, so writers may not; up again, they may."""
    mark(upgraded, "test")
    run_sql(upgraded, f"SELECT {SCHEMA}.make_kline_partition('1m', 2031)")
    after = rows(upgraded, PARTS)
    migrations.downgrade("0003")
    closed = rows(upgraded, PARTS)
    assert not any(f"{COPIED}_writer" in acl for _, acl, _ in closed)
    assert {("INSERT OR DELETE OR UPDATE OR TRUNCATE",)} == {
        tuple(each.partition(" AFTER ")[2].partition(" ON ")[0] for each in triggers) for *_, triggers in closed
    }
    migrations.upgrade()
    assert after == rows(upgraded, PARTS)
    assert len(after) - 16 == len([acl for _, acl, _ in after if f"{COPIED}_writer=a/{COPIED}_owner" in acl])


@pytest.mark.parametrize("name", [None, "production"])
def test_a_downgrade_is_refused_in_production(upgraded, name):
    """Where the marker says production, or nothing, no table is dropped."""
    if name:
        mark(upgraded, name)
    with pytest.raises(EnvironmentRefusedError, match="downgrade"):
        migrations.downgrade("base")
    assert HEAD == version(upgraded)


CATALOG = """
    SELECT 'pg_class', oid::text, xmin::text FROM pg_class
    UNION ALL SELECT 'pg_proc', oid::text, xmin::text FROM pg_proc
    UNION ALL SELECT 'pg_namespace', oid::text, xmin::text FROM pg_namespace
    UNION ALL SELECT 'pg_default_acl', oid::text, xmin::text FROM pg_default_acl
    UNION ALL SELECT 'pg_attribute', attrelid || '.' || attnum, xmin::text FROM pg_attribute
    UNION ALL SELECT 'pg_constraint', oid::text, xmin::text FROM pg_constraint
    UNION ALL SELECT 'pg_trigger', oid::text, xmin::text FROM pg_trigger
    UNION ALL SELECT 'pg_description', objoid || '.' || objsubid, xmin::text FROM pg_description
    UNION ALL SELECT 'pg_authid', oid::text, xmin::text FROM pg_authid
    UNION ALL SELECT 'pg_auth_members', roleid || '.' || member, xmin::text FROM pg_auth_members
    UNION ALL SELECT 'pg_database', oid::text, xmin::text FROM pg_database WHERE datname = current_database()
    ORDER BY 1, 2, 3
"""


def test_a_second_upgrade_rewrites_no_catalog_row(database, monkeypatch):
    """Nothing to do means nothing done: every row of the catalog is the same version as before."""
    use(monkeypatch, database)
    migrations.upgrade()
    before = rows(database, CATALOG)
    migrations.upgrade()
    assert before == rows(database, CATALOG)


@pytest.mark.parametrize("reading", ["current", "history", "heads"])
def test_a_reading_command_creates_nothing(database, reading):
    """No schema, no table, no role comes of looking."""
    before = rows(database, CATALOG)
    alembic(reading, env=variables(database))
    assert before == rows(database, CATALOG)


# --- models, partitions, printed SQL -----------------------------------------------------------------------------


def test_models_and_migrations_agree_also_beside_new_partitions(database, monkeypatch):
    """`alembic check` is clean, also when a writer made partitions through the function beside open transactions."""
    use(monkeypatch, database)
    migrations.upgrade()
    alembic("check", env=variables(database))
    writer = login(database, "bot", f"GRANT {role(database, 'writer')} TO {{login}}")
    with engine_of(database).connect() as reading, engine_of(writer).connect() as writing:
        reading.execute(text(f"SELECT count(*) FROM {SCHEMA}.klines"))
        writing.execute(
            text(f"""INSERT INTO {SCHEMA}.klines (instrument_id, interval, open_time, open, high, low, close, volume)
                     VALUES (1, '1m', '2025-06-01T00:00Z', 1, 1, 1, 1, 0)""")
        )
        run_sql(writer, "SET lock_timeout = '1s'", f"SELECT {SCHEMA}.make_kline_partition('1m', 2033)")
        reading.rollback()
        writing.rollback()
    command.check(migrations.configuration())
    assert [] == missing(database)


def test_printed_sql_gives_the_same_database(database, cluster, programs, monkeypatch):
    """`helios upgrade --sql | psql` and the online upgrade end in the same dump, grants included."""
    with made(cluster) as other:
        script, _ = alembic("upgrade", "head", "--sql", env=variables(other, DATABASE_ROLE_PREFIX="printed"))
        psql(programs, other, script)
        use(monkeypatch, database, DATABASE_ROLE_PREFIX="printed")
        migrations.upgrade()
        assert dump(programs, database) == dump(programs, other)


def test_printed_sql_needs_no_server():
    """A DBA's script can be printed where no server can be reached."""
    url = URL.create("postgresql", "dba", host="127.0.0.1", port=1, database="trading")
    script, _ = alembic("upgrade", "head", "--sql", env=variables(url))
    assert "CREATE TABLE klines" in script
    assert "%%" not in script


def test_pending_tells_what_a_database_lacks(database, monkeypatch):
    """What a service asks at its start: everything before the upgrade, nothing after, an error when it is ahead."""
    with engine_of(database).connect() as connection:
        assert [each.revision for each in REVISIONS] == migrations.pending(connection, SCHEMA)
    use(monkeypatch, database)
    migrations.upgrade()
    with engine_of(database).connect() as connection:
        assert [] == migrations.pending(connection, SCHEMA)
        connection.execute(text(f"UPDATE {SCHEMA}.alembic_version SET version_num = 'f00d'"))
        with pytest.raises(SchemaError, match="'f00d', which this version of Helios does not know"):
            migrations.pending(connection, SCHEMA)
