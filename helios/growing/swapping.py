"""The copy takes the place of the table: dressed with its comment, rights and triggers before, renamed under a lock."""

from sqlalchemy import Connection, text

from helios.growing.places import NEXT, run
from helios.growing.work import BATCHES, CHANGES, NOTE, Work
from helios.layout import Layout

FORMER, KEPT = "klines_former", "make_kline_partition_kept"
KEY, MAKER = "pk_klines", "make_kline_partition"
# A trigger that had to be written otherwise for a hypertable keeps what it was in its comment.
TRIGGERS = text("""
    SELECT tgname AS name, pg_get_triggerdef(each.oid) AS definition, obj_description(each.oid, 'pg_trigger') AS kept,
           tgoldtable IS NOT NULL AND tgnewtable IS NULL AND tgtype & 8 = 8 AS reads_deleted
    FROM pg_trigger AS each JOIN pg_proc ON pg_proc.oid = tgfoid
    WHERE tgrelid = CAST(:klines AS regclass) AND NOT tgisinternal AND NOT starts_with(tgname, :note)
      AND pronamespace = (SELECT relnamespace FROM pg_class WHERE oid = tgrelid)
    ORDER BY tgname
""")
RIGHTS = text("""
    SELECT privilege_type AS privilege,
           CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END AS grantee
    FROM pg_class, aclexplode(relacl) WHERE oid = CAST(:klines AS regclass) AND grantee <> relowner
""")
COMMENT = text("SELECT quote_literal(obj_description(CAST(:klines AS regclass), 'pg_class'))")
FUNCTION = text("SELECT pg_get_functiondef(to_regprocedure(:signature))")
LITERAL = text("SELECT quote_literal(CAST(:value AS text))")
DELETED = "mirror_deleted_kline"
DELETED_BODY = """
    CREATE OR REPLACE FUNCTION {schema}.{name}() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
    DECLARE
        series CONSTANT text := concat(OLD.instrument_id, '|', OLD.interval);
    BEGIN
        -- An entry for each series that a transaction deletes from, not for each row.
        INSERT INTO mirror_outbox (subject, key) SELECT 'series', series WHERE NOT EXISTS (
            SELECT FROM mirror_outbox
            WHERE xid = pg_current_xact_id()::text::bigint AND subject = 'series' AND key = series
        );
        RETURN NULL;
    END
    $$;
    REVOKE ALL ON FUNCTION {schema}.{name}() FROM PUBLIC;
    COMMENT ON FUNCTION {schema}.{name}() IS 'Writes to mirror_outbox what was deleted from a hypertable';
"""
NO_PARTITIONS = """
    CREATE OR REPLACE FUNCTION {schema}.make_kline_partition(for_interval text, for_year integer) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
    BEGIN
        RETURN false;  -- a hypertable makes its chunks by itself
    END
    $$;
"""


def dress(work: Work, to: Layout) -> None:
    """Give the copy the comment, rights and triggers of klines; before the lock, which is to be brief."""
    connection, named = work.connection, {"klines": work.klines}
    run(connection, f"COMMENT ON TABLE {work.next} IS {connection.scalar(COMMENT, named)}")
    for right in connection.execute(RIGHTS, named):
        run(connection, f"GRANT {right.privilege} ON {work.next} TO {right.grantee}")
    if to is Layout.TIMESCALEDB:
        run(connection, DELETED_BODY.format(schema=work.schema, name=DELETED))
    for trigger in connection.execute(TRIGGERS, {**named, "note": NOTE}):
        run(connection, f"DROP TRIGGER IF EXISTS {trigger.name} ON {work.next}")
        definition = trigger.kept if trigger.kept and trigger.kept.startswith("CREATE TRIGGER") else trigger.definition
        if to is Layout.TIMESCALEDB and trigger.reads_deleted:
            run(
                connection,
                f"CREATE TRIGGER {trigger.name} AFTER DELETE ON {work.next} FOR EACH ROW "
                f"EXECUTE FUNCTION {work.schema}.{DELETED}()",
            )
            kept = connection.scalar(LITERAL, {"value": definition})
            run(connection, f"COMMENT ON TRIGGER {trigger.name} ON {work.next} IS {kept}")
        else:
            run(connection, definition.replace(f" ON {work.klines} ", f" ON {work.next} ", 1))


def put_in_place(work: Work, to: Layout) -> None:
    """Rename the two tables, and the function that makes partitions with them; klines is locked."""
    connection, schema = work.connection, work.schema
    run(connection, f"DROP FUNCTION {schema}.{NOTE}() CASCADE")  # with its triggers
    run(connection, f"ALTER TABLE {work.klines} RENAME CONSTRAINT {KEY} TO {KEY}_former")
    run(connection, f"ALTER TABLE {work.klines} RENAME TO {FORMER}")
    run(connection, f"ALTER TABLE {work.next} RENAME CONSTRAINT {NEXT}_pkey TO {KEY}")
    run(connection, f"ALTER TABLE {work.next} RENAME TO klines")
    # Replaced, not renamed, so that it keeps its comment and who may call it.
    if to is Layout.TIMESCALEDB:
        replace_function(connection, schema, MAKER, KEPT)
        run(connection, f"REVOKE ALL ON FUNCTION {schema}.{KEPT}(text, integer) FROM PUBLIC")
        run(connection, NO_PARTITIONS.format(schema=schema))
    else:
        replace_function(connection, schema, KEPT, MAKER)
        run(connection, f"DROP FUNCTION {schema}.{KEPT}(text, integer)")


def replace_function(connection: Connection, schema: str, of: str, under: str) -> None:
    """Write a function once more under another name."""
    definition = str(connection.scalar(FUNCTION, {"signature": f"{schema}.{of}(text, integer)"}))
    run(connection, definition.replace(f".{of}(", f".{under}(", 1))


def clean_up(connection: Connection, schema: str, here: Layout) -> None:
    """Drop what a conversion leaves, or what was begun of one that nobody wants any more."""
    run(connection, f"DROP FUNCTION IF EXISTS {schema}.{NOTE}() CASCADE")
    for table in (FORMER, NEXT, BATCHES, CHANGES):
        run(connection, f"DROP TABLE IF EXISTS {schema}.{table} CASCADE")
    if here is Layout.PARTITIONS:
        run(connection, f"DROP FUNCTION IF EXISTS {schema}.{DELETED}()")
