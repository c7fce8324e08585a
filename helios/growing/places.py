"""The places that klines can be copied into: what each is made of, and how room is made for rows."""

from datetime import UTC, datetime

from sqlalchemy import Connection, text

from helios.growing.ground import NEXT, run
from helios.growing.planning import Plan
from helios.growing.sharding import Shards
from helios.layout import EXTENSION_SCHEMA, Layout
from helios.models import Interval

# The least number of hash partitions that keeps every interval apart: then no chunk holds two intervals, so that one
# is read, compressed and dropped without the others. Partitions without rows cost nothing.
SLICES = text("""
    SELECT number FROM generate_series(CAST(:intervals AS integer), 32767) AS number
    WHERE CAST(:intervals AS integer) = (
        SELECT count(DISTINCT least(hash / (2147483647 / number), number - 1))
        FROM unnest(CAST(:names AS text[])) AS name, _timescaledb_functions.get_partition_hash(name) AS hash
    )
    ORDER BY number LIMIT 1
""")
LONG_ENOUGH = text("SELECT set_config('timescaledb.max_tuples_decompressed_per_dml_transaction', '0', true)")
# Chunks of one interval or of all, with what says whether rows have been written since they were compressed.
UNCOMPRESSED = text("""
    SELECT format('%I.%I', chunk.schema_name, chunk.table_name)
    FROM _timescaledb_catalog.hypertable AS hyper
    JOIN _timescaledb_catalog.chunk ON chunk.hypertable_id = hyper.id
    JOIN _timescaledb_catalog.chunk_constraint AS holds ON holds.chunk_id = chunk.id
    JOIN _timescaledb_catalog.dimension_slice AS slice ON slice.id = holds.dimension_slice_id
    JOIN _timescaledb_catalog.dimension AS dimension ON dimension.id = slice.dimension_id
    WHERE hyper.schema_name = :schema AND hyper.table_name = :name AND chunk.status <> 1
      AND dimension.column_name = 'open_time' AND slice.range_end <= :until
    ORDER BY slice.range_end, chunk.id
""")


class Partitions:
    """Partitions by interval, then by UTC year, as the revisions make them."""

    def __init__(self, schema: str) -> None:
        """Note the schema, quoted."""
        self.schema = schema

    def make(self, connection: Connection) -> None:
        """Make the table and a partition for each interval; those of the years come as they are needed."""
        run(
            connection,
            f"CREATE TABLE {self.schema}.{NEXT} (LIKE {self.schema}.klines INCLUDING ALL) PARTITION BY LIST (interval)",
        )
        for interval in Interval:
            name = f"{self.schema}.klines_{interval}"
            run(
                connection,
                f"CREATE TABLE {name} PARTITION OF {self.schema}.{NEXT} FOR VALUES IN ('{interval}') "
                "PARTITION BY RANGE (open_time)",
            )
            run(connection, f"COMMENT ON TABLE {name} IS 'Candles of {interval}; partitioned by UTC year'")
            self.leave_to_owner(connection, name)
            self.make_room(connection, interval, datetime.now(UTC), datetime.now(UTC).replace(month=12, day=31))

    def make_room(self, connection: Connection, interval: str, first: datetime, last: datetime) -> None:
        """Make the partitions of the years, and of the one that follows."""
        for year in range(first.astimezone(UTC).year, last.astimezone(UTC).year + 2):
            name = f"{self.schema}.klines_{interval}_{year}"
            if connection.scalar(text("SELECT to_regclass(:name)"), {"name": name}) is None:
                run(
                    connection,
                    f"CREATE TABLE {name} PARTITION OF {self.schema}.klines_{interval} "
                    f"FOR VALUES FROM ('{year}-01-01 00:00:00+00') TO ('{year + 1}-01-01 00:00:00+00')",
                )
                run(connection, f"COMMENT ON TABLE {name} IS 'Candles of {interval} in {year}'")
                self.leave_to_owner(connection, name)

    def ended(self, connection: Connection, table: str, until: datetime) -> list[str]:  # noqa: ARG002 - a Hypertable needs them
        """List nothing: partitions are not compressed."""
        return []

    def leave_to_owner(self, connection: Connection, name: str) -> None:
        """Take every right on a partition from all but its owner, and have direct writes noticed."""
        connection.execute(text(f"SELECT {self.schema}.leave_to_owner(CAST(:name AS regclass))"), {"name": name})


class Hypertable:
    """A hypertable of TimescaleDB with chunks of one interval each, columns compressed by series."""

    def __init__(self, schema: str, plan: Plan) -> None:
        """Note the schema, quoted, and the length of chunks."""
        self.schema, self.chunk = schema, plan.chunk

    def make(self, connection: Connection) -> None:
        """Make the table, its two dimensions, and say how it is compressed."""
        name = f"{self.schema}.{NEXT}"
        run(connection, f"CREATE TABLE {name} (LIKE {self.schema}.klines INCLUDING ALL)")
        there = connection.scalar(EXTENSION_SCHEMA)
        names = [str(each) for each in Interval]
        slices = connection.scalar(SLICES, {"names": names, "intervals": len(names)})
        connection.execute(
            text(
                f"SELECT {there}.create_hypertable(CAST(:name AS regclass), "
                f"{there}.by_range('open_time', CAST(:chunk AS interval)), create_default_indexes => false)"
            ),
            {"name": name, "chunk": self.chunk},
        )
        connection.execute(
            text(f"SELECT {there}.add_dimension(CAST(:name AS regclass), {there}.by_hash('interval', :slices))"),
            {"name": name, "slices": slices},
        )
        run(
            connection,
            f"ALTER TABLE {name} SET (timescaledb.enable_columnstore, "
            "timescaledb.segmentby = 'instrument_id, interval', timescaledb.orderby = 'open_time')",
        )

    def make_room(self, connection: Connection, interval: str, first: datetime, last: datetime) -> None:  # noqa: ARG002 - a Hypertable needs them
        """Lift the limit on rows that a transaction may decompress; chunks make themselves."""
        connection.execute(LONG_ENOUGH)

    def ended(self, connection: Connection, table: str, until: datetime) -> list[str]:
        """List the chunks that have ended and hold rows that are not compressed."""
        schema = connection.scalar(text("SELECT parse_ident(:schema)"), {"schema": self.schema})
        told = {"schema": schema[0], "name": table, "until": round(until.timestamp()) * 1_000_000}
        return [str(each) for each in connection.scalars(UNCOMPRESSED, told)]

    def compress(self, connection: Connection, chunk: str) -> None:
        """Compress a chunk, also one that was compressed and written to since."""
        there = connection.scalar(EXTENSION_SCHEMA)
        connection.execute(text(f"SELECT {there}.compress_chunk(CAST(:chunk AS regclass))"), {"chunk": chunk})


Place = Partitions | Hypertable | Shards


def place_for(plan: Plan, schema: str) -> Place:
    """Choose the place that a plan goes to; the schema is quoted."""
    if plan.to is Layout.TIMESCALEDB:
        return Hypertable(schema, plan)
    return Shards(schema) if plan.to is Layout.CITUS else Partitions(schema)
