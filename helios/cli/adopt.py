"""The command that takes over an installation of the ancestor: the plan first, then what it shows."""

from dataclasses import asdict
from pathlib import Path

import click
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from sqlalchemy import Engine

from helios import adopting, db
from helios.cli.output import json_option, say, show, talk
from helios.models import Market, SessionMode
from helios.quality.judging import plural
from helios.schema import migrations
from helios.settings import Settings

NUMBERS = ("rows", "to_copy", "there", "differing", "refused")


@click.command(epilog="Example: helios adopt --market spot --mode paper --apply")
@click.option(
    "--from", "schema", default="public", show_default=True, help="Schema that holds the older installation's tables."
)
@click.option("--exchange", default="binance", show_default=True, help="Exchange that it traded at.")
@click.option(
    "--market",
    type=click.Choice([each.value for each in Market]),
    default=Market.SPOT.value,
    show_default=True,
    help="Market that it traded in.",
)
@click.option("--account", default="main", show_default=True, help="Account that its orders belong to.")
@click.option("--mode", type=click.Choice([each.value for each in SessionMode]), help="How its sessions traded.")
@click.option("--apply", "apply_it", is_flag=True, help="Copy what the plan shows.")
@click.option(
    "--rejects",
    default=Path("rejects"),
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the rows that cannot be adopted, with place and reason.",
)
@json_option
def adopt(  # noqa: PLR0913 - a parameter for each option
    *,
    schema: str,
    exchange: str,
    market: str,
    account: str,
    mode: str | None,
    apply_it: bool,
    rejects: Path,
    as_json: bool,
) -> int:
    """Plan what of an older installation in `public` Helios can hold; with --apply, copy it.

    `public` is only read. Rows that Helios holds already stay as they are, so the copy can be interrupted and run
    again; afterwards every row is compared. Stop the older installation before. Exit status 1 where rows that can be
    adopted are not there in the end.
    """
    settings = Settings.from_environment()
    engine = db.create_engine(settings)
    source = adopting.Source(
        schema=schema,
        exchange=exchange.lower(),
        market=Market(market),
        account=account,
        mode=SessionMode(mode) if mode else None,
    )
    with db.connect(engine) as connection:
        migrations.refuse_pending(connection, settings.database_schema)
    if apply_it:
        copy(engine, source, rejects)
    plan = look(engine, source)
    if as_json:
        show([asdict(each) for each in plan.shares], as_json=True, nothing="")
    else:
        show([summary(each) for each in plan.shares], as_json=False, nothing="", right=NUMBERS)
        show([each for share in plan.shares for each in refusals(share)], as_json=False, nothing="", right=NUMBERS)
        tell_columns(plan)
    if apply_it and plan.missing:
        say(f"{plan.missing:,} rows are not there: stop what changes them, then run this again")
    return 1 if apply_it and plan.missing else 0


def look(engine: Engine, source: adopting.Source) -> adopting.Plan:
    """Compare every row, with a bar."""
    with Bars(TextColumn("comparing {task.description}"), BarColumn(), console=talk(), transient=True) as bars:
        task = bars.add_task("")

        def tell(table: str, number: int, of: int) -> None:
            bars.update(task, description=table, completed=number, total=of)

        with db.connect(engine) as connection:
            return adopting.plan(connection, source, progress=tell)


def copy(engine: Engine, source: adopting.Source, rejects: Path) -> None:
    """Copy table by table, with a bar for each."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[written]:,} rows"))
    with Bars(*columns, TimeRemainingColumn(), console=talk(), transient=True) as bars:
        tasks = {}
        for at in adopting.apply(engine, source, rejects=rejects):
            if at.table not in tasks:
                tasks[at.table] = bars.add_task(at.table, total=at.total, written=0)
            bars.update(tasks[at.table], completed=at.done, written=at.written)
            if at.rejects:
                say(
                    f"{at.table}: {plural(at.rejected, 'refused row is', 'refused rows are')} in {at.rejects}",
                    bars.console,
                )


def summary(share: adopting.Share) -> dict[str, object]:
    """What the table of the plan shows of one table."""
    return {
        "table": share.table,
        "into": share.into,
        "rows": share.rows,
        "to_copy": share.missing,
        "there": share.there,
        "differing": share.differing,
        "refused": sum(share.rejected.values()),
    }


def refusals(share: adopting.Share) -> list[dict[str, object]]:
    """Say why rows, or the whole table, cannot be adopted, in a line for each reason."""
    lines: list[dict[str, object]] = []
    if share.problem:
        lines.append({"table": share.table, "refused": None, "because": share.problem})
    lines += [{"table": share.table, "refused": rows, "because": why} for why, rows in share.rejected.items()]
    return lines


def tell_columns(plan: adopting.Plan) -> None:
    """Say on stderr what becomes of the columns, in a line for each table and matter."""
    for share in plan.shares:
        if share.unknown:
            say(f"{share.table}: columns that nobody knows are not copied: {', '.join(share.unknown)}")
        for why in dict.fromkeys(share.left.values()):
            names = ", ".join(name for name, because in share.left.items() if because == why)
            say(f"{share.table}: {names} left behind: {why}")
        for note in share.notes:
            say(f"{share.table}: {note}")
        if share.differing:
            say(f"{share.table}: {share.differing:,} rows are there with other values, which stay")
