"""What a policy would remove, and what would remain: looked up, nothing changed."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Row, Select, Table, func, select, text

from helios.layout import Layout, layout_of
from helios.models import DataQualityMetric, Interval, Kline, Order, OrderHistory, Signal
from helios.models.orders import OPEN_STATUSES
from helios.retention.policy import Policy, Rule, Subject

SCHEMA = str(Kline.__table__.schema)
# Tables of their own, because a partition that a killed run has detached is none any more. The mark is written into
# its comment before, so that what somebody detached to keep it is never taken for it.
MARK = "helios retain is dropping it: {interval} from {lower} to {upper}"
MARKED = r"helios retain is dropping it: (\S+) from (\S+) to (\S+)$"
PARTS = text(r"""
    WITH intervals AS (
        SELECT part.oid, (regexp_match(pg_get_expr(part.relpartbound, part.oid), 'IN \(''([^'']+)''\)'))[1] AS of
        FROM pg_inherits JOIN pg_class AS part ON part.oid = inhrelid
        WHERE inhparent = to_regclass(format('%I.klines', CAST(:schema AS text)))
    ), leaves AS (
        SELECT leaf.oid, intervals.of, intervals.oid AS parent,
               CASE WHEN inhdetachpending THEN 'detaching' ELSE 'attached' END AS state,
               regexp_match(pg_get_expr(leaf.relpartbound, leaf.oid), 'FROM \(''([^'']+)''\) TO \(''([^'']+)''\)')
                   AS bounds
        FROM intervals JOIN pg_inherits ON inhparent = intervals.oid JOIN pg_class AS leaf ON leaf.oid = inhrelid
        WHERE leaf.relkind = 'r'
        UNION ALL
        SELECT leaf.oid, mark[1], NULL, 'detached', mark[2:3]
        FROM pg_class AS leaf, regexp_match(obj_description(leaf.oid, 'pg_class'), :marked) AS mark
        WHERE leaf.relkind = 'r' AND NOT leaf.relispartition AND leaf.relname LIKE 'klines\_%'
            AND leaf.relnamespace = to_regnamespace(quote_ident(:schema)) AND mark IS NOT NULL
    )
    SELECT leaf.oid::bigint, leaf.relname::text AS name, leaves.of AS interval, leaves.state,
           parent.relname::text AS parent, bounds[1]::timestamptz AS lower, bounds[2]::timestamptz AS upper,
           pg_total_relation_size(leaf.oid) AS bytes,
           CASE WHEN pg_relation_size(leaf.oid) = 0 THEN 0
                WHEN leaf.reltuples >= 0 AND leaf.relpages > 0 THEN
                    leaf.reltuples / leaf.relpages * pg_relation_size(leaf.oid) / current_setting('block_size')::int
                ELSE coalesce(nullif(pg_stat_get_live_tuples(leaf.oid), 0), pg_relation_size(leaf.oid) / 100)
           END::bigint AS rows
    FROM leaves JOIN pg_class AS leaf ON leaf.oid = leaves.oid
    LEFT JOIN pg_class AS parent ON parent.oid = leaves.parent
    WHERE bounds IS NOT NULL AND leaves.of IS NOT NULL AND leaf.oid = coalesce(CAST(:oid AS bigint), leaf.oid::bigint)
    ORDER BY bounds[1]::timestamptz, leaf.relname
""")


# The same of a hypertable. A slice of the second dimension holds one interval, which its hash tells.
CHUNKS = text("""
    SELECT class.oid::bigint, chunk.table_name::text AS name, chunk.schema_name::text AS home, known.interval,
           'chunk' AS state, NULL AS parent,
           to_timestamp(times.range_start / 1000000) AS lower, to_timestamp(times.range_end / 1000000) AS upper,
           pg_total_relation_size(class.oid) + coalesce(pg_total_relation_size(packed.oid), 0) AS bytes,
           greatest(class.reltuples, 0)::bigint + coalesce((
               SELECT numrows_pre_compression FROM _timescaledb_catalog.compression_chunk_size AS size
               WHERE size.chunk_id = chunk.id
           ), 0) AS rows
    FROM _timescaledb_catalog.hypertable AS hyper
    JOIN _timescaledb_catalog.chunk ON chunk.hypertable_id = hyper.id
    JOIN pg_class AS class ON class.oid = to_regclass(format('%I.%I', chunk.schema_name, chunk.table_name))
    LEFT JOIN _timescaledb_catalog.chunk AS beside ON beside.id = chunk.compressed_chunk_id
    LEFT JOIN pg_class AS packed ON packed.oid = to_regclass(format('%I.%I', beside.schema_name, beside.table_name))
    CROSS JOIN LATERAL (
        SELECT range_start, range_end FROM _timescaledb_catalog.chunk_constraint AS holds
        JOIN _timescaledb_catalog.dimension_slice AS slice ON slice.id = holds.dimension_slice_id
        JOIN _timescaledb_catalog.dimension ON dimension.id = slice.dimension_id
        WHERE holds.chunk_id = chunk.id AND dimension.column_name = 'open_time'
    ) AS times
    CROSS JOIN LATERAL (
        SELECT name AS interval FROM _timescaledb_catalog.chunk_constraint AS holds
        JOIN _timescaledb_catalog.dimension_slice AS slice ON slice.id = holds.dimension_slice_id
        JOIN _timescaledb_catalog.dimension ON dimension.id = slice.dimension_id
        CROSS JOIN unnest(CAST(:intervals AS text[])) AS name
        WHERE holds.chunk_id = chunk.id AND dimension.column_name = 'interval'
          AND _timescaledb_functions.get_partition_hash(name) >= slice.range_start
          AND _timescaledb_functions.get_partition_hash(name) < slice.range_end
    ) AS known
    WHERE hyper.schema_name = :schema AND hyper.table_name = 'klines'
      AND class.oid = coalesce(CAST(:oid AS bigint), class.oid::bigint)
    ORDER BY times.range_start, chunk.id
""")
# The same of shards: one level of partitions, which Citus cannot detach concurrently.
SHARDED = text(r"""
    SELECT leaf.oid::bigint, leaf.relname::text AS name, bounds[1] AS interval, 'sharded' AS state, NULL AS parent,
           bounds[2]::timestamptz AS lower, bounds[3]::timestamptz AS upper,
           citus_total_relation_size(leaf.oid::regclass) AS bytes, citus_relation_size(leaf.oid::regclass) / 100 AS rows
    FROM pg_inherits JOIN pg_class AS leaf ON leaf.oid = inhrelid
    CROSS JOIN LATERAL regexp_match(pg_get_expr(leaf.relpartbound, leaf.oid),
        'FROM \(''([^'']+)'', ''([^'']+)''\) TO \(''[^'']+'', ''([^'']+)''\)') AS bounds
    WHERE inhparent = to_regclass(format('%I.klines', CAST(:schema AS text)))
        AND leaf.oid = coalesce(CAST(:oid AS bigint), leaf.oid::bigint)
    ORDER BY bounds[2]::timestamptz, leaf.relname
""")


class State(StrEnum):
    """Where a partition stands, the second and third are what a killed run left; or what is dropped as it is."""

    ATTACHED = "attached"
    DETACHING = "detaching"
    DETACHED = "detached"
    CHUNK = "chunk"  # of a hypertable
    SHARDED = "sharded"  # with all its shards


@dataclass(frozen=True, kw_only=True)
class Part:
    """A partition or chunk of klines: candles open from `lower` up to `upper`; `rows` is an estimate, `cutoff` its
    rule's, `home` the schema of its table.
    """  # noqa: D205 - one sentence, longer than a line

    oid: int
    name: str
    home: str = SCHEMA
    parent: str | None
    interval: str
    state: State
    lower: datetime
    upper: datetime
    rows: int
    bytes: int
    cutoff: datetime | None

    @property
    def goes(self) -> bool:
        """Whether all of it is older than its rule says."""
        return self.cutoff is not None and self.upper <= self.cutoff

    @property
    def reason(self) -> str:
        """Say why it goes or stays."""
        whole = self.state in (State.ATTACHED, State.CHUNK, State.SHARDED)
        left = "" if whole else f", {self.state} by a run that was killed"
        if self.cutoff is None:
            return f"kept forever{left}"
        if self.goes:
            return f"all of it is before {self.cutoff:%Y-%m-%d}{left}"
        if self.lower < self.cutoff:
            return f"only a part of it is before {self.cutoff:%Y-%m-%d}: it goes when all of it is{left}"
        return f"none of it is before {self.cutoff:%Y-%m-%d}{left}"


@dataclass(frozen=True, kw_only=True)
class Share:
    """Rows of a table that are older than the cutoff, and those that remain."""

    rule: Rule
    cutoff: datetime
    rows: int
    remaining: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a policy removes, as of a moment on the server's clock."""

    now: datetime
    parts: list[Part] = field(default_factory=list)
    shares: list[Share] = field(default_factory=list)

    @property
    def going(self) -> list[Part]:
        """The partitions that go; those that a killed run left come first, because they stand in the way of others."""
        return sorted((each for each in self.parts if each.goes), key=lambda each: each.state is State.ATTACHED)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to remove."""
        return not self.going and not any(each.rows for each in self.shares)


def plan(connection: Connection, policy: Policy, *, now: datetime | None = None) -> Plan:
    """Look up what a policy would remove; without `now`, the server's clock tells the ages.

    A partition goes only as a whole: one with a single moment that is young enough stays. Rows of partitions are
    estimates, those of other tables are counted.
    """
    now = now or connection.execute(select(func.now())).scalar_one()
    order = [each.interval.value for each in policy.rules if each.interval]
    parts = []
    for row in parts_of(connection):
        rule = policy.of_klines(row.interval)
        if rule is not None:
            values = {**row._mapping, "state": State(row.state)}  # noqa: SLF001 - SQLAlchemy's public name
            parts.append(Part(**values, cutoff=rule.age.before(now) if rule.age else None))
    parts.sort(key=lambda each: (order.index(each.interval), each.lower))
    shares = [share_of(connection, rule, rule.age.before(now)) for rule in policy.of_rows() if rule.age]
    return Plan(now=now, parts=parts, shares=shares)


def parts_of(connection: Connection, oid: int | None = None) -> Sequence[Row[Any]]:
    """Look up the partitions of klines, or the chunks; with `oid`, that one."""
    layout = layout_of(connection, SCHEMA)
    if layout is Layout.CITUS:
        return connection.execute(SHARDED, {"schema": SCHEMA, "oid": oid}).all()
    if layout is Layout.TIMESCALEDB:
        told = {"schema": SCHEMA, "oid": oid, "intervals": [each.value for each in Interval]}
        return connection.execute(CHUNKS, told).all()
    return connection.execute(PARTS, {"schema": SCHEMA, "marked": MARKED, "oid": oid}).all()


def share_of(connection: Connection, rule: Rule, cutoff: datetime) -> Share:
    """Count the rows that are older than a moment."""
    if rule.subject is Subject.HISTORY:
        newest = (
            select(OrderHistory.order_id, func.count().label("rows"))
            .group_by(OrderHistory.order_id)
            .having(func.max(OrderHistory.recorded_at) < cutoff)
            .subquery()
        )
        old: Select[Any] = (
            select(func.coalesce(func.sum(newest.c.rows), 0))
            .join(Order, Order.id == newest.c.order_id)
            .where(Order.status.not_in(OPEN_STATUSES))
        )
        table: Any = OrderHistory
    else:
        table = table_of(rule.subject)
        old = select(func.count()).where(age_column(rule.subject) < cutoff)
    rows = int(connection.execute(old).scalar_one())
    remaining = connection.execute(select(func.count()).select_from(table)).scalar_one() - rows
    return Share(rule=rule, cutoff=cutoff, rows=rows, remaining=remaining)


def table_of(subject: Subject) -> Table:
    """Find the table whose rows are deleted one by one."""
    table = {Subject.QUALITY: DataQualityMetric, Subject.SIGNALS: Signal}[subject].__table__
    if not isinstance(table, Table):
        raise TypeError(f"{table!r} is not a table")
    return table


def age_column(subject: Subject) -> Any:  # noqa: ANN401 - a column of either table
    """Find the column that tells a row's age."""
    return table_of(subject).c["measured_at" if subject is Subject.QUALITY else "signalled_at"]
