"""The questions about klines that take another form where these are shards of Citus.

Citus plans neither a LATERAL subquery with LIMIT nor a recursive question over several shards: two functions that
`helios klines convert` made stand for them. What asks for one series is sent to its shard as it stands.
"""

from functools import cache
from typing import Any

from sqlalchemy import Subquery, TextualSelect, text

from helios.models import Instrument, Kline, metadata
from helios.names import function_name, table_name
from helios.queries.query import table_of

KLINES, INSTRUMENTS = table_of(Kline), table_of(Instrument)
SCHEMA = str(metadata.schema)
NAMES = {
    "klines": table_name(KLINES),
    "instruments": table_name(INSTRUMENTS),
    "newest": function_name(SCHEMA, "newest_klines"),
    "series": function_name(SCHEMA, "kline_series"),
    "columns": ", ".join(f'latest."{column.name}"' for column in KLINES.c),
}
NAMED = (INSTRUMENTS.c.exchange, INSTRUMENTS.c.market, INSTRUMENTS.c.symbol)
LATEST_OF_EACH = """
    SELECT i.exchange, i.market, i.symbol, {columns}
    FROM {instruments} AS i CROSS JOIN LATERAL {newest}(i.id, :interval, 1) AS latest ORDER BY i.id
"""
OWNERLESS = """
    SELECT series."interval", instrument_id FROM {series}() AS series
    WHERE instrument_id NOT IN (SELECT id FROM {instruments}) ORDER BY instrument_id
"""
# The shards count all at once; without counting, each looks its own series up.
COUNTED = """
    (SELECT instrument_id, "interval", count(*) AS rows, min(open_time) AS first, max(open_time) AS last
     FROM {klines} GROUP BY instrument_id, "interval")
"""
LISTED = '(SELECT instrument_id, "interval", NULL::bigint AS rows, first, last FROM {series}())'
COVERAGE = """
    SELECT instrument_id, i.exchange, i.market, i.symbol, series."interval", series.rows, series.first, series.last
    FROM %s AS series JOIN {instruments} AS i ON i.id = instrument_id
"""
LIST = 'SELECT instrument_id, "interval", first, last FROM {series}()'


@cache
def latest_of_each() -> TextualSelect:
    """Make the statement for the newest candle of every instrument: one shard is asked for each."""
    return text(LATEST_OF_EACH.format(**NAMES)).columns(*NAMED, *KLINES.c)


@cache
def ownerless_series() -> TextualSelect:
    """Make the statement for the series whose instrument is not there."""
    return text(OWNERLESS.format(**NAMES)).columns(KLINES.c.interval, KLINES.c.instrument_id)


@cache
def coverage(*, count: bool) -> TextualSelect:
    """Make the statement for every series with its rows, first and last open time."""
    told: tuple[Any, ...] = (KLINES.c.instrument_id, *NAMED, KLINES.c.interval)
    written = COVERAGE % (COUNTED if count else LISTED)
    moments = {"first": KLINES.c.open_time.type, "last": KLINES.c.open_time.type}
    return text(written.format(**NAMES)).columns(*told, **moments)


@cache
def series() -> Subquery:
    """Make the list of every series with its first and last open time, to select from."""
    moments = {"first": KLINES.c.open_time.type, "last": KLINES.c.open_time.type}
    told = text(LIST.format(**NAMES)).columns(KLINES.c.instrument_id, KLINES.c.interval, **moments)
    return told.subquery("series")
