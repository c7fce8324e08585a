"""Klines as shards of Citus: the table, and the functions that stand for what Citus refuses of such a table.

Citus distributes one level of partitions, refuses triggers on what it distributes, and does not plan a LATERAL
subquery with LIMIT nor a recursive question over several shards. So the partitions of interval and year are one level,
writers tell of what they wrote by `tell_klines`, and readers ask `newest_klines` and `kline_series`.
"""

from datetime import UTC, datetime

from sqlalchemy import Connection, text

from helios.growing.ground import NEXT, run, take_rights
from helios.layout import Layout, leaf_of
from helios.models import Interval

READ = ("newest_klines(integer, text, integer)", "kline_series(regclass)", "await_klines()")
WRITE = ("tell_klines(integer[], text[], timestamptz[], timestamptz[])",)
# At once, so that nobody is refused until the upgrade's own query has looked at them.
GRANTEES = text("""
    SELECT quote_ident(rolname) AS name, privilege_type = 'INSERT' AS writes
    FROM pg_class, aclexplode(relacl) JOIN pg_roles ON pg_roles.oid = grantee
    WHERE pg_class.oid = CAST(:klines AS regclass) AND grantee <> relowner AND privilege_type IN ('SELECT', 'INSERT')
""")
NEWEST = """
    CREATE FUNCTION {schema}.newest_klines(of_instrument integer, of_interval text, most integer)
    RETURNS SETOF {schema}.klines LANGUAGE plpgsql STABLE SET search_path FROM CURRENT AS $$
    BEGIN
        -- One shard, which Citus sends this to as it stands.
        RETURN QUERY SELECT * FROM klines WHERE instrument_id = of_instrument AND interval = of_interval
            ORDER BY open_time DESC LIMIT most;
    END
    $$;
    COMMENT ON FUNCTION {schema}.newest_klines(integer, text, integer) IS
        'Gives the newest candles of a series, the newest first';
"""
# Each shard looks itself up, from one series to the next through the primary key.
SERIES = """
    CREATE FUNCTION {schema}.kline_series(part regclass DEFAULT NULL)
    RETURNS TABLE (instrument_id integer, "interval" text, first timestamptz, last timestamptz)
    LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
    DECLARE
        shard record;
    BEGIN
        FOR shard IN SELECT * FROM run_command_on_shards(coalesce(part, 'klines'::regclass), $query$
            WITH RECURSIVE found AS (
                SELECT length, (SELECT min(instrument_id) FROM %1$s WHERE interval = length) AS id
                FROM unnest(ARRAY['{intervals}']) AS length
                UNION ALL
                SELECT length, (SELECT min(instrument_id) FROM %1$s WHERE interval = length AND instrument_id > id)
                FROM found WHERE id IS NOT NULL
            )
            SELECT coalesce(json_agg(json_build_object('instrument_id', id, 'interval', length,
                'first', (SELECT min(open_time) FROM %1$s WHERE instrument_id = id AND interval = length),
                'last', (SELECT max(open_time) FROM %1$s WHERE instrument_id = id AND interval = length))), '[]')
            FROM found WHERE id IS NOT NULL
        $query$) LOOP
            IF NOT shard.success THEN
                RAISE EXCEPTION 'a shard of klines does not answer: %', shard.result;
            END IF;
            RETURN QUERY SELECT * FROM json_to_recordset(shard.result::json)
                AS each (instrument_id integer, "interval" text, first timestamptz, last timestamptz);
        END LOOP;
    END
    $$;
    COMMENT ON FUNCTION {schema}.kline_series(regclass) IS
        'Lists each series of klines, or of a partition, with its first and last open time, as committed';
"""
TELL = """
    CREATE FUNCTION {schema}.tell_klines(
        instrument_ids integer[], intervals text[], firsts timestamptz[], lasts timestamptz[]
    ) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
    BEGIN
        INSERT INTO mirror_outbox (subject, key)
        SELECT DISTINCT 'series', concat(id, '|', length) FROM unnest(instrument_ids, intervals) AS told (id, length);
        IF to_regclass('{schema}.klines_changes') IS NOT NULL THEN
            INSERT INTO klines_changes SELECT * FROM unnest(instrument_ids, intervals, firsts, lasts);
        END IF;
    END
    $$;
    COMMENT ON FUNCTION {schema}.tell_klines(integer[], text[], timestamptz[], timestamptz[]) IS
        'Writes to mirror_outbox which series were written to: for whoever writes klines, in the same transaction';
"""
# Citus commits on the workers after the coordinator: others see the outbox before they see the candles. A transaction
# gives its locks back after both, that on its own number included.
AWAIT = """
    CREATE FUNCTION {schema}.await_klines() RETURNS void
    LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
    DECLARE
        newest CONSTANT bigint := pg_snapshot_xmax(pg_current_snapshot())::text::bigint;
        deadline CONSTANT timestamptz := clock_timestamp() + interval '2 seconds';
        ending xid[];
    BEGIN
        -- What is seen in the outbox of others is committed here; a number has 32 bits, of this turn or the last.
        ending := ARRAY(
            SELECT transactionid FROM pg_locks,
                LATERAL (SELECT (newest >> 32 << 32) + transactionid::text::bigint AS number) AS near
            WHERE locktype = 'transactionid' AND mode = 'ExclusiveLock' AND granted AND pid <> pg_backend_pid()
                AND EXISTS (SELECT FROM mirror_outbox WHERE mirror_outbox.xid IN (number, number - (1::bigint << 32)))
        );
        WHILE clock_timestamp() < deadline AND EXISTS (
            SELECT FROM pg_locks
            WHERE locktype = 'transactionid' AND mode = 'ExclusiveLock' AND transactionid = ANY (ending)
        ) LOOP
            PERFORM pg_sleep(0.001);
        END LOOP;
    END
    $$;
    COMMENT ON FUNCTION {schema}.await_klines() IS
        'Waits until what the coordinator has committed is committed on the workers too, two seconds at most';
"""
MIRROR_SERIES = """
    CREATE OR REPLACE FUNCTION {schema}.mirror_series(part regclass) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
    DECLARE
        entries bigint;
    BEGIN
        INSERT INTO mirror_outbox (subject, key)
        SELECT 'series', concat(instrument_id, '|', "interval") FROM kline_series(part);
        GET DIAGNOSTICS entries = ROW_COUNT;
        RETURN entries;
    END
    $$;
"""
MAKE_PARTITION = """
    CREATE OR REPLACE FUNCTION {schema}.make_kline_partition(for_interval text, for_year integer) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT
    SET citus.multi_shard_modify_mode TO 'sequential' AS $$
    DECLARE
        leaf CONSTANT text := format('klines_%s_%s_shards', for_interval, for_year);
        found_as CONSTANT text := format('%I.%I', current_schema(), leaf);
        grantee oid;
    BEGIN
        IF (for_interval = ANY (ARRAY['{intervals}'])) IS NOT TRUE THEN
            RAISE invalid_parameter_value USING MESSAGE = format('%L is not an interval of klines', for_interval);
        END IF;
        IF (for_year BETWEEN 1970 AND 2200) IS NOT TRUE THEN
            RAISE invalid_parameter_value USING MESSAGE = format('%L is not a year of klines', for_year);
        END IF;
        IF to_regclass(found_as) IS NOT NULL THEN
            RETURN false;
        END IF;
        -- As in the function whose place this takes: one lock for all, then the one that ATTACH takes anyway.
        PERFORM pg_advisory_xact_lock(hashtext('make_kline_partition'), 'klines'::regclass::oid::integer);
        LOCK TABLE ONLY klines IN SHARE UPDATE EXCLUSIVE MODE;
        IF to_regclass(found_as) IS NOT NULL THEN
            RETURN false;
        END IF;
        EXECUTE format('CREATE TABLE %I (LIKE klines INCLUDING ALL EXCLUDING COMMENTS)', leaf);
        EXECUTE format('COMMENT ON TABLE %I IS %L', leaf, format('Candles of %s in %s', for_interval, for_year));
        FOR grantee IN
            SELECT DISTINCT entry.grantee FROM pg_class, aclexplode(relacl) AS entry
            WHERE oid = leaf::regclass AND entry.grantee <> relowner
        LOOP
            EXECUTE format('REVOKE ALL ON %I FROM %s', leaf,
                           CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END);
        END LOOP;
        EXECUTE format('ALTER TABLE klines ATTACH PARTITION %I FOR VALUES FROM (%L, %L) TO (%L, %L)', leaf,
                       for_interval, make_timestamptz(for_year, 1, 1, 0, 0, 0, 'UTC'),
                       for_interval, make_timestamptz(for_year + 1, 1, 1, 0, 0, 0, 'UTC'));
        RETURN true;
    END
    $$;
"""


class Shards:
    """Partitions by interval and UTC year in one level, each of them shards by instrument on the workers."""

    def __init__(self, schema: str) -> None:
        """Note the schema, quoted."""
        self.schema = schema

    def make(self, connection: Connection) -> None:
        """Make the table and distribute it; partitions come as they are needed, each as many tables as shards."""
        name = f"{self.schema}.{NEXT}"
        run(
            connection,
            f"CREATE TABLE {name} (LIKE {self.schema}.klines INCLUDING ALL) PARTITION BY RANGE (interval, open_time)",
        )
        take_rights(connection, name)
        connection.execute(text("SELECT create_distributed_table(:name, 'instrument_id')"), {"name": name})

    def make_room(self, connection: Connection, interval: str, first: datetime, last: datetime) -> None:
        """Make the partitions of the years and of the one that follows, and of this year and the next."""
        year = datetime.now(UTC).year
        years = {year, year + 1, *range(first.astimezone(UTC).year, last.astimezone(UTC).year + 2)}
        for each in sorted(years):
            name = f"{self.schema}.{leaf_of(Layout.CITUS, interval, each)}"
            if connection.scalar(text("SELECT to_regclass(:name)"), {"name": name}) is None:
                self.make_leaf(connection, name, interval, each)

    def make_leaf(self, connection: Connection, name: str, interval: str, year: int) -> None:
        """Make a partition apart, which is quicker than on all its shards, and attach it."""
        run(connection, f"CREATE TABLE {name} (LIKE {self.schema}.{NEXT} INCLUDING ALL EXCLUDING COMMENTS)")
        run(connection, f"COMMENT ON TABLE {name} IS 'Candles of {interval} in {year}'")
        take_rights(connection, name)
        run(
            connection,
            f"ALTER TABLE {self.schema}.{NEXT} ATTACH PARTITION {name} FOR VALUES "
            f"FROM ('{interval}', '{year}-01-01 00:00:00+00') TO ('{interval}', '{year + 1}-01-01 00:00:00+00')",
        )

    def ended(self, connection: Connection, table: str, until: datetime) -> list[str]:  # noqa: ARG002 - a Hypertable needs them
        """List nothing: shards are not compressed."""
        return []


def make_functions(connection: Connection, schema: str) -> None:
    """Make the functions of shards, once klines are some; the schema is quoted."""
    intervals = "', '".join(Interval)
    for statement in (NEWEST, SERIES, TELL, AWAIT, MIRROR_SERIES, MAKE_PARTITION):
        run(connection, statement.replace("{schema}", schema).replace("{intervals}", intervals))
    for function in (*READ, *WRITE):
        run(connection, f"REVOKE ALL ON FUNCTION {schema}.{function} FROM PUBLIC")
    for grantee in connection.execute(GRANTEES, {"klines": f"{schema}.klines"}).all():
        for function in WRITE if grantee.writes else READ:
            run(connection, f"GRANT EXECUTE ON FUNCTION {schema}.{function} TO {grantee.name}")


def drop_functions(connection: Connection, schema: str) -> None:
    """Drop the functions of shards."""
    for function in (*READ, *WRITE):
        run(connection, f"DROP FUNCTION IF EXISTS {schema}.{function}")
