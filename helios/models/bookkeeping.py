"""What Helios keeps for itself about its Redis mirrors; no rows of a user's, and left out by tests and their undo.

Tables without classes: the relay (helios.mirrors) and the triggers of revision 0002 are their only writers.
"""

from sqlalchemy import BigInteger, CheckConstraint, Column, Index, PrimaryKeyConstraint, Table, Text, text

from helios.models.base import UtcMoment, metadata

# xid8 and pg_snapshot are kept as a number and as text: SQLAlchemy knows neither type.
mirror_outbox = Table(
    "mirror_outbox",
    metadata,
    Column(
        "xid",
        BigInteger,
        nullable=False,
        server_default=text("CAST(CAST(pg_current_xact_id() AS text) AS bigint)"),
        comment="Transaction that changed it",
    ),
    Column("subject", Text, nullable=False, comment="What it is: ticker, series, order, ...; all for everything"),
    Column("key", Text, nullable=False, comment="Which one: ids with | between, or a JSON list with names"),
    Index("ix_mirror_outbox_xid", "xid"),
    comment="What changed and is to be mirrored; never updated or deleted from, emptied by TRUNCATE",
    postgresql_with={"autovacuum_enabled": "off"},
    info={"bookkeeping": True},
)

mirror_points = Table(
    "mirror_points",
    metadata,
    Column("bucket", Text, nullable=False, comment="Bucket of keys in Redis"),
    Column(
        "number", BigInteger, autoincrement=False, nullable=False, comment="Number of the batch; the highest counts"
    ),
    Column("token", Text, nullable=False, comment="Random; Redis holds the same while it stands at this batch"),
    Column("snapshot", Text, nullable=False, comment="What the batch saw (pg_snapshot): everything in it is relayed"),
    Column("relayed_at", UtcMoment, nullable=False, server_default=text("clock_timestamp()"), comment="When"),
    PrimaryKeyConstraint("bucket", "number"),
    comment="Where the mirrors stand, a row for each batch; emptied together with the outbox but for the newest",
    postgresql_with={"autovacuum_enabled": "off"},
    info={"bookkeeping": True},
)

mirror_state = Table(
    "mirror_state",
    metadata,
    Column("bucket", Text, primary_key=True, comment="Bucket of keys in Redis; whoever holds its row leads"),
    Column("server", BigInteger, nullable=False, comment="System identifier of the server it was rebuilt from"),
    Column("form", Text, nullable=False, comment="Form of the values; a Helios that writes another one rebuilds"),
    Column("leader", Text, comment="Who rebuilt it last: host and process"),
    Column("rebuilt_at", UtcMoment, comment="When everything was rebuilt last; NULL: never"),
    Column("rebuild_reason", Text, comment="Why it was rebuilt"),
    Column("rebuild_milliseconds", BigInteger, comment="How long that took"),
    CheckConstraint("bucket ~ '^[a-z0-9]+$'", name="bucket_is_plain"),
    comment="The buckets of the mirrors in Redis",
    info={"bookkeeping": True},
)
