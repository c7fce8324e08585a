"""The command that loads files of klines."""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from sqlalchemy import Engine

from helios import backfill, db
from helios.backfill.source import checked_exchange, checked_symbol
from helios.cli.output import json_option, say, show, talk
from helios.errors import InputError
from helios.models import Interval, Market
from helios.schema import migrations
from helios.settings import Settings

FILES = (".csv", ".zip", ".json", ".parquet")
TIERS = click.Choice([each.value for each in backfill.Tier])
MARKETS = click.Choice([each.value for each in Market])
INTERVALS = click.Choice([each.value for each in Interval])
NUMBERS = ("rows", "written", "unchanged", "rejected", "duplicates", "missing", "seconds")


@click.command(epilog="Example: helios klines load --market um BTCUSDT-1m-2025-01.zip folder/")
@click.argument("paths", metavar="FILE...", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--symbol", help="Symbol, where the file's name does not tell it.")
@click.option("--interval", type=INTERVALS, help="Interval, where the file's name does not tell it.")
@click.option("--market", type=MARKETS, help="Market, where neither name nor folder tells it; else spot is assumed.")
@click.option("--exchange", default="binance", show_default=True, help="Exchange the files come from.")
@click.option("--strict", is_flag=True, help="Refuse a file whole when any of its rows is bad.")
@click.option("--again", is_flag=True, help="Compare also a file that was loaded before and has not changed.")
@click.option("--initial", is_flag=True, help="As owner: fill empty partitions without their key, then build it.")
@click.option("--jobs", type=click.IntRange(1, 64), help="Connections to load over (default: one a core, up to 4).")
@click.option("--tier", type=TIERS, help="How files are read (default: fast, where helios[fast] is installed).")
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
    initial: bool,
    jobs: int | None,
    tier: str | None,
    rejects: Path,
    as_json: bool,
) -> int:
    """Load files of klines, or folders of them: official archive CSV or ZIP, ccxt JSON, Parquet.

    Each file is loaded whole or not at all; a file that cannot be used does not stop the others. Loading again writes
    only what differs. With --initial, all files of an interval share the partitions they fill, and are one transaction.
    """
    checked_exchange(exchange)
    if symbol is not None:
        checked_symbol(symbol)
    sources = list(sources_of(paths, {"symbol": symbol, "interval": interval, "market": market, "exchange": exchange}))
    settings = Settings.from_environment()
    engine = engine_for(settings, initial=initial)
    with db.connect(engine) as connection:  # what is wrong with the server is one failure, not one for each file
        migrations.refuse_pending(connection, settings.database_schema)
    options = backfill.Options(strict=strict, again=again, rejects=rejects, tier=tier)
    reports: dict[backfill.Source, backfill.Report] = {}
    failures = []
    with bars_of_files() as bars:
        tasks: dict[backfill.Source, TaskID] = {}
        tell = teller(bars, tasks)
        for outcome in backfill.load_many(engine, sources, options, jobs=jobs, initial=initial, progress=tell):
            if outcome.source in tasks:
                bars.remove_task(tasks[outcome.source])
            if outcome.report:
                reports[outcome.source] = outcome.report
            if outcome.error and outcome.error not in failures:
                failures.append(outcome.error)
                say(f"helios: {outcome.error}", bars.console)
    in_order = [reports[each] for each in sources if each in reports]
    show([summary(each) for each in in_order], as_json=as_json, nothing="nothing was loaded", right=NUMBERS)
    if not as_json:
        tell_reasons(in_order)
    return max((each.exit_status for each in failures), default=0)


def engine_for(settings: Settings, *, initial: bool) -> Engine:
    """Make the engine of a load; an initial one needs the owner's rights, which the login of migrations has."""
    if not initial:
        return db.create_engine(settings)
    return db.create_engine(replace(settings, database_url=db.migration_url(settings)))


def bars_of_files() -> Bars:
    """Make the bars of the files that are being loaded."""
    return Bars(
        TextColumn("{task.description}", markup=False),  # a file may be called [red]
        BarColumn(),
        TextColumn("{task.fields[rows]:,} rows"),
        TextColumn("{task.fields[rate]:,.0f} rows/s"),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=talk(),
        transient=True,
    )


def teller(bars: Bars, tasks: dict[backfill.Source, TaskID]) -> Callable[[backfill.Source, backfill.Progress], None]:
    """Give what shows the progress of each file in a bar of its own, while it is loaded."""
    began: dict[backfill.Source, float] = {}

    def tell(source: backfill.Source, at: backfill.Progress) -> None:
        if source not in tasks:
            began[source] = time.monotonic()
            tasks[source] = bars.add_task(source.path.name, total=at.bytes_in_all, rows=0, rate=0)
        bars.update(
            tasks[source],
            completed=at.bytes_read,
            total=at.bytes_in_all,
            rows=at.rows,
            rate=at.rows / max(time.monotonic() - began[source], 0.001),
            description=f"{source.path.name} {at.stage.value}",
        )

    return tell


def sources_of(paths: tuple[Path, ...], told: dict[str, Any]) -> Iterator[backfill.Source]:
    """Recognise files, and those inside folders; what a folder holds besides klines is passed by, and said.

    A file that is named twice, as by itself and by its folder, is one.
    """
    seen: set[Path] = set()
    for path in paths:
        inside = path.is_dir()
        for file in files_in(path) if inside else [path]:
            named = file.parent.resolve() / file.name  # a link to a file is another: its own name says what it holds
            if named in seen:
                continue
            seen.add(named)
            try:
                source = backfill.recognise(file, **told)
            except InputError as error:
                if not inside:
                    raise
                say(f"passed by: {error}")
                continue
            if source.assumed:
                say(f"{file.name}: nothing tells its market, so spot is assumed; --market says another")
            yield source


def files_in(folder: Path) -> list[Path]:
    """List the files of a folder, and of those in it, that may hold klines."""
    found = []
    for where, folders, names in os.walk(folder, onerror=pass_by):
        found += [Path(where, name) for name in names if Path(name).suffix.lower() in FILES]
        for link in (Path(where, name) for name in sorted(folders)):
            if link.is_symlink():
                say(f"passed by: {link} is a link to a folder: name it if its files are wanted")
    if not found:
        raise InputError(f"folder {str(folder)!r} holds no files that end in {', '.join(FILES)}")
    return sorted(found)


def pass_by(error: OSError) -> None:
    """Say that a folder inside a folder cannot be looked into."""
    say(f"passed by: {error.filename} cannot be read ({error.strerror})")


def summary(report: backfill.Report) -> dict[str, object]:
    """What the table of a load shows of one file; nothing of what nobody counted, where the file was not read again."""
    counted = report.mode is not backfill.Mode.UNCHANGED
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
        "duplicates": report.duplicates if counted else None,
        "missing": report.missing if counted else None,
        "first": report.first,
        "last": report.last,
        "seconds": round(report.seconds, 2),
    }


def tell_reasons(reports: list[backfill.Report]) -> None:
    """Say on stderr, in a line for each file, what is wrong with it, and where its rejected rows are."""
    for report in reports:
        said = [*report.reasons, *([f"rejected rows are in {report.rejects}"] if report.rejects else [])]
        if said:
            say(f"{report.source.path.name}: {'; '.join(said)}")
