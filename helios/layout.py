"""How the klines are laid out: partitions, as the revisions make them, or a TimescaleDB hypertable."""

from enum import StrEnum

from sqlalchemy import Connection, text

from helios.errors import SchemaError


class Layout(StrEnum):
    """What holds the klines; `helios klines convert` goes from one to another."""

    PARTITIONS = "partitions"
    TIMESCALEDB = "timescaledb"


KIND = text("SELECT relkind FROM pg_class WHERE oid = to_regclass(format('%I.klines', CAST(:schema AS text)))")
# Asked only of a plain table: where the extension is not installed, there is no such view.
IS_HYPERTABLE = text("""
    SELECT EXISTS (SELECT FROM timescaledb_information.hypertables
                   WHERE hypertable_schema = :schema AND hypertable_name = 'klines')
""")
INSTALLED = text("SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'")
EXTENSION_SCHEMA = text("""
    SELECT quote_ident(nspname) FROM pg_extension JOIN pg_namespace AS space ON space.oid = extnamespace
    WHERE extname = 'timescaledb'
""")
OF_PARTITIONS = text("""
    SELECT sum(CASE WHEN reltuples >= 0 THEN reltuples ELSE pg_relation_size(oid) / 100 END)::bigint,
           sum(pg_total_relation_size(oid))::bigint
    FROM pg_partition_tree(to_regclass(format('%I.klines', CAST(:schema AS text)))) JOIN pg_class ON oid = relid
    WHERE relkind = 'r'
""")


def layout_of(connection: Connection, schema: str) -> Layout:
    """Tell how the klines of a schema are laid out.

    Raises:
        SchemaError: there are none, or they are a table that Helios did not make.

    """
    kind = connection.scalar(KIND, {"schema": schema})
    if kind is None:
        raise SchemaError(f"schema {schema!r} holds no klines: run `helios upgrade`")
    if kind == "p":
        return Layout.PARTITIONS
    if timescaledb(connection) and connection.scalar(IS_HYPERTABLE, {"schema": schema}):
        return Layout.TIMESCALEDB
    raise SchemaError(f"{schema}.klines is neither partitioned nor a hypertable: put back the table that upgrades made")


def timescaledb(connection: Connection) -> str | None:
    """Tell the version of TimescaleDB that is installed in the database; None where it is not."""
    version = connection.scalar(INSTALLED)
    return None if version is None else str(version)


def size_of(connection: Connection, schema: str, layout: Layout) -> tuple[int, int]:
    """Tell how many klines there are, as the server estimates it, and their bytes with indexes and compressed parts."""
    if layout is Layout.PARTITIONS:
        rows, size = connection.execute(OF_PARTITIONS, {"schema": schema}).one()
    else:
        there = connection.scalar(EXTENSION_SCHEMA)
        statement = f"""
            SELECT {there}.approximate_row_count(klines), {there}.hypertable_size(klines)
            FROM to_regclass(format('%I.klines', CAST(:schema AS text))) AS klines
        """
        rows, size = connection.execute(text(statement), {"schema": schema}).one()
    return int(rows or 0), int(size or 0)
