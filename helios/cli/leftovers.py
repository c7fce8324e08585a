"""Commands about what tests left: sweep, orphans."""

import sys
from typing import Any

import click

from helios.cli.output import json_option, say, show
from helios.errors import InputError
from helios.testing import orphans as looking
from helios.testing.subject import subject_of
from helios.testing.sweeping import sweep as undo_dead_runs

metadata_option = click.option(
    "--metadata",
    default="",
    metavar="MODULE:NAME",
    help="The tables, where they are not Helios's own; MODULE is looked for on PYTHONPATH, such as PYTHONPATH=. here.",
)


@click.command(epilog="Example: helios sweep --json")
@metadata_option
@json_option
def sweep(metadata: str, *, as_json: bool) -> None:
    """Undo what test runs that died left in PostgreSQL and Redis; a run that lives is left alone."""
    subject = subject_of(metadata, setting="--metadata")
    repairs = undo_dead_runs(subject)
    rows = [
        {
            "runs": [str(run) for run in repair.runs],
            "schema": repair.schema,
            "table": change.table,
            "done": change.what,
            "count": change.count,
            "why": change.why,
        }
        for repair in repairs
        for change in repair.changes
    ]
    what = "a dead run was there, and had left nothing" if repairs else "no dead run"
    show(rows, as_json=as_json, nothing=f"{what}, in schema {subject.schema}")


@click.command(epilog="Example: helios orphans --delete")
@metadata_option
@click.option("--delete", is_flag=True, help="Delete what is listed, after a question; refused in production.")
@click.option("--yes", is_flag=True, help="Do not ask; required where there is no terminal to ask on.")
@json_option
def orphans(metadata: str, *, delete: bool, yes: bool, as_json: bool) -> int:
    """List rows and keys that look like test data; exit status 1 while there are any.

    Deleting is done under the undo log: what was deleted is counted, and comes back unless it is confirmed, also when
    this command is killed (then by `helios sweep`).
    """
    subject = subject_of(metadata, setting="--metadata")
    found = looking.find(subject)
    show([readable(each) for each in found], as_json=as_json, nothing="nothing looks like test data")
    doomed = [each for each in found if not each.real]
    if not delete or not doomed:
        return 1 if found else 0
    if not yes and not sys.stdin.isatty():
        raise InputError("--delete removes rows and keys, and there is no terminal to confirm it on: say --yes")
    with looking.deleting(subject, doomed) as deletion:
        counts = ", ".join(f"{count} of {name}" for name, count in deletion.counts.items())
        say(f"deleted {counts}; spared: {len(found) - len(doomed)}")
        deletion.confirmed = yes or click.confirm("leave it so? (else all of it comes back)", err=True)
    say("deleted" if deletion.confirmed else "everything is back")
    return 0 if deletion.confirmed and len(doomed) == len(found) else 1


def readable(orphan: looking.Orphan) -> dict[str, Any]:
    """Write an orphan for the table."""
    return {
        "place": orphan.place,
        "key": [
            each.decode(errors="backslashreplace") if isinstance(each, bytes) else str(each) for each in orphan.key
        ],
        "looks": orphan.looks,
        "hanging_on_it": [f"{name} {count}" for name, count in orphan.hanging.items()],
        "spared": orphan.real,
    }
