"""The statements of a load: every name quoted by SQLAlchemy, every value bound, nothing taken from the session."""

from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, exists, func, select, text, true, update
from sqlalchemy.dialects.postgresql import insert

from helios.backfill.reading import Reading
from helios.backfill.source import Source
from helios.errors import HeliosError
from helios.layout import Layout, distributed, layout_of, leaf_of
from helios.models import DataQualityMetric, Instrument, Kline, KlineFile
from helios.names import quoted, table_name

KLINES = table_name(Kline.__table__)
KEY = ("instrument_id", "open_time")
PLAIN_VALUES = ("open", "high", "low", "close", "volume")
OFFICIAL_VALUES = (*PLAIN_VALUES, "quote_volume", "trades", "taker_buy_volume", "taker_buy_quote_volume")
STAGE, DIFFERENCE = "pg_temp.helios_klines_stage", "pg_temp.helios_klines_difference"
# Partitions that fire every trigger that an INSERT into klines fires: one made since klines was given a trigger, as a
# test run gives it some, may lack it. And that stay: what is being detached by now is about to be dropped.
LOADABLE = text("""
    SELECT count(*)
    FROM unnest(CAST(:names AS text[])) AS name
    JOIN pg_inherits ON inhrelid = to_regclass(format('%I.%I', CAST(:schema AS text), name))
    WHERE inhparent = to_regclass(format('%I.%I', CAST(:schema AS text), CAST(:parent AS text)))
        AND NOT inhdetachpending AND has_table_privilege(inhrelid, 'INSERT')
        AND NOT EXISTS (
            SELECT tgname, tgfoid, tgenabled FROM pg_trigger
            WHERE tgrelid = CAST(:klines AS regclass) AND tgtype & 5 = 4  -- of statements, on INSERT
            EXCEPT SELECT tgname, tgfoid, tgenabled FROM pg_trigger WHERE tgrelid = inhrelid
        )
""")


class CopyError(HeliosError):
    """The server refused the rows of a file."""

    def __init__(self, path: Path, error: BaseException) -> None:
        super().__init__(f"{path} was not loaded: {said(error)}")
        self.sqlstate: str | None = getattr(error, "pgcode", None) or getattr(error, "sqlstate", None)


def said(error: BaseException | None) -> str:
    """Take what PostgreSQL said, without the lines that quote statement and row."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def known_file(connection: Connection, source: Source) -> KlineFile | None:
    """Find what is known of a file of this name in this series."""
    statement = (
        select(
            KlineFile.sha256,
            KlineFile.rows,
            KlineFile.rejected,
            KlineFile.first_open_time,
            KlineFile.last_open_time,
            KlineFile.stamp,
        )
        .join(Instrument, Instrument.id == KlineFile.instrument_id)
        .where(
            Instrument.exchange == source.exchange,
            Instrument.market == source.market,
            Instrument.symbol == source.symbol,
            KlineFile.interval == source.interval,
            KlineFile.name == source.name,
        )
    )
    row = connection.execute(statement).mappings().first()
    return KlineFile(**row) if row else None


def hold_instrument(connection: Connection, source: Source) -> int:
    """Find the instrument, make it where it is absent, and keep it from being deleted until the transaction ends."""
    found = (
        select(Instrument.id)
        .where(
            Instrument.exchange == source.exchange,
            Instrument.market == source.market,
            Instrument.symbol == source.symbol,
        )
        .with_for_update(key_share=True, read=True)
    )
    made = insert(Instrument).values(exchange=source.exchange, market=source.market, symbol=source.symbol)
    for _ in range(3):
        number = connection.execute(found).scalar()
        if number is not None:
            return number
        connection.execute(made.on_conflict_do_nothing())
    raise HeliosError(f"Instrument {source.series} is deleted by others while it is loaded: load the file again")


def lock_series(connection: Connection, instrument_id: int, source: Source) -> None:
    """Let loads of one series pass one after the other."""
    key = f"helios load {KLINES} {instrument_id} {source.interval}"
    connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(key, 0))))


def missing_partitions(connection: Connection, source: Source, years: list[int]) -> list[int]:
    """List the years that have no partition of this interval."""
    schema = str(Kline.__table__.schema)
    layout = layout_of(connection, schema)
    if layout is Layout.TIMESCALEDB:
        return []
    there = text("SELECT to_regclass(format('%I.%I', CAST(:schema AS text), CAST(:name AS text))) IS NOT NULL")
    return [
        year
        for year in years
        if not connection.execute(there, {"schema": schema, "name": leaf_of(layout, source.interval, year)}).scalar()
    ]


def loadable_partitions(connection: Connection, source: Source, years: list[int]) -> list[str]:
    """Name the partitions to copy straight into, one a year; none where one of them has to be reached by klines.

    PostgreSQL writes row by row into klines, whose trigger for the mirrors has a transition table, and many rows at a
    time into a partition with the same trigger. The caller has read klines within their range: so they are locked, and
    stay what they are until the transaction ends.
    """
    schema, names = Kline.__table__.schema, [f"klines_{source.interval}_{year}" for year in years]
    binds = {
        "schema": schema,
        "names": names,
        "parent": f"klines_{source.interval}",
        "klines": KLINES,
    }
    if connection.execute(LOADABLE, binds).scalar() != len(names):
        return []
    return [f"{quoted(str(schema))}.{quoted(name)}" for name in names]


def holds_any(connection: Connection, instrument_id: int, source: Source, span: tuple[datetime, datetime]) -> bool:
    """Say whether the table holds candles of the series within a range."""
    condition = (
        Kline.instrument_id == instrument_id,
        Kline.interval == source.interval,
        Kline.open_time.between(*span),
    )
    return bool(connection.execute(select(exists().where(*condition))).scalar())


def copy(connection: Connection, into: str, values: tuple[str, ...], reading: Reading) -> int:
    """Send a reading's rows by COPY, and count what arrived."""
    columns = ", ".join(f'"{name}"' for name in (*KEY, *values, "interval"))
    statement = f"COPY {into} ({columns}) FROM STDIN{reading.form}"
    cursor: Any = connection.connection.cursor()
    try:
        if hasattr(cursor, "copy_expert"):
            cursor.copy_expert(statement, reading, 1 << 18)
        else:  # psycopg 3
            with cursor.copy(statement) as stream:
                while data := reading.read():
                    stream.write(data)
        return int(cursor.rowcount)
    except BaseException as error:
        if reading.error is not None:
            raise reading.error from None
        if isinstance(error, connection.dialect.loaded_dbapi.Error):
            raise CopyError(reading.path, error) from error
        raise
    finally:
        cursor.close()


def make_stage(connection: Connection) -> None:
    """Make a table of this transaction alone, like the klines."""
    if layout_of(connection, str(Kline.__table__.schema)) is Layout.TIMESCALEDB:
        # A corrected file may touch more rows than TimescaleDB decompresses in a transaction unless told.
        limit = "timescaledb.max_tuples_decompressed_per_dml_transaction"
        connection.execute(select(func.set_config(limit, "0", true())))
    connection.execute(text(f"CREATE TEMPORARY TABLE {STAGE.split('.')[1]} (LIKE {KLINES}) ON COMMIT DROP"))


def write_differences(
    connection: Connection, instrument_id: int, source: Source, span: tuple[datetime, datetime], values: tuple[str, ...]
) -> tuple[int, int]:
    """Write the staged rows that the table lacks or holds differently; how many were inserted and changed.

    The range stands in the join, so that the key's index finds it; equal rows are not touched. Only the columns that
    the file has are compared: a file of plain candles takes no number of trades away.
    """
    names = (*KEY, "interval", *values)
    listed = ", ".join(f'"{name}"' for name in names)
    old, new = (", ".join(f'{table}."{name}"' for name in values) for table in ("k", "s"))
    difference = f"""
        SELECT {", ".join(f's."{name}"' for name in names)}, k.instrument_id IS NOT NULL AS is_known
        FROM {STAGE} AS s
        LEFT JOIN {KLINES} AS k
            ON k.open_time = s.open_time AND k.instrument_id = :instrument_id AND k."interval" = :interval
            AND k.open_time BETWEEN :first AND :last
        WHERE k.instrument_id IS NULL OR ({old}) IS DISTINCT FROM ({new})
    """
    write = f"""
        INSERT INTO {KLINES} AS k ({listed}) SELECT {listed} FROM {{difference}}
        ON CONFLICT (instrument_id, "interval", open_time) DO UPDATE
            SET {", ".join(f'"{name}" = excluded."{name}"' for name in values)}
            WHERE ({old}) IS DISTINCT FROM ({new.replace("s.", "excluded.")})
    """
    count = "SELECT count(*) FILTER (WHERE NOT is_known), count(*) FILTER (WHERE is_known) FROM {difference}"
    binds = {"instrument_id": instrument_id, "interval": str(source.interval), "first": span[0], "last": span[1]}
    if distributed(connection, str(Kline.__table__.schema)):  # Citus writes to shards in a statement of its own
        connection.execute(
            text(f"CREATE TEMPORARY TABLE {DIFFERENCE.split('.')[1]} ON COMMIT DROP AS {difference}"), binds
        )
        connection.execute(text(write.format(difference=DIFFERENCE)))
        inserted, changed = connection.execute(text(count.format(difference=DIFFERENCE))).one()
        connection.execute(text(f"DROP TABLE {DIFFERENCE}"))
    else:
        statement = f"""
            WITH difference AS MATERIALIZED ({difference}), written AS ({write.format(difference="difference")})
            {count.format(difference="difference")}
        """
        inserted, changed = connection.execute(text(statement), binds).one()
    connection.execute(text(f"DROP TABLE {STAGE}"))
    return int(inserted), int(changed)


def remember_file(connection: Connection, instrument_id: int, source: Source, values: dict[str, Any]) -> None:
    """Keep what a file of this name holds now."""
    statement = insert(KlineFile).values(
        instrument_id=instrument_id, interval=source.interval, name=source.name, **values
    )
    statement = statement.on_conflict_do_update(
        index_elements=["instrument_id", "interval", "name"], set_={**values, "loaded_at": func.now()}
    )
    connection.execute(statement)


def keep_stamp(connection: Connection, source: Source, sha256: str, stamp: str) -> None:
    """Keep by what a file that holds what is known will be known again; when it was loaded stays as it is."""
    its_own = select(Instrument.id).where(
        Instrument.exchange == source.exchange,
        Instrument.market == source.market,
        Instrument.symbol == source.symbol,
    )
    statement = update(KlineFile).where(
        KlineFile.instrument_id == its_own.scalar_subquery(),
        KlineFile.interval == source.interval,
        KlineFile.name == source.name,
        KlineFile.sha256 == sha256,
    )
    connection.execute(statement.values(stamp=stamp, loaded_at=KlineFile.loaded_at))


def record_quality(connection: Connection, values: dict[str, Any]) -> None:
    """Keep what the load found of the file's quality."""
    connection.execute(insert(DataQualityMetric).values(**values))
