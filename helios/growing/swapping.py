"""The copy takes the place of the table: dressed with its comment, rights and triggers before, renamed under a lock."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, text

from helios.growing.ground import NEXT, run
from helios.growing.sharding import drop_functions, make_functions
from helios.growing.work import BATCHES, CHANGES, NOTE, Work
from helios.layout import Layout

FORMER, KEY = "klines_former", "pk_klines"
MAKER, MIRROR = ("make_kline_partition", "text, integer"), ("mirror_series", "regclass")
# A trigger that had to be written otherwise for a hypertable keeps what it was in its comment.
TRIGGERS = text("""
    SELECT tgname AS name, pg_get_triggerdef(each.oid) AS definition, obj_description(each.oid, 'pg_trigger') AS kept,
           tgoldtable IS NOT NULL AND tgnewtable IS NULL AND tgtype & 8 = 8 AS reads_deleted
    FROM pg_trigger AS each JOIN pg_proc ON pg_proc.oid = tgfoid
    WHERE tgrelid = CAST(:klines AS regclass) AND NOT tgisinternal AND NOT starts_with(tgname, :note)
      AND pronamespace = (SELECT relnamespace FROM pg_class WHERE oid = tgrelid)
    ORDER BY tgname
""")
# Shards have no triggers: those that they have had are written into a comment.
KEEP_TRIGGERS = text("""
    SELECT quote_literal(coalesce(jsonb_agg(
        jsonb_build_object('name', tgname, 'definition', pg_get_triggerdef(each.oid)) ORDER BY tgname), '[]'))
    FROM pg_trigger AS each JOIN pg_proc ON pg_proc.oid = tgfoid
    WHERE tgrelid = CAST(:klines AS regclass) AND NOT tgisinternal AND NOT starts_with(tgname, :note)
      AND pronamespace = (SELECT relnamespace FROM pg_class WHERE oid = tgrelid)
""")
KEPT_TRIGGERS = text("""
    SELECT each->>'name' AS name, each->>'definition' AS definition, NULL AS kept, false AS reads_deleted
    FROM jsonb_array_elements(CAST(obj_description(to_regprocedure(:keeper), 'pg_proc') AS jsonb)) AS each
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
    for right in connection.execute(RIGHTS, named).all():
        run(connection, f"GRANT {right.privilege} ON {work.next} TO {right.grantee}")
    if to is Layout.TIMESCALEDB:
        run(connection, DELETED_BODY.format(schema=work.schema, name=DELETED))
    for trigger in triggers(work):
        if to is Layout.CITUS:
            continue  # which has none: who writes klines tells
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


def triggers(work: Work) -> Sequence[Row[Any]]:
    """List the triggers of klines, or those that shards have had before they were some."""
    if work.source is Layout.CITUS:
        return work.connection.execute(KEPT_TRIGGERS, {"keeper": signature(work.schema, MAKER, "_kept")}).all()
    return work.connection.execute(TRIGGERS, {"klines": work.klines, "note": NOTE}).all()


def put_in_place(work: Work, to: Layout) -> None:
    """Rename the two tables, and the functions that go with them; klines is locked."""
    connection, schema = work.connection, work.schema
    if to is not Layout.PARTITIONS:
        keep_functions(work, to)
    run(connection, f"DROP FUNCTION IF EXISTS {schema}.{NOTE}() CASCADE")  # with its triggers
    # By its index, because Citus renames no constraint.
    run(connection, f"ALTER INDEX {schema}.{KEY} RENAME TO {KEY}_former")
    run(connection, f"ALTER TABLE {work.klines} RENAME TO {FORMER}")
    run(connection, f"ALTER INDEX {schema}.{NEXT}_pkey RENAME TO {KEY}")
    run(connection, f"ALTER TABLE {work.next} RENAME TO klines")
    # Replaced, not renamed, so that it keeps its comment and who may call it.
    if to is Layout.TIMESCALEDB:
        run(connection, NO_PARTITIONS.format(schema=schema))
    elif to is Layout.CITUS:
        make_functions(connection, schema)
    else:
        put_functions_back(work)


def keep_functions(work: Work, to: Layout) -> None:
    """Write what is replaced once more, under names to be put back from; and the triggers, where none stay."""
    connection, schema = work.connection, work.schema
    replaced = (MAKER, MIRROR) if to is Layout.CITUS else (MAKER,)
    for name, arguments in replaced:
        rewrite_function(connection, schema, (name, arguments), (f"{name}_kept", arguments))
        run(connection, f"REVOKE ALL ON FUNCTION {schema}.{name}_kept({arguments}) FROM PUBLIC")
    if to is Layout.CITUS:
        kept = connection.scalar(KEEP_TRIGGERS, {"klines": work.klines, "note": NOTE})
        run(connection, f"COMMENT ON FUNCTION {signature(schema, MAKER, '_kept')} IS {kept}")


def put_functions_back(work: Work) -> None:
    """Make the functions of partitions anew from what was kept."""
    connection, schema = work.connection, work.schema
    for name, arguments in (MAKER, MIRROR) if work.source is Layout.CITUS else (MAKER,):
        rewrite_function(connection, schema, (f"{name}_kept", arguments), (name, arguments))
        run(connection, f"DROP FUNCTION {schema}.{name}_kept({arguments})")
    drop_functions(connection, schema)


def signature(schema: str, function: tuple[str, str], ending: str = "") -> str:
    """Write a function's name with its arguments."""
    return f"{schema}.{function[0]}{ending}({function[1]})"


def rewrite_function(connection: Connection, schema: str, of: tuple[str, str], under: tuple[str, str]) -> None:
    """Write a function once more under another name."""
    definition = str(connection.scalar(FUNCTION, {"signature": signature(schema, of)}))
    run(connection, definition.replace(f".{of[0]}(", f".{under[0]}(", 1))


def clean_up(connection: Connection, schema: str, here: Layout) -> None:
    """Drop what a conversion leaves, or what was begun of one that nobody wants any more."""
    run(connection, f"DROP FUNCTION IF EXISTS {schema}.{NOTE}() CASCADE")
    for table in (FORMER, NEXT, BATCHES, CHANGES):
        run(connection, f"DROP TABLE IF EXISTS {schema}.{table} CASCADE")
    if here is Layout.PARTITIONS:
        run(connection, f"DROP FUNCTION IF EXISTS {schema}.{DELETED}()")
