"""Commands of klines: load files, list the series, draw or print candles."""

import os
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import click
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from sqlalchemy import Engine

from helios import backfill, db, queries
from helios.cli import charts
from helios.cli.instruments import Moment, exchange_option, market_option, the_instrument
from helios.cli.output import json_option, out, show, talk
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
    """List every series: its rows, first and last candle (UTC), and the gaps between, with a bar of what is there.

    Each block of the bar is a sixteenth of the time from the first candle to the last: full where nothing is missing,
    blank where everything is. Only series that lack candles are searched for gaps.
    """
    settings = Settings.from_environment()
    with db.connect(db.create_engine(settings)) as connection:
        found = [
            (each, queries.gaps(each.instrument_id, each.interval).rows(connection) if each.missing else ())
            for each in queries.coverage(connection)
        ]
    rows = [
        {
            "exchange": each.exchange,
            "market": each.market.value,
            "symbol": each.symbol,
            "interval": each.interval.value,
            "rows": each.rows,
            "first": each.first,
            "last": each.last,
            "gaps": len(gaps),
            "missing": each.missing,
            **({} if as_json else {"coverage": charts.coverage_bar(each, gaps)}),
        }
        for each, gaps in found
    ]
    show(rows, as_json=as_json, nothing="no klines yet: helios klines load FILE...", right=("rows", "gaps", "missing"))


@klines.command("show", epilog="Example: helios klines show BTCUSDT 1h --last 24")
@click.argument("symbol")
@click.argument("interval", type=INTERVALS)
@exchange_option
@market_option
@click.option(
    "--since", type=Moment(), help="Show candles opened at this time (UTC) or later, such as 2025-01-31T12:00."
)
@click.option("--until", type=Moment(), help="Show candles opened before this time (UTC).")
@click.option(
    "--last",
    type=click.IntRange(1, 100_000),
    help="How many candles, the newest; without --since, 100 where they are drawn and 10 elsewhere.",
)
@click.option("--table", is_flag=True, help="Print a table, also in a terminal.")
@click.option("--png", type=click.Path(dir_okay=False, path_type=Path), help="Draw into this PNG file instead.")
@json_option
def show_candles(  # noqa: PLR0913 - a parameter for each option
    symbol: str,
    interval: str,
    *,
    exchange: str | None,
    market: str | None,
    since: datetime | None,
    until: datetime | None,
    last: int | None,
    table: bool,
    png: Path | None,
    as_json: bool,
) -> None:
    """Draw the candles of SYMBOL at INTERVAL; times are UTC.

    In a terminal they are drawn, where helios[charts] is installed; elsewhere they are a table, oldest first.
    """
    drawn = png is not None or (sys.stdout.isatty() and not (table or as_json))
    if drawn and png is None and not charts.installed("plotext"):
        talk().print('a table, because drawing needs plotext: pip install "helios[charts]"', markup=False)
        drawn = False
    if last is None and since is None:
        last = 100 if drawn else 10
    of = Interval(interval)
    settings = Settings.from_environment()
    with db.connect(db.create_engine(settings)) as connection:
        instrument = the_instrument(connection, symbol, exchange, market)
        candles = queries.klines(instrument.id, of, since=since, until=until, last=last).rows(connection)
    name = f"{instrument.exchange} {instrument.market.value} {instrument.symbol}"
    if not (drawn and candles):
        nothing = f"{symbol} has no klines at {interval}{' then' if since or until else ''}: helios klines list"
        show([shown(row) for row in candles], as_json=as_json, nothing=nothing, right=tuple(SHOWN[1:]))
    elif png is not None:
        charts.as_png(candles, of, name, png)
        talk().print(f"{len(candles):,} candles drawn into {png}", soft_wrap=True)
    else:
        size = out().size
        picture = charts.in_terminal(candles, of, name, width=size.width, height=min(size.height - 3, 40))
        click.echo(click.unstyle(picture) if os.environ.get("NO_COLOR") else picture)


SHOWN = ("open_time", "open", "high", "low", "close", "volume", "trades")


def shown(row: Any) -> dict[str, Any]:  # noqa: ANN401 - a row of klines
    """What the table of candles shows of one."""
    return {name: getattr(row, name) for name in SHOWN}
