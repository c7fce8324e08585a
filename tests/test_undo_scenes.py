"""Whatever a labelled connection writes, and however, is as it was before: the digest before and after is equal."""

import io

import pytest
from undoing import LONG, Place, scenes

from helios.testing import undo


@pytest.fixture(scope="module")
def place(cluster):
    with scenes(cluster) as made:
        yield made


SCENES = {
    "an AFTER ROW trigger that updates its own row, inserts": ["INSERT INTO echo VALUES (101), (102)"],
    "an AFTER ROW trigger that updates its own row, updates": [
        "UPDATE echo SET v = v + 1 WHERE id < 10",
        "UPDATE echo SET v = 9 WHERE id = 3",
    ],
    "a row that comes, changes, goes and comes again": [
        "INSERT INTO echo VALUES (101)",
        "UPDATE echo SET v = 5 WHERE id IN (101, 2)",
        "DELETE FROM echo WHERE id IN (101, 2)",
        "INSERT INTO echo VALUES (101), (2)",
    ],
    "an AFTER STATEMENT trigger on the same table, inserts": ["INSERT INTO ranks VALUES (101), (102)"],
    "an AFTER STATEMENT trigger on the same table, the rest": [
        "UPDATE ranks SET v = 7 WHERE id < 5",
        "DELETE FROM ranks WHERE id < 3",
        "INSERT INTO ranks VALUES (1)",
    ],
    "a BEFORE ROW trigger that writes elsewhere, and deletes what is replaced": [
        "INSERT INTO casts VALUES (5, 99), (105, 1), (6, 1)",
        "UPDATE casts SET v = 0 WHERE id < 8",
    ],
    "a BEFORE ROW trigger that stamps the row": [
        "UPDATE stamped SET v = 9 WHERE id < 4",
        "DELETE FROM stamped WHERE id = 5",
        "INSERT INTO stamped VALUES (50, 1)",
    ],
    "an AFTER ROW trigger that deletes what was inserted": ["INSERT INTO shy VALUES (201, -1), (202, 1), (203, -2)"],
    "a trigger that writes history": ["UPDATE audited SET v = v + 1", "DELETE FROM audited WHERE id < 5"],
    "keys of a tree that cascade": ["UPDATE tree SET id = id + 1000 WHERE id IN (1, 2, 3)"],
    "all keys of a tree, then its rows": ["UPDATE tree SET id = id + 1000", "UPDATE tree SET v = 0"],
    "a branch that is cut off, SET NULL beside it": ["DELETE FROM tree WHERE id = 3"],
    "a root that goes and comes again": [
        "DELETE FROM tree WHERE id = 1",
        "INSERT INTO tree VALUES (1, 5, null, null), (2, 6, 1, 1)",
    ],
    "deletes that cascade from table to table": [
        "UPDATE books SET bid_id = null",
        "DELETE FROM quotes",
        "DELETE FROM markets WHERE id IN (1, 2)",
    ],
    "keys that cascade from table to table": [
        "UPDATE hints SET market_id = null WHERE market_id < 4",
        "UPDATE markets SET id = id + 500 WHERE id < 4",
        "UPDATE bids SET client = client || '!'",
    ],
    "a foreign key to what is not the primary key": ["UPDATE markets SET symbol = 'N' || symbol WHERE id < 9"],
    "an upsert": [
        """INSERT INTO swaps VALUES (1, 'new', 50, 50), (101, 'n2', 51, 51)
           ON CONFLICT (id) DO UPDATE SET a = excluded.a, k = excluded.k""",
        """INSERT INTO swaps VALUES (1, 'zz', 50, 50), (101, 'n3', 52, 51)
           ON CONFLICT (id) DO UPDATE SET a = excluded.a + 5""",
        "INSERT INTO swaps VALUES (7, 'x', 0, 0) ON CONFLICT DO NOTHING",
    ],
    "an upsert below triggers": [
        "INSERT INTO echo VALUES (3, 5), (103, 6) ON CONFLICT (id) DO UPDATE SET v = excluded.v",
        "INSERT INTO ranks VALUES (3, 5), (103, 6) ON CONFLICT (id) DO UPDATE SET v = excluded.v",
    ],
    "a MERGE": [
        """MERGE INTO echo USING (VALUES (1, 1), (2, 2), (109, 3)) AS given (id, v) ON echo.id = given.id
           WHEN MATCHED AND given.id = 1 THEN DELETE WHEN MATCHED THEN UPDATE SET v = given.v
           WHEN NOT MATCHED THEN INSERT VALUES (given.id, given.v)"""
    ],
    "a statement that deletes and inserts one key": [
        """WITH gone AS (DELETE FROM swaps WHERE id IN (4, 5) RETURNING *)
           INSERT INTO swaps SELECT id, k || '!', a, b FROM gone"""
    ],
    "a statement that writes to three tables": [
        """WITH changed AS (UPDATE echo SET v = 3 WHERE id < 6 RETURNING id),
                made AS (INSERT INTO shy SELECT id + 200, 1 FROM changed RETURNING id)
           UPDATE ranks SET v = (SELECT max(id) FROM made) WHERE id IN (SELECT id FROM changed)"""
    ],
    "an insert from a query": ["INSERT INTO swaps SELECT id + 100, k || 'x', a + 100, b FROM swaps"],
    "a TRUNCATE that cascades, and an insert after it": [
        "TRUNCATE bids CASCADE",
        "INSERT INTO bids (client) VALUES ('c1')",
    ],
    "partitions, by their parent and directly": [
        "UPDATE ticks SET ts = ts + 995 WHERE ts IN (10, 20, 1000)",
        "INSERT INTO ticks_1 (ts, n) VALUES (5000, 1), (5001, 1)",
        "DELETE FROM ticks_0 WHERE ts = 50",
        "INSERT INTO ticks VALUES (50, 1, 9)",
        "TRUNCATE ticks_1",
        "INSERT INTO ticks VALUES (1010, 1, 5)",
    ],
    "every type, generated and identity columns": [
        """UPDATE bids SET quantity = 1, note = null, span = null, raw = null, number = null, moods = null, held = null,
                          size = 9""",
        "UPDATE books SET bid_id = null",
        "DELETE FROM bids WHERE id < 20",
    ],
    "primary keys that change": ["UPDATE kinds SET k = 'three' WHERE k = 'one'", "INSERT INTO kinds VALUES ('one')"],
    "primary keys that change places": [
        "UPDATE swaps SET id = 1000 WHERE id = 1",
        "UPDATE swaps SET id = 1 WHERE id = 2",
        "UPDATE swaps SET id = 2 WHERE id = 1000",
    ],
    "unique values that change places": [
        "UPDATE swaps SET k = 'tmp' WHERE id = 1",
        "UPDATE swaps SET k = 'k1' WHERE id = 2",
        "UPDATE swaps SET k = 'k2' WHERE id = 1",
    ],
    "unique values in a ring, of two columns": [
        "UPDATE swaps SET a = -id, k = 'q' || id WHERE id IN (1, 2, 3)",
        "UPDATE swaps SET a = id % 3 + 1, b = id % 3 + 1, k = 'k' || (id % 3 + 1) WHERE id IN (1, 2, 3)",
    ],
    "unique values in a chain, with rows that go and come": [
        "UPDATE swaps SET k = 't9' WHERE id = 5",
        "UPDATE swaps SET k = 'k5' WHERE id = 6",
        "DELETE FROM swaps WHERE id = 7",
        "INSERT INTO swaps VALUES (107, 'k7', 7, 7), (108, 'k6', 60, 6)",
    ],
    "unique values that change places above children that are elsewhere": [
        "UPDATE roots SET k = 'tmp' WHERE id = 8",
        "UPDATE roots SET k = 'p8' WHERE id = 9",
        "UPDATE roots SET k = 'p9' WHERE id = 8",
    ],
    "values of a unique expression that change places": [
        "UPDATE folded SET k = 'tmp' WHERE id = 1",
        "UPDATE folded SET k = 'NAME1' WHERE id = 2",
        "UPDATE folded SET k = 'NAME2' WHERE id = 1",
    ],
    "values of a partial unique index that change places": [
        "UPDATE folded SET n = -1 WHERE id = 1",
        "UPDATE folded SET n = 1 WHERE id = 2",
        "UPDATE folded SET n = 2 WHERE id = 1",
        "UPDATE folded SET live = false WHERE id = 3",
        "UPDATE folded SET n = 3 WHERE id = 4",
        "UPDATE folded SET live = true, n = 4 WHERE id = 9",
    ],
    "names in mixed case, and those of the log's own columns": [
        """UPDATE "Mixed Case""s" SET c1 = 0, "op" = 'x' WHERE "Id" < 4""",
        """DELETE FROM "Mixed Case""s" WHERE "Id" = 5""",
        """INSERT INTO "Mixed Case""s" VALUES (5, 'r9', 1, 'y', 2)""",
    ],
    "a name of 63 bytes": [
        f'UPDATE "{LONG}" SET v = 0',
        f'UPDATE "{LONG}" SET "{LONG}" = 77 WHERE v = 0 AND "{LONG}" = 1',
    ],
    "many rows at once": [
        "UPDATE wide SET v = v + 1",
        "DELETE FROM wide WHERE id > 1500",
        "INSERT INTO wide SELECT i, i, '' FROM generate_series(5001, 6000) AS i",
        "UPDATE wide SET id = id + 20000 WHERE id < 400",
    ],
    "a savepoint that is rolled back": [
        """BEGIN; SAVEPOINT a; UPDATE echo SET v = 77 WHERE id = 1; INSERT INTO shy VALUES (300, 1); ROLLBACK TO a;
           SAVEPOINT b; UPDATE echo SET v = 78 WHERE id = 1; INSERT INTO shy VALUES (300, 1); RELEASE b;
           UPDATE echo SET v = 79 WHERE id = 1; SAVEPOINT c; DELETE FROM echo WHERE id = 1; ROLLBACK TO c; COMMIT"""
    ],
    "blocks that catch their errors": [
        """DO $$ BEGIN
             BEGIN UPDATE ranks SET v = 1 WHERE id = 1; INSERT INTO ranks VALUES (400); RAISE 'x';
             EXCEPTION WHEN OTHERS THEN NULL; END;
             BEGIN UPDATE ranks SET v = 2 WHERE id = 1; INSERT INTO ranks VALUES (401);
             EXCEPTION WHEN OTHERS THEN NULL; END;
             UPDATE ranks SET v = 3 WHERE id IN (1, 401); END $$"""
    ],
}


@pytest.mark.parametrize("scene", SCENES)
def test_statement_by_statement(place: Place, scene: str):
    """Each statement a transaction."""
    with place.unchanged() as run:
        run.write(*SCENES[scene])


@pytest.mark.parametrize("scene", [each for each in SCENES if "savepoint" not in each])
def test_in_one_transaction(place: Place, scene: str):
    """All statements one transaction."""
    with place.unchanged() as run:
        run.together(*SCENES[scene])


def test_copy(place: Place):
    """COPY into a table with triggers, and into partitions."""
    with place.unchanged() as run:
        run.cursor.copy_expert("COPY echo FROM STDIN", io.StringIO("".join(f"{i}\t1\t1\n" for i in range(1000, 1100))))
        run.cursor.copy_expert("COPY ticks FROM STDIN", io.StringIO("".join(f"{i}\t7\t1\n" for i in range(900, 1100))))


def test_a_prepared_transaction(place: Place):
    """A two-phase commit is the run's own."""
    with place.unchanged() as run:
        transaction = run.writer.xid(1, "undo", "scene")
        run.writer.autocommit = False
        run.writer.tpc_begin(transaction)
        run.write("UPDATE swaps SET a = 100 WHERE id = 1", "INSERT INTO shy VALUES (900, 1)")
        run.writer.tpc_prepare()
        run.writer.tpc_commit()
        run.writer.autocommit = True


def test_a_column_added_after_the_log_was_installed(place: Place):
    """What is written to it is taken back; rows changed before it was there have its default."""
    with place.run() as run:
        run.write("UPDATE later SET v = 0 WHERE id IN (1, 2)")
        place.connection.exec_driver_sql("ALTER TABLE later ADD COLUMN extra integer DEFAULT 5, ADD COLUMN more text[]")
        before = [(i, i, 5, None) for i in range(1, 6)]
        run.write(
            "UPDATE later SET extra = 6, more = '{a}', v = 9 WHERE id IN (2, 3)", "DELETE FROM later WHERE id = 4"
        )
        run.write("INSERT INTO later VALUES (4, 0, 0, '{}'), (60, 1, 1, NULL)")
        run.undo()
        assert before == place.rows("SELECT * FROM later ORDER BY id")
    place.connection.exec_driver_sql("ALTER TABLE later DROP COLUMN extra, DROP COLUMN more")
    with place.unchanged() as run:
        run.write("UPDATE later SET v = 0", "DELETE FROM later WHERE id = 1")


def test_a_mark_in_the_middle(place: Place):
    """Each scope goes back to its own beginning; later ones over earlier ones too."""
    before = place.digest()
    with place.run() as run:
        run.write("INSERT INTO shy VALUES (600, 1)", "UPDATE swaps SET a = 500 WHERE id = 1")
        first, at_first = run.mark(), place.digest()
        run.write("UPDATE shy SET v = 5 WHERE id = 600", "UPDATE swaps SET a = 501 WHERE id = 1")
        run.write("DELETE FROM swaps WHERE id = 2", "INSERT INTO swaps VALUES (800, 'x', 8, 800)")
        second, at_second = run.mark(), place.digest()
        run.write("DELETE FROM shy WHERE id = 600", "DELETE FROM swaps WHERE id IN (1, 800)")
        run.write("INSERT INTO swaps VALUES (2, 'y', 2, 2), (1, 'yy', 1, 1)")
        run.undo(second)
        assert at_second == place.digest()
        third = run.mark()
        run.write("UPDATE swaps SET a = 600 WHERE id = 1", "UPDATE swaps SET a = 601 WHERE id = 3")
        run.undo(third)
        assert at_second == place.digest()
        run.write("UPDATE swaps SET a = 601 WHERE id = 1")
        run.undo(first)
        assert at_first == place.digest()
    assert before == place.digest()


def test_what_was_done_is_told(place: Place):
    """By table, with numbers; nothing written, nothing told."""
    with place.run() as run:
        assert [] == run.undo()
        run.write("INSERT INTO kinds VALUES ('three')", "UPDATE swaps SET a = 100 WHERE id < 4", "DELETE FROM parts")
        told = {(each.table.removeprefix("scenes."), each.what, each.count, each.why) for each in run.undo()}
        assert {("kinds", "deleted", 1, ""), ("swaps", "restored", 3, ""), ("parts", "restored", 180, "")} == told


def test_an_empty_run(place: Place):
    """A run that writes nothing, or rolls all back, is undone at once."""
    with place.run() as run:
        run.write("BEGIN; INSERT INTO kinds VALUES ('never'); ROLLBACK")
        assert [] == undo.undo(place.connection, [run.id])


def test_a_row_that_an_undo_restored_is_restored_again(place: Place):
    """Its image is then that undo's own: deleted and inserted later in the run, it is not taken for a new row."""
    with place.unchanged() as run:
        run.write("UPDATE swaps SET a = 50 WHERE id < 4")
        run.undo()
        run.write("""WITH gone AS (DELETE FROM swaps WHERE id = 1 RETURNING *)
                     INSERT INTO swaps SELECT id, k || '!', a, b FROM gone""")
        run.write("DELETE FROM swaps WHERE id = 2", "INSERT INTO swaps VALUES (2, 'again', 22, 22)")
        run.write("DELETE FROM swaps WHERE id = 3", "INSERT INTO swaps VALUES (3, 'gone', 3, 3)")
        run.write("DELETE FROM swaps WHERE id = 3")
