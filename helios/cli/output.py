"""How results look: tables for people, JSON for programs, both on stdout; talk and bars on stderr."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import click
from rich.console import Console
from rich.table import Table

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def out() -> Console:
    """Make the console of results; without a terminal it neither colours nor cuts a line short."""
    wide = None if sys.stdout and sys.stdout.isatty() else 10_000
    return Console(width=wide, highlight=False, markup=False, emoji=False)


def talk() -> Console:
    """Make the console of talk and progress bars, on stderr."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def say(line: str, console: Console | None = None) -> None:
    """Print one line of talk, as it is and however long."""
    (console or talk()).print(line, soft_wrap=True)


def show(rows: Sequence[Mapping[str, Any]], *, as_json: bool, nothing: str, right: Iterable[str] = ()) -> None:
    """Print rows as a table or as JSON; `right` names columns to align right, `nothing` is said when there are none."""
    if as_json:
        click.echo(json.dumps(rows, default=plain, indent=2))
        return
    if not rows:
        say(nothing)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in rows[0]:
        table.add_column(name.replace("_", " "), justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(readable(value) for value in row.values()))
    out().print(table)


def plain(value: object) -> str:
    """Write for JSON what it has no type for: moments as ISO 8601, numbers as exact text."""
    return value.isoformat() if isinstance(value, datetime) else str(value)


def readable(value: object) -> str:
    """Write a cell: moments to the minute (UTC), whole numbers with thin groups, nothing as nothing."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list):
        return ", ".join(str(each) for each in value)
    return str(value)
