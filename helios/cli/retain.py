"""Commands that remove what is old: the plan first, then what it shows, once somebody says so."""

import sys

import click

from helios import db, retention
from helios.cli.output import json_option, say, show
from helios.errors import InputError
from helios.schema import migrations
from helios.settings import Settings

UNITS = ("bytes", "kB", "MB", "GB", "TB")
STEP = 1024

apply_option = click.option("--apply", "apply_it", is_flag=True, help="Remove what the plan shows.")
yes_option = click.option("--yes", is_flag=True, help="Do not ask; required where there is no terminal to ask on.")


@click.command(epilog='Example: helios retain "1m 2y, quality 90d, signals 1y, history 2y" --apply')
@click.argument("policy")
@apply_option
@yes_option
@json_option
def retain(policy: str, *, apply_it: bool, yes: bool, as_json: bool) -> None:
    """Plan what POLICY would remove; with --apply, remove it.

    A rule is an interval of klines, quality, signals or history, and an age (d, w, mo, y) or forever; what has no
    rule stays. Klines go by whole partitions, a year each, once all of it is older. The history of an order goes whole,
    once the order has ended and not changed since. With --apply the plan is shown and confirmed first.
    """
    carry_out(retention.parse(policy), apply_it=apply_it, yes=yes, as_json=as_json)


@click.command("retain", epilog='Example: helios klines retain "1m 2y, 1d forever" --apply')
@click.argument("policy")
@apply_option
@yes_option
@json_option
def retain_klines(policy: str, *, apply_it: bool, yes: bool, as_json: bool) -> None:
    """Plan which klines POLICY would drop; with --apply, drop them.

    A rule is an interval and an age (d, w, mo, y) or forever; intervals without a rule stay. Only whole partitions, a
    year each, go, once all of it is older. With --apply the plan is shown and confirmed first.
    """
    carry_out(retention.parse(policy, only_klines=True), apply_it=apply_it, yes=yes, as_json=as_json)


def carry_out(policy: retention.Policy, *, apply_it: bool, yes: bool, as_json: bool) -> None:
    """Show the plan, and carry it out where that was asked for and confirmed."""
    settings = Settings.from_environment()
    with db.connect(db.create_migration_engine(settings)) as connection:
        migrations.refuse_pending(connection, settings.database_schema)
        plan = retention.plan(connection, policy)
    if not apply_it:
        show_plan(plan, as_json=as_json)
        say(summary(plan))
        return
    if not as_json:
        show_plan(plan, as_json=False)
    say(summary(plan))
    gone = []
    if not plan.empty and (yes or confirmed()):
        for each in retention.apply(settings, plan):
            say(f"removed {each.what}: {each.rows:,} rows")
            gone.append({"removed": each.what, "rows": each.rows})
    if as_json:
        show(gone, as_json=True, nothing="")


def confirmed() -> bool:
    """Ask before anything is removed.

    Raises:
        InputError: there is nobody to ask.

    """
    if not sys.stdin.isatty():
        raise InputError("--apply removes data for good, and there is no terminal to confirm it on: say --yes")
    agreed = click.confirm("Remove this for good?", err=True)
    if not agreed:
        say("nothing was removed")
    return agreed


def show_plan(plan: retention.Plan, *, as_json: bool) -> None:
    """Print a line for each partition and table that has a rule."""
    rows: list[dict[str, object]] = [
        {
            "what": each.name,
            "from": each.lower,
            "to": each.upper,
            "rows": each.rows,
            "size": each.bytes if as_json else size(each.bytes),
            "plan": "drop" if each.goes else "keep",
            "because": each.reason,
        }
        for each in plan.parts
    ]
    rows += [
        {
            "what": each.rule.name,
            "from": None,
            "to": each.cutoff,
            "rows": each.rows,
            "size": None,
            "plan": "delete" if each.rows else "keep",
            "because": f"{each.rows:,} rows are before {each.cutoff:%Y-%m-%d}, {each.remaining:,} remain",
        }
        for each in plan.shares
    ]
    show(rows, as_json=as_json, nothing="nothing here has such a rule", right=("rows", "size"))


def summary(plan: retention.Plan) -> str:
    """Say in a sentence what goes and what remains."""
    going, staying = plan.going, [each for each in plan.parts if not each.goes]
    count = "1 partition" if len(going) == 1 else f"{len(going)} partitions"
    parts = f"{count} with about {sum(each.rows for each in going):,} rows go"
    remain = f"{len(staying)} with about {sum(each.rows for each in staying):,} rows remain of the intervals named"
    said = [f"{parts} ({size(sum(each.bytes for each in going))}), {remain}"] if plan.parts else []
    said += [f"{each.rows:,} rows of {each.rule.name} go, {each.remaining:,} remain" for each in plan.shares]
    return "; ".join(said) or "nothing goes"


def size(count: int) -> str:
    """Write a number of bytes for people."""
    value, unit = float(count), 0
    while value >= STEP and unit + 1 < len(UNITS):
        value, unit = value / STEP, unit + 1
    return f"{value:.0f} {UNITS[unit]}" if unit == 0 else f"{value:.1f} {UNITS[unit]}"
