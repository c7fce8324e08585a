"""Commands of klines: load files, list the series, show the newest candles."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from sqlalchemy import Engine

from helios import backfill, db, queries
from helios.cli.output import json_option, show, talk
from helios.errors import HeliosError, InputError
from helios.models import Interval, Market
from helios.schema import migrations
from helios.settings import Settings

FILES = (".csv", ".zip", ".json")
MARKETS = click.Choice([each.value for each in Market])
INTERVALS = click.Choice([each.value for each in Interval])


@click.group(epilog="Example: helios klines load BTCUSDT-1m-2025-01.zip && helios klines list")
def klines() -> None:
    """Load, list and show klines (candles)."""


@klines.command(epilog="Example: helios klines load --market um BTCUSDT-1m-2025-01.zip folder/")
@click.argument("paths", metavar="FILE...", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--symbol", help="Symbol, where the file's name does not tell it.")
@click.option("--interval", type=INTERVALS, help="Interval, where the file's name does not tell it.")
@click.option("--market", type=MARKETS, help="Market, where neither name nor folder tells it; else spot is assumed.")
@click.option("--exchange", default="binance", show_default=True, help="Exchange the files come from.")
@click.option("--strict", is_flag=True, help="Refuse a file whole when any of its rows is bad.")
@click.option("--again", is_flag=True, help="Compare also a file that was loaded before and has not changed.")
@click.option(
    "--rejects",
    default=Path("rejects"),
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the rows that cannot be used, with line and reason.",
)
@json_option
def load(  # noqa: PLR0913 - a parameter for each option
    paths: tuple[Path, ...],
    *,
    symbol: str | None,
    interval: str | None,
    market: str | None,
    exchange: str,
    strict: bool,
    again: bool,
    rejects: Path,
    as_json: bool,
) -> int:
    """Load files of klines, or folders of them: official archive CSV or ZIP, ccxt JSON.

    Each file is loaded whole or not at all; a file that cannot be used does not stop the others. Loading again writes
    only what differs.
    """
    sources = list(sources_of(paths, {"symbol": symbol, "interval": interval, "market": market, "exchange": exchange}))
    settings = Settings.from_environment()
    engine = db.create_engine(settings)
    with db.connect(engine) as connection:  # what is wrong with the server is one failure, not one for each file
        migrations.refuse_pending(connection, settings.database_schema)
    reports, failures = [], []
    with Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[rows]:,} rows"),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=talk(),
        transient=True,
    ) as bars:
        for source in sources:
            try:
                reports.append(load_one(engine, source, bars, strict=strict, again=again, rejects=rejects))
            except HeliosError as error:
                failures.append(error)
                bars.console.print(f"helios: {error}", soft_wrap=True)
    show([summary(each) for each in reports], as_json=as_json, nothing="nothing was loaded", right=NUMBERS)
    if not as_json:
        tell_reasons(reports)
    return max((each.exit_status for each in failures), default=0)


def sources_of(paths: tuple[Path, ...], told: dict[str, Any]) -> Iterator[backfill.Source]:
    """Recognise files, and those inside folders; what a folder holds besides klines is passed by, and said."""
    for path in paths:
        inside = path.is_dir()
        for file in files_in(path) if inside else [path]:
            try:
                source = backfill.recognise(file, **told)
            except InputError as error:
                if not inside:
                    raise
                talk().print(f"passed by: {error}", soft_wrap=True)
                continue
            if source.assumed:
                talk().print(f"{file.name}: nothing tells its market, so spot is assumed; --market says another")
            yield source


def files_in(folder: Path) -> list[Path]:
    """List the files of a folder, and of those in it, that may hold klines."""
    found = sorted(each for each in folder.rglob("*") if each.suffix.lower() in FILES and each.is_file())
    if not found:
        raise InputError(f"folder {str(folder)!r} holds no files that end in {', '.join(FILES)}")
    return found


def load_one(  # noqa: PLR0913 - what the command was told
    engine: Engine, source: backfill.Source, bars: Bars, *, strict: bool, again: bool, rejects: Path
) -> backfill.Report:
    """Load one file with a bar of its own."""
    task = bars.add_task(source.path.name, total=source.path.stat().st_size, rows=0)

    def progress(at: backfill.Progress) -> None:
        bars.update(
            task,
            completed=at.bytes_read,
            total=at.bytes_in_all,
            rows=at.rows,
            description=f"{source.path.name} {at.stage.value}",
        )

    try:
        return backfill.load(engine, source, strict=strict, again=again, rejects=rejects, progress=progress)
    finally:
        bars.remove_task(task)


NUMBERS = ("rows", "written", "unchanged", "rejected", "duplicates", "missing", "seconds")


def summary(report: backfill.Report) -> dict[str, object]:
    """What the table of a load shows of one file."""
    return {
        "file": report.source.path.name,
        "market": report.source.market.value,
        "symbol": report.source.symbol,
        "interval": report.source.interval.value,
        "mode": report.mode.value,
        "rows": report.rows,
        "written": report.written,
        "unchanged": report.unchanged,
        "rejected": report.rejected,
        "duplicates": report.duplicates,
        "missing": report.missing,
        "first": report.first,
        "last": report.last,
        "seconds": round(report.seconds, 2),
    }


def tell_reasons(reports: list[backfill.Report]) -> None:
    """Say on stderr what is wrong with each file, and where its rejected rows are."""
    for report in reports:
        for reason in report.reasons:
            talk().print(f"{report.source.path.name}: {reason}", soft_wrap=True)
        if report.rejects:
            talk().print(f"{report.source.path.name}: rejected rows are in {report.rejects}", soft_wrap=True)


@klines.command("list", epilog="Example: helios klines list --json")
@json_option
def list_series(*, as_json: bool) -> None:
    """List every series: its rows, first and last candle (UTC), and how many are missing between."""
    settings = Settings.from_environment()
    with db.connect(db.create_engine(settings)) as connection:
        found = queries.coverage(connection)
    rows = [
        {
            "exchange": each.exchange,
            "market": each.market.value,
            "symbol": each.symbol,
            "interval": each.interval.value,
            "rows": each.rows,
            "first": each.first,
            "last": each.last,
            "missing": each.missing,
        }
        for each in found
    ]
    show(rows, as_json=as_json, nothing="no klines yet: helios klines load FILE...", right=("rows", "missing"))


@klines.command("show", epilog="Example: helios klines show BTCUSDT 1h --last 24")
@click.argument("symbol")
@click.argument("interval", type=INTERVALS)
@click.option("--exchange", help="Exchange, where the symbol is on several.")
@click.option("--market", type=MARKETS, help="Market, where the symbol is in several.")
@click.option("--last", default=10, show_default=True, type=click.IntRange(1, 100_000), help="How many candles.")
@json_option
def show_candles(  # noqa: PLR0913 - a parameter for each option
    symbol: str, interval: str, *, exchange: str | None, market: str | None, last: int, as_json: bool
) -> None:
    """Show the newest candles of SYMBOL at INTERVAL, oldest first; times are UTC."""
    settings = Settings.from_environment()
    with db.connect(db.create_engine(settings)) as connection:
        instrument_id = the_instrument(connection, symbol, exchange, market)
        candles = queries.klines(instrument_id, Interval(interval), last=last).rows(connection)
    rows = [
        {
            "open_time": row.open_time,
            "open": row.open,
            "high": row.high,
            "low": row.low,
            "close": row.close,
            "volume": row.volume,
            "trades": row.trades,
        }
        for row in candles
    ]
    right = ("open", "high", "low", "close", "volume", "trades")
    show(rows, as_json=as_json, nothing=f"{symbol} has no klines at {interval}: helios klines list", right=right)


def the_instrument(reader: queries.Reader, symbol: str, exchange: str | None, market: str | None) -> int:
    """Find the one instrument that is meant.

    Raises:
        InputError: there is none, or the symbol alone does not tell which.

    """
    found = [
        row
        for row in queries.instruments_named(symbol).rows(reader)
        if exchange in (None, row.exchange) and market in (None, row.market)
    ]
    if not found:
        raise InputError(f"there is no instrument {symbol!r} here: `helios klines list` shows those with klines")
    if len(found) > 1:
        places = ", ".join(f"{row.exchange} {row.market.value}" for row in found)
        raise InputError(f"{symbol!r} is on {places}: choose with --exchange and --market")
    return int(found[0].id)
