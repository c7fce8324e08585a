"""Digests: whether the rows of tables, and the objects of schemas, are what they were."""

from collections.abc import Iterable

from sqlalchemy import Connection, Table, text

from helios.testing.undo.following import bookkeeping
from helios.testing.undo.place import quoted, run, transaction

# A row as text depends on the session; one way of writing for all.
WRITTEN = """
    SET LOCAL timezone TO 'UTC'; SET LOCAL datestyle TO 'ISO, YMD'; SET LOCAL intervalstyle TO 'postgres';
    SET LOCAL extra_float_digits TO 1; SET LOCAL bytea_output TO 'hex'; SET LOCAL xmloption TO 'content';
    SET LOCAL search_path TO pg_catalog; SET LOCAL jit TO off
"""
OBJECTS = text("""
    WITH space AS (SELECT oid, nspname FROM pg_namespace WHERE nspname = ANY (:schemas)),
    part AS (
        SELECT c.oid, format('%s %s.%s', CASE c.relkind WHEN 'S' THEN 'sequence' WHEN 'v' THEN 'view'
                   WHEN 'm' THEN 'materialized view' WHEN 'i' THEN 'index' WHEN 'I' THEN 'index' ELSE 'table' END,
                   nspname, relname) AS name,
               concat_ws(' ', relkind, relpersistence, relispartition,
                   (SELECT string_agg(concat_ws(' ', attname, atttypid, atttypmod, attnotnull, attgenerated,
                                                attidentity, atthasdef), ',' ORDER BY attnum)
                    FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped
                      AND c.relkind NOT IN ('S', 'i', 'I')),
                   CASE WHEN c.relkind IN ('i', 'I') THEN pg_get_indexdef(c.oid) END) AS definition
        FROM pg_class AS c JOIN space ON space.oid = relnamespace
        WHERE relkind IN ('r', 'p', 'f', 'v', 'm', 'S', 'i', 'I')
        UNION ALL
        SELECT t.oid, format('trigger %s on %s.%s', tgname, nspname, relname),
               concat_ws(' ', tgtype, tgenabled, tgfoid::text, md5(pg_get_triggerdef(t.oid)))
        FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = tgrelid JOIN space ON space.oid = relnamespace
        WHERE NOT tgisinternal AND tgname NOT SIMILAR TO '(!|~)helios\\_%'
        UNION ALL
        SELECT c.oid, format('constraint %s on %s.%s', conname, nspname, relname), pg_get_constraintdef(c.oid)
        FROM pg_constraint AS c JOIN pg_class AS r ON r.oid = conrelid JOIN space ON space.oid = r.relnamespace
        WHERE conparentid = 0
        UNION ALL
        SELECT p.oid, format('function %s.%s(%s)', nspname, proname, pg_get_function_identity_arguments(p.oid)),
               md5(concat_ws(' ', prosrc, prosecdef, proconfig, prorettype))
        FROM pg_proc AS p JOIN space ON space.oid = pronamespace
    )
    SELECT name, md5(definition) AS digest FROM part ORDER BY name
""")


def digest(connection: Connection, tables: Iterable[Table]) -> dict[str, str]:
    """Hash every row of every table, all as of one moment; bookkeeping is left out.

    Gives the number of rows and two sums of hashes for each table, named with its schema.
    """
    default = connection.dialect.default_schema_name or "public"
    wanted = sorted({(each.schema or default, each.name) for each in tables if not bookkeeping(each)})
    if not wanted:
        return {}
    with transaction(connection, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"):
        run(connection, WRITTEN)
        parts = [rows(connection, place, space, name) for place, (space, name) in enumerate(wanted)]
        found = run(connection, " UNION ALL ".join(parts))
        return {".".join(wanted[place]): told for place, told in found}


def rows(connection: Connection, place: int, schema: str, name: str) -> str:
    """Write the query that hashes the rows of one table, in any order: their number, sums of two hashes of each."""
    return (
        f"SELECT {place}, concat_ws(', ', count(*) || ' rows', "
        "sum(hashtextextended(line, 0)), sum(hashtextextended(line, 1))) FROM (SELECT (helios_row.*)::text AS line "
        f"FROM {quoted(connection, schema)}.{quoted(connection, name)} AS helios_row) AS lines"
    )


def objects(connection: Connection, schemas: Iterable[str]) -> dict[str, str]:
    """Hash the definition of every table, index, constraint, trigger and function, and tell the sequences there are."""
    return {row.name: row.digest for row in connection.execute(OBJECTS, {"schemas": sorted(set(schemas))})}
