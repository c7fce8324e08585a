"""How the klines are laid out: partitions, as the revisions make them, a TimescaleDB hypertable, or shards of Citus."""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum

from sqlalchemy import Connection, text
from sqlalchemy.orm import Session

from helios.errors import SchemaError
from helios.names import function_name

Written = tuple[int, str, datetime, datetime]  # instrument id, interval, first and last open time


class Layout(StrEnum):
    """What holds the klines; `helios klines convert` goes from one to another."""

    PARTITIONS = "partitions"
    TIMESCALEDB = "timescaledb"
    CITUS = "citus"


KIND = text("SELECT relkind FROM pg_class WHERE oid = to_regclass(format('%I.klines', CAST(:schema AS text)))")
# Asked only of a plain table: where the extension is not installed, there is no such view.
IS_HYPERTABLE = text("""
    SELECT EXISTS (SELECT FROM timescaledb_information.hypertables
                   WHERE hypertable_schema = :schema AND hypertable_name = 'klines')
""")
INSTALLED = text("SELECT extversion FROM pg_extension WHERE extname = :name")
# Made by the conversion in the transaction that puts the shards in place, and dropped by the one back.
DISTRIBUTED = text("""
    SELECT to_regprocedure(format('%I.newest_klines(integer, text, integer)', CAST(:schema AS text))) IS NOT NULL
""")
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
OF_SHARDS = text("""
    SELECT sum(citus_relation_size(leaf) / 100)::bigint, sum(citus_total_relation_size(leaf, false))::bigint
    FROM pg_inherits CROSS JOIN LATERAL CAST(inhrelid AS regclass) AS leaf
    WHERE inhparent = to_regclass(format('%I.klines', CAST(:schema AS text)))
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
        return Layout.CITUS if distributed(connection, schema) else Layout.PARTITIONS
    if version_of(connection, "timescaledb") and connection.scalar(IS_HYPERTABLE, {"schema": schema}):
        return Layout.TIMESCALEDB
    raise SchemaError(f"{schema}.klines is neither partitioned nor a hypertable: put back the table that upgrades made")


def distributed(reader: Connection | Session, schema: str) -> bool:
    """Tell whether klines are shards of Citus: then no trigger follows them, and some questions take another form."""
    return bool(reader.scalar(DISTRIBUTED, {"schema": schema}))


def tell_written(writer: Connection | Session, schema: str, written: Sequence[Written]) -> None:
    """Tell the mirrors, and a conversion under way, which candles were written, where no trigger does: of shards.

    In the transaction that wrote them, and after it wrote: until then they could be no shards yet.
    """
    if not written or not distributed(writer, schema):
        return
    names = {"ids": "integer", "intervals": "text", "firsts": "timestamptz", "lasts": "timestamptz"}
    arrays = ", ".join(f"CAST(:{name} AS {kind}[])" for name, kind in names.items())
    columns = zip(*written, strict=True)
    told = text(f"SELECT {function_name(schema, 'tell_klines')}({arrays})")
    writer.execute(told, dict(zip(names, map(list, columns), strict=True)))


def make_partition(writer: Connection | Session, schema: str, interval: str, year: int) -> None:
    """Make the partition of an interval and a UTC year where it is missing, by the function that may."""
    function = function_name(schema, "make_kline_partition")
    values = {"interval": str(interval), "year": year}
    writer.execute(text(f"SELECT {function}(CAST(:interval AS text), CAST(:year AS integer))"), values)


def leaf_of(layout: Layout, interval: str, year: int) -> str:
    """Name the partition of an interval and a UTC year; shards have other names, to be made beside partitions."""
    return f"klines_{interval}_{year}{'_shards' if layout is Layout.CITUS else ''}"


def version_of(connection: Connection, extension: str) -> str | None:
    """Tell the version of an extension that is installed in the database; None where it is not."""
    version = connection.scalar(INSTALLED, {"name": extension})
    return None if version is None else str(version)


def size_of(connection: Connection, schema: str, layout: Layout) -> tuple[int, int]:
    """Tell how many klines there are, as the server estimates it, and their bytes with indexes and compressed parts."""
    if layout is Layout.TIMESCALEDB:
        there = connection.scalar(EXTENSION_SCHEMA)
        statement = text(f"""
            SELECT {there}.approximate_row_count(klines), {there}.hypertable_size(klines)
            FROM to_regclass(format('%I.klines', CAST(:schema AS text))) AS klines
        """)
    else:
        statement = OF_SHARDS if layout is Layout.CITUS else OF_PARTITIONS
    rows, size = connection.execute(statement, {"schema": schema}).one()
    return int(rows or 0), int(size or 0)
