"""The tables of a conversion under way: which batches are copied and compared, and what changed meanwhile.

They are made in one transaction with the triggers that note changes, so whatever is written to klines is either there
when its batch is copied, or noted. A run that was killed is continued by the next from what these tables say.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Any

from sqlalchemy import Connection, Row, func, select, text

from helios.growing.ground import NEXT, run, take_rights
from helios.growing.places import Place
from helios.growing.sharding import Shards
from helios.layout import Layout
from helios.models import Interval, Kline
from helios.queries.klines import series_present

BATCHES, CHANGES, NOTE = "klines_batches", "klines_changes", "note_kline_changes"
MOST_ROWS = 100_000  # of a batch: about a second
SLICE = timedelta(days=28)
MONTH = timedelta(days=30)
AT_ONCE = 1_000  # changes that are taken over in a transaction
COLUMNS = text("""
    SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute
    WHERE attrelid = CAST(:klines AS regclass) AND attnum > 0 AND NOT attisdropped
""")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Candles of one interval, of instruments from one id to another, opened from `first` to before `until`."""

    number: int
    interval: str
    first: datetime
    until: datetime
    from_id: int
    to_id: int


class Work:
    """The statements of a conversion on a connection in a transaction; the schema is quoted."""

    def __init__(self, connection: Connection, schema: str, place: Place, source: Layout) -> None:
        """Look up which columns there are."""
        self.connection, self.schema, self.place, self.source = connection, schema, place, source
        self.klines, self.next = f"{schema}.klines", f"{schema}.{NEXT}"
        self.columns = str(connection.scalar(COLUMNS, {"klines": self.klines}))

    def begin(self) -> None:
        """Make everything that the conversion needs, and note changes from here on."""
        self.place.make(self.connection)
        run(
            self.connection,
            f"""
            CREATE TABLE {self.schema}.{BATCHES} (
                number bigint PRIMARY KEY, interval text NOT NULL, first timestamptz NOT NULL,
                until timestamptz NOT NULL, from_id integer NOT NULL, to_id integer NOT NULL,
                copied boolean NOT NULL DEFAULT false, agreed boolean NOT NULL DEFAULT false
            );
            CREATE TABLE {self.schema}.{CHANGES} (
                instrument_id integer NOT NULL, interval text NOT NULL, first timestamptz NOT NULL,
                last timestamptz NOT NULL
            );
            """,
        )
        for table in (NEXT, BATCHES, CHANGES):
            take_rights(self.connection, f"{self.schema}.{table}")
        if self.source is Layout.CITUS:
            # Who writes tells, and notes it with that; who has written before has ended once this lock is had.
            run(self.connection, f"LOCK TABLE ONLY {self.klines} IN SHARE ROW EXCLUSIVE MODE")
        else:
            self.note_changes()

    def note_changes(self) -> None:
        """Make the triggers that note which ranges of which series are written to."""
        grouped = "instrument_id, interval, min(open_time), max(open_time)"
        run(
            self.connection,
            f"""
            CREATE FUNCTION {self.schema}.{NOTE}() RETURNS trigger
            LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
            BEGIN
                IF TG_OP = 'TRUNCATE' THEN
                    RAISE object_in_use USING MESSAGE = 'klines are being converted, and cannot be truncated',
                        HINT = 'Truncate them when `helios klines convert` has ended.';
                ELSIF TG_LEVEL = 'ROW' THEN
                    INSERT INTO {CHANGES} VALUES (OLD.instrument_id, OLD.interval, OLD.open_time, OLD.open_time);
                ELSIF TG_OP = 'UPDATE' THEN
                    INSERT INTO {CHANGES} SELECT {grouped} FROM (
                        SELECT instrument_id, interval, open_time FROM former
                        UNION ALL SELECT instrument_id, interval, open_time FROM changed
                    ) AS touched GROUP BY instrument_id, interval;
                ELSE
                    INSERT INTO {CHANGES} SELECT {grouped} FROM changed GROUP BY instrument_id, interval;
                END IF;
                RETURN NULL;
            END
            $$;
            REVOKE ALL ON FUNCTION {self.schema}.{NOTE}() FROM PUBLIC;
            """,
        )
        # A hypertable hands the rows that a statement deletes to no trigger but one for each row.
        of_deleted = "REFERENCING OLD TABLE AS changed FOR EACH STATEMENT"
        for event, how in (
            ("INSERT", "REFERENCING NEW TABLE AS changed FOR EACH STATEMENT"),
            ("UPDATE", "REFERENCING OLD TABLE AS former NEW TABLE AS changed FOR EACH STATEMENT"),
            ("DELETE", of_deleted if self.source is Layout.PARTITIONS else "FOR EACH ROW"),
            ("TRUNCATE", "FOR EACH STATEMENT"),
        ):
            run(
                self.connection,
                f"CREATE TRIGGER {NOTE}_{event.lower()} AFTER {event} ON {self.klines} {how} "
                f"EXECUTE FUNCTION {self.schema}.{NOTE}()",
            )

    def plan_batches(self) -> None:
        """Write down the batches of what is there; what comes later is noted as a change."""
        rows = [
            {**batch, "number": number}
            for number, batch in enumerate(batches(self.connection.execute(self.series()).all()), 1)
        ]
        if rows:
            names = ", ".join(rows[0])
            values = ", ".join(f":{name}" for name in rows[0])
            self.connection.execute(text(f"INSERT INTO {self.schema}.{BATCHES} ({names}) VALUES ({values})"), rows)

    def series(self) -> Any:  # noqa: ANN401 - a statement of columns of several types
        """Ask for every series with its first and last open time."""
        if self.source is not Layout.CITUS:
            return series_statement()
        return text(f"SELECT * FROM {self.schema}.kline_series() ORDER BY interval, instrument_id")

    def count(self) -> tuple[int, int, int]:
        """Count the batches: all, those copied, those compared."""
        statement = f"""
            SELECT count(*), count(*) FILTER (WHERE copied), count(*) FILTER (WHERE agreed)
            FROM {self.schema}.{BATCHES}
        """
        total, copied, agreed = self.connection.execute(text(statement)).one()
        return total, copied, agreed

    def following(self, state: str) -> Batch | None:
        """Find the next batch that is not `copied`, or not `agreed`."""
        statement = f"""
            SELECT number, interval, first, until, from_id, to_id FROM {self.schema}.{BATCHES}
            WHERE NOT {state} ORDER BY number LIMIT 1
        """
        row = self.connection.execute(text(statement)).one_or_none()
        return None if row is None else Batch(**row._mapping)  # noqa: SLF001 - SQLAlchemy's public name

    def done(self, batch: Batch, state: str) -> None:
        """Note that a batch is `copied`, or `agreed`."""
        statement = f"UPDATE {self.schema}.{BATCHES} SET {state} = true WHERE number = :number"
        self.connection.execute(text(statement), {"number": batch.number})

    def copy(self, batch: Batch) -> int:
        """Copy a batch, and count its rows."""
        self.place.make_room(self.connection, batch.interval, batch.first, batch.until)
        statement = f"""
            INSERT INTO {self.next} ({self.columns}) SELECT {self.columns} FROM {self.klines} WHERE {OF_BATCH}
            ORDER BY instrument_id, open_time
        """
        rows = self.connection.execute(text(statement), told(batch)).rowcount
        self.done(batch, "copied")
        return rows

    def agrees(self, batch: Batch) -> bool:
        """Compare a batch on both sides: the number of its rows, and the sum of a hash of each."""
        here, there = (
            f"SELECT count(*) AS n, sum(hash_record_extended(ROW({self.columns}), 0)) AS s FROM {table} "
            f"WHERE {OF_BATCH}"
            for table in (self.klines, self.next)
        )
        statement = f"""
            SELECT here.n = there.n AND here.s IS NOT DISTINCT FROM there.s FROM ({here}) AS here, ({there}) AS there
        """
        return bool(self.connection.scalar(text(statement), told(batch)))

    def distrust(self, batch: Batch) -> None:
        """Note each series of a batch as changed, so that it is made equal once more."""
        statement = f"""
            INSERT INTO {self.schema}.{CHANGES} SELECT DISTINCT instrument_id, interval,
                CAST(:first AS timestamptz), CAST(:until AS timestamptz)
            FROM (
                SELECT instrument_id, interval FROM {self.klines} WHERE {OF_BATCH}
                UNION ALL SELECT instrument_id, interval FROM {self.next} WHERE {OF_BATCH}
            ) AS series
        """
        self.connection.execute(text(statement), told(batch))

    def take_over(self) -> int:
        """Make what changed equal on both sides, and count the changes; those that are still open come another time."""
        statement = f"""
            WITH taken AS (
                DELETE FROM {self.schema}.{CHANGES} WHERE ctid = ANY (ARRAY(
                    SELECT ctid FROM {self.schema}.{CHANGES} LIMIT {AT_ONCE}
                )) RETURNING *
            )
            SELECT instrument_id, interval, first, last FROM taken ORDER BY interval, instrument_id, first
        """
        changes = self.connection.execute(text(statement)).all()
        if changes and self.source is Layout.CITUS:
            run(self.connection, f"SELECT {self.schema}.await_klines()")
        for interval, of_interval in groupby(changes, key=lambda each: str(each.interval)):
            ranges = [
                (instrument_id, *joint)
                for instrument_id, of_series in groupby(of_interval, key=lambda each: int(each.instrument_id))
                for joint in joined((each.first, each.last) for each in of_series)
            ]
            self.level(interval, ranges)
        return len(changes)

    def level(self, interval: str, ranges: list[tuple[int, datetime, datetime]]) -> None:
        """Make ranges of series, (instrument id, first, last), equal to what klines holds."""
        ids, firsts, lasts = (list(each) for each in zip(*ranges, strict=True))
        binds = {"interval": interval, "ids": ids, "firsts": firsts, "lasts": lasts}
        binds |= {"first": min(firsts), "last": max(lasts)}
        self.place.make_room(self.connection, interval, min(firsts), max(lasts))
        key = [column.name for column in Kline.__table__.primary_key]
        others = [name for name in self.columns.split(", ") if name.strip('"') not in key]
        old, new = (", ".join(f"{table}.{name}" for name in others) for table in ("there", "excluded"))
        different = f"""
            INSERT INTO {self.next} AS there ({self.columns}) SELECT {self.columns} FROM {self.within(self.klines)}
            ON CONFLICT (instrument_id, interval, open_time) DO UPDATE
                SET {", ".join(f"{name} = excluded.{name}" for name in others)}
                WHERE ({old}) IS DISTINCT FROM ({new})
        """
        self.connection.execute(text(different), binds)
        gone = f"""
            SELECT instrument_id, array_agg(open_time) AS times FROM (
                SELECT instrument_id, open_time FROM {self.within(self.next)}
                EXCEPT SELECT instrument_id, open_time FROM {self.within(self.klines)}
            ) AS gone GROUP BY instrument_id
        """
        delete = f"""
            DELETE FROM {self.next} WHERE instrument_id = :id AND interval = :interval AND open_time = ANY (:times)
        """
        for row in self.connection.execute(text(gone), binds).all():
            named = {"id": row.instrument_id, "interval": interval, "times": row.times}
            self.connection.execute(text(delete), named)

    def within(self, table: str) -> str:
        """Write the rows of one of the two tables within many ranges."""
        is_sharded = self.source is Layout.CITUS if table == self.klines else isinstance(self.place, Shards)
        return joined_within(table) if is_sharded else looked_up_within(table)


def joined_within(table: str) -> str:
    """Write the rows of shards within many ranges: Citus looks nothing up for each row of another table."""
    return f"""
        (SELECT candle.* FROM {table} AS candle JOIN unnest(
            CAST(:ids AS integer[]), CAST(:firsts AS timestamptz[]), CAST(:lasts AS timestamptz[])
        ) AS touched (id, since, until) ON instrument_id = id AND open_time BETWEEN since AND until
        WHERE interval = :interval AND open_time BETWEEN :first AND :last) AS candle
    """


def looked_up_within(table: str) -> str:
    """Write the rows of a table within many ranges: each is looked up by the key, in partitions that hold some."""
    return f"""
        unnest(CAST(:ids AS integer[]), CAST(:firsts AS timestamptz[]), CAST(:lasts AS timestamptz[]))
            AS touched (id, since, until)
        CROSS JOIN LATERAL (
            SELECT * FROM {table} WHERE instrument_id = id AND interval = :interval
            AND open_time BETWEEN since AND until AND open_time BETWEEN :first AND :last OFFSET 0
        ) AS candle
    """


OF_BATCH = "interval = :interval AND open_time >= :first AND open_time < :until AND instrument_id BETWEEN :a AND :b"


def told(batch: Batch) -> dict[str, Any]:
    """Bind a batch."""
    return {
        "interval": batch.interval,
        "first": batch.first,
        "until": batch.until,
        "a": batch.from_id,
        "b": batch.to_id,
    }


def joined(ranges: Iterator[tuple[datetime, datetime]]) -> list[tuple[datetime, datetime]]:
    """Join ranges that overlap; they come in the order of their beginnings."""
    found: list[tuple[datetime, datetime]] = []
    for first, last in ranges:
        if found and first <= found[-1][1]:
            found[-1] = (found[-1][0], max(last, found[-1][1]))
        else:
            found.append((first, last))
    return found


def series_statement() -> Any:  # noqa: ANN401 - a Select of columns of several types
    """Ask for every series with its first and last open time; also for those whose instrument is not there."""
    series, klines = series_present(), Kline.__table__
    same = (klines.c.instrument_id == series.c.instrument_id) & (klines.c.interval == series.c.interval)
    first, last = (select(each(klines.c.open_time)).where(same).scalar_subquery() for each in (func.min, func.max))
    return (
        select(series.c.interval, series.c.instrument_id, first.label("first"), last.label("last"))
        .where(series.c.instrument_id.is_not(None))
        .order_by(series.c.interval, series.c.instrument_id)
    )


def batches(series: Sequence[Row[Any]]) -> Iterator[dict[str, Any]]:
    """Cut series into batches: slice after slice of time, in each as many instruments as a batch may have rows."""
    for interval, group in groupby(series, key=lambda each: str(each.interval)):
        members = list(group)
        length = Interval(interval).length or MONTH
        step = min(SLICE, MOST_ROWS * length)
        first = min(each.first for each in members)
        # From an epoch on, so that a run's slices do not depend on what is there.
        at = datetime(1970, 1, 1, tzinfo=UTC) + (first - datetime(1970, 1, 1, tzinfo=UTC)) // step * step
        most = max(1, MOST_ROWS // max(1, step // length))
        while at <= max(each.last for each in members):
            within = [each.instrument_id for each in members if each.first < at + step and each.last >= at]
            for some in range(0, len(within), most):
                ids = within[some : some + most]
                yield {"interval": interval, "first": at, "until": at + step, "from_id": ids[0], "to_id": ids[-1]}
            at += step
