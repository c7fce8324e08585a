"""Instruments, tickers and candles into their tables: one statement each, whatever the number of rows."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict
from datetime import UTC
from typing import Any

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert

from helios.errors import HeliosError
from helios.feed.reports import InstrumentReport, KlineReport, TickerReport
from helios.feed.statements import Writer, columns_of, execute, unnested
from helios.layout import make_partition, tell_written
from helios.models import Instrument, Interval, Kline, Market, Ticker, metadata
from helios.names import table_name

PRICED = (
    "last_price",
    "open_price_24h",
    "high_price_24h",
    "low_price_24h",
    "price_change_24h",
    "price_change_percent_24h",
    "volume_24h",
    "quote_volume_24h",
    "trades_24h",
)
QUOTED = ("bid_price", "bid_quantity", "ask_price", "ask_quantity")
TICKER_TYPES = {
    "instrument_id": "integer",
    "priced_at": "timestamptz",
    "quoted_at": "timestamptz",
    **dict.fromkeys((*PRICED, *QUOTED), "numeric"),
    "trades_24h": "bigint",
}
KLINE_TOLD = ("open", "high", "low", "close", "volume")
KLINE_UNTOLD = ("quote_volume", "trades", "taker_buy_volume", "taker_buy_quote_volume")
KLINE_TYPES = {
    "instrument_id": "integer",
    "interval": "text",
    "open_time": "timestamptz",
    **dict.fromkeys((*KLINE_TOLD, *KLINE_UNTOLD), "numeric"),
    "trades": "integer",
}
INSTRUMENT_TYPES = {
    "symbol": "text",
    "base_asset": "text",
    "quote_asset": "text",
    "tick_size": "numeric",
    "step_size": "numeric",
    "min_notional": "numeric",
    "status": "text",
}


def instrument_ids(writer: Writer, exchange: str, market: Market, symbols: Collection[str]) -> dict[str, int]:
    """Find the instruments of these symbols, and make those that are absent."""
    wanted = sorted(symbols)
    found = select(Instrument.symbol, Instrument.id).where(
        Instrument.exchange == exchange, Instrument.market == market, Instrument.symbol.in_(wanted)
    )
    made = insert(Instrument).on_conflict_do_nothing()
    for _ in range(3):
        ids = {row.symbol: row.id for row in writer.execute(found)}
        absent = [symbol for symbol in wanted if symbol not in ids]
        if not absent:
            return ids
        rows = [{"exchange": exchange, "market": market, "symbol": symbol} for symbol in absent]
        writer.execute(made.values(rows))
    raise HeliosError(f"Instruments are deleted by others while they are written, {absent[0]} among them: try again")


def write_instruments(writer: Writer, exchange: str, market: Market, reports: Iterable[InstrumentReport]) -> int:
    """Write instruments as the exchange describes them; what it does not tell stays. How many rows changed."""
    newest = {report.symbol: report for report in reports}
    if not newest:
        return 0
    table = table_name(Instrument.__table__)
    names = [name for name in INSTRUMENT_TYPES if name != "symbol"]
    now = {name: f"coalesce(excluded.{name}, i.{name})" for name in names}
    now["status"] = "excluded.status"
    statement = f"""
        INSERT INTO {table} AS i (exchange, market, {", ".join(INSTRUMENT_TYPES)})
        SELECT :exchange, :market, told.* FROM {unnested(INSTRUMENT_TYPES)} AS told
        ON CONFLICT (exchange, market, symbol) DO UPDATE
        SET {", ".join(f"{name} = {value}" for name, value in now.items())}, updated_at = now()
        WHERE ({", ".join(f"i.{name}" for name in now)}) IS DISTINCT FROM ({", ".join(now.values())})
    """
    binds = columns_of([asdict(newest[symbol]) for symbol in sorted(newest)], INSTRUMENT_TYPES)
    return execute(writer, statement, {**binds, "exchange": exchange, "market": str(market)})


def conflated(reports: Iterable[TickerReport]) -> dict[str, dict[str, Any]]:
    """Join the tickers of each symbol into its newest: trades and quotes each for itself, what is untold stays."""
    newest: dict[str, dict[str, Any]] = {}
    for report in reports:
        row = newest.setdefault(report.symbol, dict.fromkeys(TICKER_TYPES))
        for moment, names in (("priced_at", PRICED), ("quoted_at", QUOTED)):
            told_at = getattr(report, moment)
            if told_at is not None and (row[moment] is None or told_at >= row[moment]):
                told = {name: getattr(report, name) for name in names}
                row.update({name: value for name, value in told.items() if value is not None}, **{moment: told_at})
    return newest


def write_tickers(writer: Writer, rows: Mapping[str, dict[str, Any]], ids: Mapping[str, int]) -> int:
    """Write the newest ticker of each symbol; what is older than the row stays out. How many rows were written."""
    if not rows:
        return 0
    told = sorted(({**row, "instrument_id": ids[symbol]} for symbol, row in rows.items()), key=by_instrument)
    return execute(writer, ticker_statement(), columns_of(told, TICKER_TYPES))


def by_instrument(row: Mapping[str, Any]) -> int:
    """Sort as every writer does, so that no two wait for each other."""
    return int(row["instrument_id"])


def ticker_statement() -> str:
    """Write the upsert of tickers, in which trades and quotes are each compared with their own moment."""
    listed = ", ".join(TICKER_TYPES)
    # A row that somebody wrote without these moments is as old as it says itself.
    newer = {
        moment: f"excluded.{moment} >= coalesce(t.{moment}, CASE WHEN t.{price} IS NOT NULL THEN t.event_at END, "
        "'-infinity')"
        for moment, price in (("priced_at", "last_price"), ("quoted_at", "bid_price"))
    }
    changes = [
        f"{name} = CASE WHEN {newer[moment]} THEN coalesce(excluded.{name}, t.{name}) ELSE t.{name} END"
        for moment, names in (("priced_at", PRICED), ("quoted_at", QUOTED))
        for name in (*names, moment)
    ]
    return f"""
        INSERT INTO {table_name(Ticker.__table__)} AS t ({listed}, event_at)
        SELECT {listed}, greatest(priced_at, quoted_at) FROM {unnested(TICKER_TYPES)} AS told ({listed})
        ON CONFLICT (instrument_id) DO UPDATE
            SET {", ".join(changes)}, event_at = greatest(t.event_at, excluded.event_at), recorded_at = now()
            WHERE {newer["priced_at"]} OR {newer["quoted_at"]}
    """


def write_klines(writer: Writer, reports: Iterable[KlineReport], ids: Mapping[str, int]) -> int:
    """Write closed candles; equal ones are not touched. How many rows were new or differed.

    Holds each instrument until the transaction ends, as whoever writes candles does instead of a foreign key.
    """
    rows = {
        (ids[each.symbol], str(each.interval), each.open_time): {
            **{name: getattr(each, name) for name in (*KLINE_TOLD, *KLINE_UNTOLD)},
            "instrument_id": ids[each.symbol],
            "interval": str(each.interval),
            "open_time": each.open_time,
        }
        for each in reports
    }
    if not rows:
        return 0
    hold_instruments(writer, sorted({key[0] for key in rows}))
    now = {name: f"excluded.{name}" for name in KLINE_TOLD}
    now |= {name: f"coalesce(excluded.{name}, k.{name})" for name in KLINE_UNTOLD}
    statement = f"""
        INSERT INTO {table_name(Kline.__table__)} AS k ({", ".join(f'"{name}"' for name in KLINE_TYPES)})
        SELECT * FROM {unnested(KLINE_TYPES)} AS told ON CONFLICT (instrument_id, "interval", open_time) DO UPDATE
            SET {", ".join(f'"{name}" = {value}' for name, value in now.items())}
            WHERE ({", ".join(f'k."{name}"' for name in now)}) IS DISTINCT FROM ({", ".join(now.values())})
    """
    count = execute(writer, statement, columns_of([rows[key] for key in sorted(rows)], KLINE_TYPES))
    # Also where nothing was new: of a commit whose answer was lost, the candles may be there and the telling not.
    tell_written(writer, str(metadata.schema), [(*key, key[2]) for key in sorted(rows)])
    return count


def hold_instruments(writer: Writer, ids: list[int]) -> None:
    """Keep instruments from being deleted until the transaction ends."""
    held = select(Instrument.id).where(Instrument.id.in_(ids)).order_by(Instrument.id)
    found = set(writer.execute(held.with_for_update(key_share=True, read=True)).scalars())
    if found != set(ids):
        raise VanishedError("An instrument was deleted by others while its candles were written: try again")


class VanishedError(HeliosError):
    """An instrument or an account that was known is not there any more."""


def make_partitions(writer: Writer, wanted: Iterable[tuple[Interval, int]]) -> None:
    """Make the partitions of these intervals and UTC years, where they are missing."""
    for interval, year in sorted(wanted):
        make_partition(writer, str(metadata.schema), interval, year)


def partitions_of(reports: Iterable[KlineReport]) -> set[tuple[Interval, int]]:
    """Name the partitions that candles fall into, by interval and UTC year."""
    return {(each.interval, each.open_time.astimezone(UTC).year) for each in reports}
