"""Installing the log: who may, what is refused by name, and tables that change afterwards."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from installation import dump, psql, run_sql
from sqlalchemy import URL, Column, Integer, MetaData, NullPool, Table, create_engine
from undo_shop import SCHEMA, Shop, running, shop_of, tables_of, undone

from helios.errors import EnvironmentRefusedError, HeliosError, RightsError, SchemaError
from helios.schema import environment
from helios.testing import undo

CATALOG = """
    SELECT pg_trigger.oid, pg_trigger.xmin::text FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid
    WHERE relnamespace = to_regnamespace('shop')
    UNION ALL
    SELECT oid, xmin::text FROM pg_proc WHERE pronamespace = to_regnamespace('shop_undo')
    UNION ALL
    SELECT oid, xmin::text FROM pg_class WHERE relnamespace IN (to_regnamespace('shop'), to_regnamespace('shop_undo'))
    ORDER BY 1
"""


@pytest.fixture(scope="module")
def shop(cluster: URL) -> Iterator[Shop]:
    with shop_of(cluster) as shop:
        yield shop


@pytest.fixture
def made(shop: Shop) -> Iterator[list[str]]:
    """Names of tables that the test makes in the shop's schema; they are dropped after it."""
    names: list[str] = []
    yield names
    for name in names:
        run_sql(shop.admin, f"DROP TABLE IF EXISTS shop.{name} CASCADE")


def install(shop: Shop, *tables: Table) -> None:
    with shop.kit() as connection:
        undo.install(connection, SCHEMA, tables or shop.tables)


def named(name: str, schema: str = SCHEMA) -> Table:
    return Table(name, MetaData(schema=schema), Column("id", Integer, primary_key=True))


def test_installing_again_changes_nothing(shop: Shop) -> None:
    """No trigger, function or table is written a second time, nor waited for: a neighbour may be at work."""
    before = shop.rows(CATALOG)
    with shop.beside() as neighbour:
        neighbour.exec_driver_sql("BEGIN")
        neighbour.exec_driver_sql("UPDATE shop.swaps SET a = a")
        install(shop)
        neighbour.exec_driver_sql("ROLLBACK")
    assert before == shop.rows(CATALOG)


def test_the_log_is_the_owner_s_and_closed_to_others(shop: Shop) -> None:
    """Schema, tables and functions belong to the schema's owner, no superuser; a writer may not even look."""
    owners = """SELECT pg_get_userbyid(nspowner)::text FROM pg_namespace WHERE nspname = 'shop_undo'
                UNION
                SELECT pg_get_userbyid(relowner)::text FROM pg_class WHERE relnamespace = 'shop_undo'::regnamespace
                UNION
                SELECT pg_get_userbyid(proowner)::text FROM pg_proc WHERE pronamespace = 'shop_undo'::regnamespace"""
    assert [(shop.owner.username,)] == shop.rows(owners)
    with pytest.raises(Exception, match="permission denied for schema shop_undo"):
        run_sql(shop.writer, "SELECT * FROM shop_undo.swaps")
    with pytest.raises(Exception, match="permission denied for schema shop_undo"):
        run_sql(shop.writer, "SELECT shop_undo.undo_runs(ARRAY[1], 0, 100)")
    open_ = """SELECT count(*) FROM pg_proc WHERE pronamespace = 'shop_undo'::regnamespace
               AND has_function_privilege('public', oid, 'EXECUTE') AND prosecdef"""
    assert [(0,)] == shop.rows(open_)


def test_every_function_has_its_own_search_path_or_names_every_schema(shop: Shop) -> None:
    """Only what each write calls has none, for speed; an operator or table of the caller's cannot slip in there."""
    found = shop.rows(
        """SELECT DISTINCT regexp_replace(proname, '[0-9]+$', '') FROM pg_proc
           WHERE pronamespace = 'shop_undo'::regnamespace AND proconfig IS NULL ORDER BY 1"""
    )
    assert [("_guard_",), ("_inserted_",), ("_rows_",), ("_truncated_",)] == found
    with undone(shop) as run:
        run.write(
            "CREATE TEMP TABLE swaps (LIKE shop.swaps)",
            "CREATE FUNCTION pg_temp.no(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT false'",
            "CREATE OPERATOR pg_temp.= (LEFTARG = text, RIGHTARG = text, FUNCTION = pg_temp.no)",
            "SET search_path TO pg_temp, shop",
            "UPDATE shop.swaps SET a = 50 WHERE id = 1",
            "DELETE FROM shop.swaps WHERE id = 2",
        )


@pytest.mark.parametrize("marker", ["production", None])
def test_production_is_refused(shop: Shop, marker: str | None) -> None:
    """Production, and what does not say what it is, gets no triggers; asked on the very connection."""
    with shop.kit() as connection:
        if marker:
            environment.mark(connection, SCHEMA, marker)
        else:
            connection.exec_driver_sql("COMMENT ON SCHEMA shop IS NULL")
        try:
            with pytest.raises(EnvironmentRefusedError, match="installing an undo log, which adds triggers to tables"):
                undo.install(connection, SCHEMA, shop.tables)
        finally:
            environment.mark(connection, SCHEMA, "test")


def test_a_second_schema_has_to_be_marked_too(shop: Shop) -> None:
    """Tables of another schema are followed by the same log, once that schema says what it is for."""
    run_sql(
        shop.owner,
        'CREATE SCHEMA "other Schema"',
        'CREATE TABLE "other Schema".swaps (id integer PRIMARY KEY, v text)',
        "INSERT INTO \"other Schema\".swaps VALUES (1, 'a')",
        f'GRANT ALL ON "other Schema".swaps TO {shop.writer.username}',
        f'GRANT USAGE ON SCHEMA "other Schema" TO {shop.writer.username}',
    )
    other = named("swaps", "other Schema")
    try:
        with pytest.raises(EnvironmentRefusedError, match="'other Schema'"):
            install(shop, *shop.tables, other)
        with shop.kit() as connection:
            environment.mark(connection, "other Schema", "test")
        install(shop, *shop.tables, other)
        shop.tables.append(other)
        with undone(shop) as run:
            run.write('UPDATE "other Schema".swaps SET v = NULL', "UPDATE shop.swaps SET b = 77")
    finally:
        shop.tables.remove(other)
        run_sql(shop.owner, 'DROP SCHEMA "other Schema" CASCADE')


REFUSED = {
    "has no primary key": "CREATE TABLE shop.bad (id integer)",
    "is no table": "CREATE VIEW shop.bad AS SELECT 1 AS id",
    "is a partition": "CREATE TABLE shop.bad PARTITION OF shop.ticks FOR VALUES FROM (-10) TO (0)",
    "has rules": (
        "CREATE TABLE shop.bad (id integer PRIMARY KEY); CREATE RULE r AS ON DELETE TO shop.bad DO INSTEAD NOTHING"
    ),
    "inherits, or is inherited from": "CREATE TABLE shop.bad (PRIMARY KEY (id)) INHERITS (shop.tally)",
    "has a trigger '~zzz' that would run after": (
        "CREATE TABLE shop.bad (id integer PRIMARY KEY); "
        'CREATE TRIGGER "~zzz" BEFORE UPDATE ON shop.bad FOR EACH ROW EXECUTE FUNCTION shop.stamp()'
    ),
    "is not there": "SELECT 1",
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_followed_is_refused_by_name(shop: Shop, made: list[str], reason: str) -> None:
    """The table and the reason are named, and nothing is installed."""
    before = shop.rows("SELECT count(*) FROM shop_undo._tables")
    run_sql(shop.owner, *REFUSED[reason].split("; "))
    try:
        with pytest.raises(SchemaError, match=rf"cannot follow shop\.bad: it {reason}"):
            install(shop, named("bad"))
        assert before == shop.rows("SELECT count(*) FROM shop_undo._tables")
    finally:
        run_sql(
            shop.owner, "DROP VIEW IF EXISTS shop.bad" if "VIEW" in REFUSED[reason] else "DROP TABLE IF EXISTS shop.bad"
        )


def test_bookkeeping_is_left_out(shop: Shop) -> None:
    """Tables that say so of themselves, and Alembic's, are outside of log and digest."""
    own, alembic = named("not_there"), named("alembic_version")
    own.info["bookkeeping"] = True
    install(shop, *shop.tables, own, alembic)
    with shop.kit() as connection:
        assert {} == undo.digest(connection, [own, alembic])


def test_a_role_that_may_not_install(shop: Shop) -> None:
    """A writer is told whose member to be; nothing is half installed."""
    engine = create_engine(shop.writer, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    run_sql(shop.owner, "CREATE TABLE shop.late (id integer PRIMARY KEY)")
    try:
        with (
            engine.connect() as connection,
            pytest.raises(RightsError, match=f"member of its owner '{shop.owner.username}'"),
        ):
            undo.install(connection, SCHEMA, [named("late")])
    finally:
        run_sql(shop.owner, "DROP TABLE shop.late")


def test_a_table_of_somebody_else_is_named(shop: Shop) -> None:
    """Triggers need the table's owner: the grant that helps is told."""
    run_sql(shop.admin, "CREATE TABLE shop.foreign_table (id integer PRIMARY KEY)")
    try:
        with pytest.raises(RightsError, match=r"on shop\.foreign_table, which 'helios' owns; run: GRANT"):
            install(shop, named("foreign_table"))
    finally:
        run_sql(shop.admin, "DROP TABLE shop.foreign_table")


@pytest.fixture
def growing(shop: Shop, made: list[str]) -> None:
    """A table of nine rows, followed by the log."""
    made.append("growing")
    run_sql(
        shop.owner,
        "CREATE TABLE shop.growing (id integer PRIMARY KEY, v integer)",
        "INSERT INTO shop.growing SELECT i, i FROM generate_series(1, 9) AS i",
        f"GRANT ALL ON shop.growing TO {shop.writer.username}",
    )
    install(shop, *shop.tables, named("growing"))


def test_a_column_added_after_the_log_was_installed(shop: Shop, growing: None) -> None:
    """Its values come back too, also in rows that were logged before it was there; no second installation is needed."""
    with running(shop) as run:
        run.write("UPDATE shop.growing SET v = 0 WHERE id < 5", "DELETE FROM shop.growing WHERE id = 5")
        run_sql(shop.owner, "ALTER TABLE shop.growing ADD extra text[] DEFAULT '{\"a b\"}'")
        run.write(
            "UPDATE shop.growing SET v = 1, extra = NULL WHERE id IN (4, 6)",
            "DELETE FROM shop.growing WHERE id = 7",
            "INSERT INTO shop.growing VALUES (7, 7, '{}'), (10, 1, '{}')",
        )
        run.undo()
        assert [(i, i, ["a b"]) for i in range(1, 10)] == shop.rows("SELECT * FROM shop.growing ORDER BY id")
    with running(shop) as run:
        run_sql(shop.owner, 'ALTER TABLE shop.growing ALTER v TYPE numeric, DROP extra, ADD "new" text')
        run.write("UPDATE shop.growing SET v = 1.5, \"new\" = 'x'")
        run.write("DELETE FROM shop.growing")
        run.undo()
        assert [(i, i, None) for i in range(1, 10)] == shop.rows("SELECT * FROM shop.growing ORDER BY id")


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE shop.growing ALTER id TYPE bigint",
        "ALTER TABLE shop.growing RENAME id TO number",
        "ALTER TABLE shop.growing DROP CONSTRAINT growing_pkey, ADD PRIMARY KEY (id)",
    ],
    ids=["type", "name", "made anew"],
)
def test_a_key_that_changes_after_the_log_was_installed(shop: Shop, growing: None, change: str) -> None:
    """Rows that are only inserted are found by the key as it is by now, whether a connection wrote before or not."""
    number = 1 << 40 if "bigint" in change else 500
    with running(shop) as run:
        with run.engine().connect() as connection:
            connection.exec_driver_sql("INSERT INTO shop.growing VALUES (100, 1), (101, 2)")
            connection.rollback()
            run_sql(shop.owner, change)
            connection.exec_driver_sql(f"INSERT INTO shop.growing VALUES ({number}, 7)")
            connection.commit()
        run.write(f"INSERT INTO shop.growing VALUES ({number + 1}, 7)")
        run.undo()
        assert [(i, i) for i in range(1, 10)] == shop.rows("SELECT * FROM shop.growing ORDER BY 1")


@pytest.mark.parametrize(
    "change",
    ["ALTER id TYPE bigint", "RENAME id TO number", "DROP CONSTRAINT growing_pkey, ADD PRIMARY KEY (id)"],
    ids=["type", "name", "made anew"],
)
def test_a_key_that_a_run_met_changed_is_suspicious_no_more(shop: Shop, growing: None, change: str) -> None:
    """From the next installation on: a run that went on with new functions for it could not make the trigger anew."""
    with running(shop) as run:
        run_sql(shop.owner, f"ALTER TABLE shop.growing {change}")
        run.write("INSERT INTO shop.growing VALUES (100, 1)")
    install(shop, *shop.tables, named("growing"))
    assert [(True,)] == shop.rows(
        "SELECT obj_description(oid, 'pg_trigger') = shop_undo._suspicious(tgrelid) FROM pg_trigger "
        "WHERE tgrelid = 'shop.growing'::regclass AND tgname = '!helios_guard_insert'"
    )


def test_a_key_made_anew_while_a_neighbour_writes(shop: Shop, growing: None) -> None:
    """The undo makes no trigger anew for it, for which it would have to wait: the next installation does."""
    run_sql(shop.owner, f"GRANT ALL ON shop.growing TO {shop.neighbour.username}")
    with running(shop) as run, shop.beside() as neighbour:
        run_sql(shop.owner, "ALTER TABLE shop.growing DROP CONSTRAINT growing_pkey, ADD PRIMARY KEY (id)")
        run.write("INSERT INTO shop.growing VALUES (100, 1)")
        neighbour.exec_driver_sql("BEGIN; UPDATE shop.growing SET v = 9 WHERE id = 1")
        assert [("growing", "deleted", 1, "")] == run.undo(patience=1)
        neighbour.exec_driver_sql("ROLLBACK")


def test_keys_and_triggers_added_after_the_log_was_installed(shop: Shop, made: list[str]) -> None:
    """A foreign key, a unique index and a trigger that came later are minded by the undo."""
    made += ["elders", "juniors"]
    run_sql(
        shop.owner,
        "CREATE TABLE shop.elders (id integer PRIMARY KEY, v integer)",
        "CREATE TABLE shop.juniors (id integer PRIMARY KEY, elder integer)",
        "INSERT INTO shop.elders VALUES (1, 1), (2, 2)",
        f"GRANT ALL ON shop.elders, shop.juniors TO {shop.writer.username}, {shop.neighbour.username}",
    )
    install(shop, *shop.tables, named("elders"), named("juniors"))
    run_sql(
        shop.owner,
        "ALTER TABLE shop.juniors ADD FOREIGN KEY (elder) REFERENCES shop.elders ON DELETE CASCADE",
        "CREATE UNIQUE INDEX ON shop.elders (v)",
        "CREATE FUNCTION shop.add() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.v := NEW.v + 100; RETURN NEW; END'",
        "CREATE TRIGGER add BEFORE UPDATE ON shop.elders FOR EACH ROW EXECUTE FUNCTION shop.add()",
    )
    with running(shop) as run, shop.beside() as neighbour:
        run.write(
            "UPDATE shop.elders SET v = 1000 WHERE id = 1",
            "UPDATE shop.elders SET v = -99 WHERE id = 2",
            "INSERT INTO shop.elders VALUES (3, 3), (4, 4)",
        )
        neighbour.exec_driver_sql("INSERT INTO shop.juniors VALUES (1, 3)")
        assert [
            ("elders", "deleted", 1, ""),
            ("elders", "kept", 1, "referenced from shop.juniors"),
            ("elders", "restored", 2, ""),
        ] == run.undo()
        assert [(1, 1), (2, 2), (3, 3)] == shop.rows("SELECT * FROM shop.elders ORDER BY id")
        neighbour.exec_driver_sql("DELETE FROM shop.juniors")
        run.undo()
    run_sql(shop.owner, "DROP FUNCTION shop.add() CASCADE")


def test_a_trigger_added_after_the_log_was_installed(shop: Shop, made: list[str]) -> None:
    """One that changes what is written has no say in what comes back, though columns and indexes are as they were."""
    made.append("stamping")
    run_sql(
        shop.owner,
        "CREATE TABLE shop.stamping (id integer PRIMARY KEY, v integer)",
        "INSERT INTO shop.stamping VALUES (1, 1)",
        f"GRANT ALL ON shop.stamping TO {shop.writer.username}",
    )
    install(shop, *shop.tables, named("stamping"))
    run_sql(
        shop.owner,
        "CREATE FUNCTION shop.add() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.v := NEW.v + 100; RETURN NEW; END'",
        "CREATE TRIGGER add BEFORE UPDATE ON shop.stamping FOR EACH ROW EXECUTE FUNCTION shop.add()",
    )
    with running(shop) as run:
        run.write("UPDATE shop.stamping SET v = 1000")
        assert [("stamping", "restored", 1, "")] == run.undo()
        assert [(1, 1)] == shop.rows("SELECT * FROM shop.stamping")
    run_sql(shop.owner, "DROP FUNCTION shop.add() CASCADE")


@pytest.mark.parametrize("write", ["UPDATE shop.swaps SET b = 50 WHERE id = 1", "DELETE FROM shop.swaps WHERE id = 1"])
def test_a_trigger_that_has_the_very_last_word_is_noticed(shop: Shop, write: str) -> None:
    """What it made of a row that came back is compared with the image: nothing is done, and without it all is."""
    run_sql(
        shop.owner,
        "CREATE FUNCTION shop.spoil() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.k := ''spoilt''; RETURN NEW; END'",
        'CREATE TRIGGER "~spoil" BEFORE INSERT OR UPDATE ON shop.swaps FOR EACH ROW EXECUTE FUNCTION shop.spoil()',
    )
    with undone(shop) as run:
        run.write(write)
        with pytest.raises(HeliosError, match=r"1 rows of shop\.swaps would not be what they were"):
            run.undo()
        run_sql(shop.owner, "DROP FUNCTION shop.spoil() CASCADE")


def test_a_partition_made_by_the_test(shop: Shop) -> None:
    """Its rows that came through the table go; the partition itself is no row, and is named by the objects' digest."""
    with shop.kit() as connection:
        before, rows = undo.objects(connection, [SCHEMA]), shop.digest()
        with running(shop) as run:
            run_sql(shop.owner, "CREATE TABLE shop.ticks_new PARTITION OF shop.ticks FOR VALUES FROM (-10) TO (0)")
            run.write("INSERT INTO shop.ticks VALUES (-1, 1), (5, 5)", "UPDATE shop.ticks SET ts = -2 WHERE ts = 10")
            run.undo()
        assert rows == shop.digest()
        left = set(undo.objects(connection, [SCHEMA])) - set(before)
        assert {"table shop.ticks_new", "index shop.ticks_new_pkey"} <= left
        run_sql(shop.owner, "DROP TABLE shop.ticks_new")
        assert before == undo.objects(connection, [SCHEMA])


CHANGES = {
    "table shop.new": ("CREATE TABLE shop.new (id integer)", "DROP TABLE shop.new"),
    "table shop.tally": ("ALTER TABLE shop.tally ADD x integer", "ALTER TABLE shop.tally DROP x"),
    "index shop.new": ("CREATE INDEX new ON shop.tally (v)", "DROP INDEX shop.new"),
    "sequence shop.new": ("CREATE SEQUENCE shop.new", "DROP SEQUENCE shop.new"),
    "function shop.stamp()": (
        "CREATE OR REPLACE FUNCTION shop.stamp() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
        "",
    ),
    "trigger stamp on shop.stamped": (
        "ALTER TABLE shop.stamped DISABLE TRIGGER stamp",
        "ALTER TABLE shop.stamped ENABLE TRIGGER stamp",
    ),
    "constraint c on shop.tally": (
        "ALTER TABLE shop.tally ADD CONSTRAINT c CHECK (v > -9)",
        "ALTER TABLE shop.tally DROP CONSTRAINT c",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_ddl_is_told(shop: Shop, name: str) -> None:
    """What DDL left behind has another digest, under its name."""
    change, back = CHANGES[name]
    with shop.kit() as connection:
        before = undo.objects(connection, [SCHEMA])
        run_sql(shop.owner, change)
        after = undo.objects(connection, [SCHEMA])
        if back:
            run_sql(shop.owner, back)
    assert [name] == [each for each in sorted({*before, *after}) if before.get(each) != after.get(each)]


def test_a_dropped_table_is_forgotten(shop: Shop) -> None:
    """The next installation drops its log, and undoes work on the rest."""
    run_sql(shop.owner, "CREATE TABLE shop.brief (id integer PRIMARY KEY)")
    install(shop, *shop.tables, named("brief"))
    run_sql(shop.owner, "DROP TABLE shop.brief")
    install(shop)
    with undone(shop) as run:
        run.write("UPDATE shop.swaps SET b = 77")
    run_sql(shop.owner, "CREATE TABLE shop.brief (id integer PRIMARY KEY)")
    install(shop, *shop.tables, named("brief"))
    assert [(1,)] == shop.rows("SELECT count(*) FROM shop_undo._tables WHERE name = 'shop.brief'")
    run_sql(shop.owner, "DROP TABLE shop.brief")


@contextmanager
def restored(programs: Path, shop: Shop, database: URL) -> Iterator[Shop]:
    """The shop as a dump of it was restored into another database, log and all, and marked test there."""
    psql(programs, database, dump(programs, shop.admin))
    copy = Shop(database, *(database.set(username=each.username) for each in (shop.owner, shop.writer, shop.neighbour)))
    copy.tables = shop.tables
    with copy.kit() as connection:
        environment.mark(connection, SCHEMA, "test")
    try:
        yield copy
    finally:
        run_sql(database, "DROP SCHEMA shop, shop_undo CASCADE")


def test_an_empty_log_of_another_database_is_made_anew(shop: Shop, programs: Path, database: URL) -> None:
    """A log that came with a dump knows other tables and transactions: installed again, it works."""
    with restored(programs, shop, database) as copy:
        install(copy)
        with undone(copy) as run:
            run.write("UPDATE shop.swaps SET b = 77", "DELETE FROM shop.swaps WHERE id = 1")


def test_a_log_of_another_database_that_holds_runs_is_refused(shop: Shop, programs: Path, database: URL) -> None:
    """What runs wrote elsewhere is not undone here: one sentence, whose remedy helps."""
    with running(shop) as run:
        run.write("UPDATE shop.swaps SET b = 77")
        with restored(programs, shop, database) as copy, copy.kit() as connection:
            refused = pytest.raises(SchemaError, match=r"'shop_undo' was copied from another database")
            with refused:
                undo.install(connection, SCHEMA, copy.tables)
            with refused as told:
                undo.dead(connection, schema=SCHEMA)
            run_sql(copy.admin, re.findall("DROP SCHEMA .*;", str(told.value))[0])
            assert [] == undo.dead(connection, schema=SCHEMA)
            run_sql(copy.admin, f'CREATE SCHEMA shop_undo AUTHORIZATION "{shop.owner.username}"')
            install(copy)


def test_removing_takes_everything_out(cluster: URL) -> None:
    """Triggers, functions and the log's schema go; not while a run is not undone."""
    with shop_of(cluster) as shop, shop.kit() as connection:
        undo.begin(connection, 5, schema=SCHEMA)
        with pytest.raises(Exception, match="holds runs that are not undone"):
            undo.remove(connection, SCHEMA)
        undo.undo(connection, [5], schema=SCHEMA)
        undo.close(connection, 5, schema=SCHEMA)
        undo.remove(connection, SCHEMA)
        assert [(0, 0)] == shop.rows(
            "SELECT (SELECT count(*) FROM pg_namespace WHERE nspname = 'shop_undo'), "
            "(SELECT count(*) FROM pg_trigger WHERE tgname ~ 'helios')"
        )
        assert [] == undo.dead(connection, schema=SCHEMA)


@pytest.mark.parametrize("schema", ["s" * 63, 'A "b" % :c'])
def test_any_name_of_a_schema(cluster: URL, shop: Shop, schema: str) -> None:
    """A schema of 63 bytes, and one with every sign: its log has a name of its own, and works."""
    quoted = '"' + schema.replace('"', '""') + '"'
    with shop.kit() as connection:

        def sql(statement: str) -> None:
            connection.exec_driver_sql(statement, execution_options={"no_parameters": True})

        sql(f"CREATE SCHEMA {quoted}")
        sql(f"CREATE TABLE {quoted}.t (id integer PRIMARY KEY)")
        environment.mark(connection, schema, "test")
        tables = tables_of(shop.owner, schema)
        undo.install(connection, schema, tables)
        undo.begin(connection, 6, schema=schema)
        before = undo.digest(connection, tables)
        sql("SET helios.test_run TO 6")
        sql(f"INSERT INTO {quoted}.t VALUES (1), (2)")
        sql("SET helios.test_run TO ''")
        changes = undo.undo(connection, [6], schema=schema)
        assert [2] == [each.count for each in changes]
        assert before == undo.digest(connection, tables)
        undo.close(connection, 6, schema=schema)
        undo.remove(connection, schema)
        sql(f"DROP SCHEMA {quoted} CASCADE")
