"""What the Redis mirrors follow: an outbox that triggers fill in the writing transaction, and where the mirrors stand.

The triggers are statement-level ones and read transition tables, so raw SQL, COPY and upserts count, and a bulk load
of klines costs an entry for each series. They notify nobody: NOTIFY would queue concurrent commits and forbid
two-phase ones. The functions are SECURITY DEFINER: whoever may write a table needs no right on the outbox.

A partition gets no transition tables: who writes to it directly, the owner alone may, has everything mirrored anew.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)
OPEN = "status IN ('PENDING_NEW', 'NEW', 'PARTIALLY_FILLED', 'PENDING_CANCEL', 'UNKNOWN')"
# table: subject, the columns of its key, the key as text
ROWS = {
    "tickers": ("ticker", "instrument_id", "instrument_id::text"),
    "positions": (
        "position",
        "account_id, instrument_id, position_side",
        "concat(account_id, '|', instrument_id, '|', position_side)",
    ),
}
# The same, and which rows count: where a row may cease to count, or moves to another partition, an update has to look
# at what was before; each row of klines is one of a series.
FOLLOWED = {
    "klines": ("series", "instrument_id, interval", "concat(instrument_id, '|', interval)", ""),
    "orders": ("order", "account_id, id", "concat(account_id, '|', id)", f"WHERE {OPEN}"),
}
# Tables whose names are part of the keys in Redis: an update counts where it changes one of these columns.
NAMING = {
    "instruments": ("instrument", "id, exchange, market, symbol"),
    "accounts": ("account", "id, exchange, name"),
}
FUNCTIONS = (
    *(f"mirror_{table}()" for table in (*ROWS, *FOLLOWED, *NAMING)),
    *(f"mirror_moved_{table}()" for table in ROWS),
    "mirror_all()",
    "mirror_series(regclass)",
    "empty_mirror_outbox()",
)


def upgrade() -> None:
    create_bookkeeping()
    for table, (subject, columns, key) in ROWS.items():
        create_function(table, f"INSERT INTO mirror_outbox (subject, key) SELECT '{subject}', {key} FROM changed;")
        create_triggers(table, "NEW TABLE AS changed")
        create_moved(table, subject, columns)
    for table, (subject, columns, key, where) in FOLLOWED.items():
        create_function(
            table,
            f"""
            IF TG_OP = 'UPDATE' THEN
                INSERT INTO mirror_outbox (subject, key) SELECT '{subject}', {key} FROM (
                    SELECT {columns} FROM former {where} UNION SELECT {columns} FROM changed {where}
                ) AS touched;
            ELSE
                INSERT INTO mirror_outbox (subject, key)
                SELECT '{subject}', {key} FROM (SELECT DISTINCT {columns} FROM changed {where}) AS touched;
            END IF;
            """,
        )
        create_triggers(table)
    for table, (subject, columns) in NAMING.items():
        create_function(
            table,
            f"""
            IF TG_OP = 'UPDATE' THEN
                INSERT INTO mirror_outbox (subject, key)
                SELECT '{subject}', json_build_array({columns})::text FROM (
                    (SELECT {columns} FROM former EXCEPT SELECT {columns} FROM changed)
                    UNION ALL (SELECT {columns} FROM changed EXCEPT SELECT {columns} FROM former)
                ) AS touched;
            ELSE
                INSERT INTO mirror_outbox (subject, key)
                SELECT '{subject}', json_build_array({columns})::text FROM changed;
            END IF;
            """,
        )
        create_triggers(table)
    create_partition_triggers()
    create_owners_functions()
    for function in FUNCTIONS:
        op.execute(f"REVOKE ALL ON FUNCTION {function} FROM PUBLIC")


def downgrade() -> None:
    replace_leave_to_owner("")
    for function in FUNCTIONS:
        op.execute(f"DROP FUNCTION {function} CASCADE")  # with the triggers that call it, also those of partitions
    for table in ("mirror_state", "mirror_points", "mirror_outbox"):
        op.drop_table(table)


def column(
    name: str, kind: sa.types.TypeEngine, comment: str, *, null: bool = False, default: str | None = None
) -> sa.Column:
    server_default = None if default is None else sa.text(default)
    return sa.Column(name, kind, nullable=null, server_default=server_default, comment=comment)


def create_bookkeeping() -> None:
    op.create_table(
        "mirror_outbox",
        column(
            "xid",
            sa.BigInteger(),
            "Transaction that changed it",
            default="CAST(CAST(pg_current_xact_id() AS text) AS bigint)",
        ),
        column("subject", sa.Text(), "What it is: ticker, series, order, ...; all for everything"),
        column("key", sa.Text(), "Which one: ids with | between, or a JSON list with names"),
        comment="What changed and is to be mirrored; never updated or deleted from, emptied by TRUNCATE",
        postgresql_with={"autovacuum_enabled": "off"},
    )
    op.create_index("ix_mirror_outbox_xid", "mirror_outbox", ["xid"])
    op.create_table(
        "mirror_points",
        column("bucket", sa.Text(), "Bucket of keys in Redis"),
        column("number", sa.BigInteger(), "Number of the batch; the highest counts"),
        column("token", sa.Text(), "Random; Redis holds the same while it stands at this batch"),
        column("snapshot", sa.Text(), "What the batch saw (pg_snapshot): everything in it is relayed"),
        column("relayed_at", MOMENT, "When", default="clock_timestamp()"),
        sa.PrimaryKeyConstraint("bucket", "number", name="pk_mirror_points"),
        comment="Where the mirrors stand, a row for each batch; emptied together with the outbox but for the newest",
        postgresql_with={"autovacuum_enabled": "off"},
    )
    op.create_table(
        "mirror_state",
        column("bucket", sa.Text(), "Bucket of keys in Redis; whoever holds its row leads"),
        column("server", sa.BigInteger(), "System identifier of the server it was rebuilt from"),
        column("form", sa.Text(), "Form of the values; a Helios that writes another one rebuilds"),
        column("leader", sa.Text(), "Who rebuilt it last: host and process", null=True),
        column("rebuilt_at", MOMENT, "When everything was rebuilt last; NULL: never", null=True),
        column("rebuild_reason", sa.Text(), "Why it was rebuilt", null=True),
        column("rebuild_milliseconds", sa.BigInteger(), "How long that took", null=True),
        sa.PrimaryKeyConstraint("bucket", name="pk_mirror_state"),
        sa.CheckConstraint("bucket ~ '^[a-z0-9]+$'", name=op.f("ck_mirror_state_bucket_is_plain")),
        comment="The buckets of the mirrors in Redis",
    )
    # No batch yet: no Redis holds this token, so the first relay mirrors everything.
    op.execute("INSERT INTO mirror_state (bucket, server, form) VALUES ('0', 0, '')")
    op.execute(
        "INSERT INTO mirror_points (bucket, number, token, snapshot, relayed_at) "
        "VALUES ('0', 0, 'nothing yet', '1:1:', '1970-01-01 00:00:00+00')"
    )


def create_function(table: str, body: str) -> None:
    op.execute(f"""
        CREATE FUNCTION mirror_{table}() RETURNS trigger
        LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
        BEGIN
            {body}
            RETURN NULL;
        END
        $$
    """)
    op.execute(f"COMMENT ON FUNCTION mirror_{table}() IS 'Writes to mirror_outbox what changed'")


def create_moved(table: str, subject: str, columns: str) -> None:
    """Follow the key that an update takes away; it costs nothing where no column of the key is set."""
    names = columns.split(", ")
    old = ", ".join(f"OLD.{name}" for name in names)
    new = ", ".join(f"NEW.{name}" for name in names)
    create_function(
        f"moved_{table}",
        f"INSERT INTO mirror_outbox (subject, key) VALUES ('{subject}', concat_ws('|', {old}));",
    )
    op.execute(f"""
        CREATE TRIGGER mirror_moved AFTER UPDATE OF {columns} ON {table}
        FOR EACH ROW WHEN (({old}) IS DISTINCT FROM ({new})) EXECUTE FUNCTION mirror_moved_{table}()
    """)


def create_triggers(table: str, of_update: str = "OLD TABLE AS former NEW TABLE AS changed") -> None:
    for event, transition in (
        ("insert", "NEW TABLE AS changed"),
        ("update", of_update),
        ("delete", "OLD TABLE AS changed"),
    ):
        op.execute(f"""
            CREATE TRIGGER mirror_{event} AFTER {event.upper()} ON {table}
            REFERENCING {transition} FOR EACH STATEMENT EXECUTE FUNCTION mirror_{table}()
        """)


def create_partition_triggers() -> None:
    op.execute("""
        CREATE FUNCTION mirror_all() RETURNS trigger
        LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
        BEGIN
            INSERT INTO mirror_outbox (subject, key) VALUES ('all', '');
            RETURN NULL;
        END
        $$
    """)
    op.execute("COMMENT ON FUNCTION mirror_all() IS 'Writes to mirror_outbox that everything is to be mirrored anew'")
    for table in (*ROWS, *FOLLOWED, *NAMING):
        op.execute(f"""
            CREATE TRIGGER mirror_all AFTER TRUNCATE ON {table}
            FOR EACH STATEMENT EXECUTE FUNCTION mirror_all()
        """)
    # Whoever makes a partition calls this, so a partition of tomorrow has the trigger too.
    replace_leave_to_owner("""
            EXECUTE format('CREATE OR REPLACE TRIGGER mirror_all AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON %s '
                           'FOR EACH STATEMENT EXECUTE FUNCTION mirror_all()', whose);""")
    op.execute("""
        DO $$
        BEGIN
            PERFORM leave_to_owner(relid) FROM pg_partition_tree('klines') WHERE level > 0;
        END
        $$
    """)


def replace_leave_to_owner(more: str) -> None:
    op.execute(f"""
        CREATE OR REPLACE FUNCTION leave_to_owner(whose regclass) RETURNS void
        LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
        DECLARE
            grantee oid;
        BEGIN
            -- Default privileges reach partitions too. A right on one would pass by the rights and triggers of klines.
            FOR grantee IN
                SELECT DISTINCT entry.grantee FROM pg_class, aclexplode(relacl) AS entry
                WHERE oid = whose AND entry.grantee <> relowner
            LOOP
                EXECUTE format('REVOKE ALL ON %s FROM %s', whose,
                               CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END);
            END LOOP;{more}
        END
        $$
    """)


def create_owners_functions() -> None:
    op.execute("""
        CREATE FUNCTION mirror_series(part regclass) RETURNS bigint
        LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
        DECLARE
            entries bigint;
        BEGIN
            -- From one series to the next through the primary key: a partition may hold many millions of rows.
            EXECUTE format($query$
                WITH RECURSIVE series AS (
                    (SELECT instrument_id, interval FROM %1$s ORDER BY instrument_id, interval LIMIT 1)
                    UNION ALL
                    SELECT following.* FROM series, LATERAL (
                        SELECT instrument_id, interval FROM %1$s AS each
                        WHERE (each.instrument_id, each.interval) > (series.instrument_id, series.interval)
                        ORDER BY instrument_id, interval LIMIT 1
                    ) AS following
                )
                INSERT INTO mirror_outbox (subject, key)
                SELECT 'series', concat(instrument_id, '|', interval) FROM series
            $query$, part);
            GET DIAGNOSTICS entries = ROW_COUNT;
            RETURN entries;
        END
        $$
    """)
    op.execute(
        "COMMENT ON FUNCTION mirror_series(regclass) IS 'Writes each series of a table of klines to mirror_outbox: for "
        "whoever attaches or detaches one, in the same transaction'"
    )
    op.execute("""
        CREATE FUNCTION empty_mirror_outbox() RETURNS boolean
        LANGUAGE plpgsql SECURITY DEFINER
        SET search_path FROM CURRENT SET lock_timeout TO '20ms' SET enable_seqscan TO off AS $$
        DECLARE
            most CONSTANT integer := 10000;
            waiting mirror_outbox[];
            newest mirror_points[];
        BEGIN
            -- Nobody relays meanwhile, for TRUNCATE is seen by older snapshots too; and nobody writes.
            PERFORM FROM mirror_state ORDER BY bucket FOR UPDATE;
            LOCK TABLE mirror_outbox IN ACCESS EXCLUSIVE MODE;
            newest := ARRAY(
                SELECT point FROM mirror_state AS state, mirror_points AS point
                WHERE point.bucket = state.bucket
                  AND number = (SELECT max(number) FROM mirror_points WHERE bucket = state.bucket)
            );
            waiting := ARRAY(
                SELECT entry FROM mirror_outbox AS entry
                WHERE entry.xid >= (
                    SELECT min(CAST(CAST(pg_snapshot_xmin(CAST(snapshot AS pg_snapshot)) AS text) AS bigint))
                    FROM unnest(newest)
                ) AND NOT (
                    SELECT bool_and(pg_visible_in_snapshot(CAST(CAST(entry.xid AS text) AS xid8),
                                                           CAST(snapshot AS pg_snapshot)))
                    FROM unnest(newest)
                )
                LIMIT most + 1
            );
            IF cardinality(waiting) > most THEN
                RETURN false;
            END IF;
            TRUNCATE mirror_outbox, mirror_points;
            INSERT INTO mirror_outbox SELECT * FROM unnest(waiting);
            INSERT INTO mirror_points SELECT * FROM unnest(newest);
            RETURN true;
        EXCEPTION WHEN lock_not_available THEN
            RETURN false;
        END
        $$
    """)
    op.execute(
        "COMMENT ON FUNCTION empty_mirror_outbox() IS 'Empties mirror_outbox but for what waits to be relayed; false "
        "where too much waits, or somebody holds it'"
    )
