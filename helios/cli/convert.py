"""The command that moves the klines to another layout: the plan first, then what it shows, once somebody says so."""

from dataclasses import asdict
from datetime import timedelta

import click
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from helios import db, growing
from helios.cli.output import json_option, say, show, talk
from helios.cli.retain import size
from helios.schema import migrations
from helios.settings import Settings


@click.command(epilog="Example: helios klines convert --to timescaledb --apply")
@click.option(
    "--to",
    required=True,
    type=click.Choice([each.value for each in growing.Layout]),
    help="What is to hold the klines.",
)
@click.option("--apply", "apply_it", is_flag=True, help="Do what the plan says.")
@click.option(
    "--chunk-days",
    type=click.IntRange(1, 366),
    default=growing.DEFAULT_CHUNK.days,
    show_default=True,
    help="How long a chunk of a new hypertable is.",
)
@json_option
def convert(*, to: str, apply_it: bool, chunk_days: int, as_json: bool) -> None:
    """Plan how the klines get into a hypertable of TimescaleDB, onto shards of Citus, or back; with --apply, do it.

    Trading goes on: what is there is copied in batches, what changes meanwhile is taken over, every batch is compared,
    and the copy takes the place of the table under a brief lock. Killed, it goes on when it is run again; run with
    --to what the klines are already, it drops what was begun, and compresses chunks that have ended since.
    """
    settings = Settings.from_environment()
    with db.connect(db.create_migration_engine(settings)) as connection:
        migrations.refuse_pending(connection, settings.database_schema)
        plan = growing.plan(connection, settings.database_schema, to, timedelta(days=chunk_days))
    if apply_it:
        carry_out(settings, plan)
    elif not as_json:
        say(f"{plan.sentence}; --apply does it")
    with db.connect(db.create_migration_engine(settings)) as connection:
        now = growing.plan(connection, settings.database_schema, to, timedelta(days=chunk_days))
    row = {"layout": str(now.here), "rows": now.rows, "size": now.bytes if as_json else size(now.bytes)}
    show([{**asdict(now), "chunk": now.chunk.days} if as_json else row], as_json=as_json, nothing="", right=("rows",))


def carry_out(settings: Settings, plan: growing.Plan) -> None:
    """Convert, with a bar for each stage."""
    say(plan.sentence)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:,.0f} of {task.total:,.0f}"))
    with Bars(*columns, TimeRemainingColumn(), console=talk(), transient=True) as bars:
        tasks = {}
        for at in growing.convert(settings, plan):
            if at.stage not in tasks:
                tasks[at.stage] = bars.add_task(str(at.stage), total=at.total)
            bars.update(tasks[at.stage], completed=at.done, total=at.total)
