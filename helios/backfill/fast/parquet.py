"""Parquet becomes lines as the official archive has them, so that its rows are checked like any others."""

from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from helios.backfill.transform.grid import Grid, scale_of
from helios.backfill.transform.reading import Block
from helios.backfill.transform.refusal import RefusalError

PLAIN = ("open_time", "open", "high", "low", "close", "volume")
MORE = ("close_time", "quote_volume", "count", "taker_buy_volume", "taker_buy_quote_volume")
AS_IN_THE_TABLE = {"count": "trades"}
SERIES = ("instrument_id", "symbol", "exchange", "market", "interval")
AT_ONCE = 1 << 13  # rows


def blocks(grid: Grid, interval: str) -> Callable[[BinaryIO], Iterator[Block]]:
    """Give the reader of Parquet files of an interval; columns are those of the archive or of the klines table.

    `open_time` is a timestamp, or whole milliseconds or microseconds. Where there is no `close_time`, it is the one
    that the interval has.
    """

    def read(file: BinaryIO) -> Iterator[Block]:
        file.seek(0)
        try:
            with parquet.ParquetFile(pa.PythonFile(file, "r"), pre_buffer=False) as table:
                check_columns(table.schema_arrow.names)
                names = set(table.schema_arrow.names)
                line = 1
                series: dict[str, Any] = {"interval": interval} if "interval" in names else {}
                for batch in table.iter_batches(AT_ONCE):
                    if batch.num_rows:
                        check_series(batch, series)
                        data = lines(batch, names, grid)
                        yield Block(line, data, torn=False, lines=data.count(b"\n"))
                        line += batch.num_rows
        except (pa.ArrowException, ValueError, OSError) as error:  # ValueError: a name that is no UTF-8
            said = str(error).splitlines()[0]
            raise RefusalError(f"is Parquet that cannot be read ({said}): fetch it again") from error

    return read


def check_columns(names: list[str]) -> None:
    """Refuse a file that lacks a column of candles, or has one of ours twice."""
    if lacking := [name for name in PLAIN if name not in names]:
        raise RefusalError(
            f"is Parquet without {', '.join(lacking)}: klines have the columns of the archive or of the klines table"
        )
    if several := [name for name in (*PLAIN, *MORE, *AS_IN_THE_TABLE.values(), *SERIES) if names.count(name) > 1]:
        raise RefusalError(f"is Parquet with several columns {', '.join(several)}: name each column once")


def check_series(batch: pa.RecordBatch, series: dict[str, Any]) -> None:
    """Refuse a file of several series, or of another interval."""
    for name in SERIES:
        if name not in batch.schema.names:
            continue
        values = pc.unique(batch.column(name)).to_pylist()
        if values != [series.setdefault(name, values[0])]:
            other = next(value for value in values if value != series[name])
            raise RefusalError(
                f"is Parquet with {name} {series[name]!r} and {other!r}: split it, and say --interval, so that each "
                "file is one series"
            )


def lines(batch: pa.RecordBatch, names: set[str], grid: Grid) -> bytes:
    """Write rows as lines, numbers with the digits that they have."""
    moments = times(batch.column("open_time"))
    texts = [texts_of(moments)]
    texts += [texts_of(batch.column(name)) for name in PLAIN[1:]]
    found = {name: name if name in names else AS_IN_THE_TABLE.get(name, name) for name in MORE}
    if all(found[name] in names for name in MORE[1:]) and batch.column(found["quote_volume"]).null_count < len(batch):
        ends = times(batch.column("close_time")) if "close_time" in names else closes(moments, grid)
        texts += [texts_of(ends), *(texts_of(batch.column(found[name])) for name in MORE[1:])]
        texts.append(pa.array(["0"] * len(batch)))
    joined = pc.binary_join_element_wise(*texts, ",")
    return ("\n".join(joined.to_pylist()) + "\n").encode()


def times(column: pa.Array) -> pa.Array:
    """Give times as whole numbers: as they are, or timestamps in microseconds."""
    return column.cast(pa.timestamp("us")).cast(pa.int64()) if pa.types.is_timestamp(column.type) else column


def closes(moments: pa.Array, grid: Grid) -> pa.Array:
    """Give the last unit of time of each candle, where the candle is on the grid."""
    return pa.array([close(each, grid) for each in moments.to_pylist()])


def close(written: Any, grid: Grid) -> int:  # noqa: ANN401 - whatever the column holds
    """Give the last unit of time of a candle; 0 where it is none, which is told when its row is looked at."""
    scale = scale_of(written) if isinstance(written, int) else None
    number = grid.number(written // scale) if scale and isinstance(written, int) else None
    return grid.moment(number + 1) * scale - 1 if number is not None and scale else 0


def texts_of(column: pa.Array) -> pa.Array:
    """Write numbers; nothing where there is none."""
    return pc.fill_null(column.cast(pa.string()), "")
