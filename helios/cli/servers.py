"""Commands of the embedded servers: up, down, status."""

from collections.abc import Sequence

import click

from helios import servers
from helios.cli.output import json_option, say, show
from helios.settings import Settings


@click.command(epilog="Example: helios up && helios status")
@json_option
def up(*, as_json: bool) -> None:
    """Start the embedded PostgreSQL and Valkey, and keep them up until `helios down`."""
    report(servers.up(Settings.from_environment()), as_json=as_json)


@click.command(epilog="Example: helios down --now")
@click.option("--now", is_flag=True, help="Stop them at once, also while programs use them.")
@json_option
def down(*, now: bool, as_json: bool) -> None:
    """Let the embedded servers end, as soon as no program uses them."""
    found = servers.down(Settings.from_environment(), now=now)
    for each in found:
        if each.running:
            users = ", ".join(str(pid) for pid in each.users or ()) or "programs of other users"
            say(f"{each.name} is still used, by {users}: it ends with the last of them, or by helios down --now")
    report(found, as_json=as_json)


@click.command(epilog="Example: helios status --json")
@json_option
def status(*, as_json: bool) -> None:
    """Show the embedded servers: what runs, where, and who uses it."""
    report(servers.status(Settings.from_environment()), as_json=as_json)


def report(found: Sequence[servers.Status], *, as_json: bool) -> None:
    """Print one line a server."""
    rows = [
        {
            "server": each.name,
            "running": each.running,
            "kept_up": each.kept,
            "version": each.version,
            "url": each.url.set(drivername=each.url.drivername.partition("+")[0]).render_as_string()
            if each.url
            else None,
            "data": str(each.data),
            "used_by": None if each.users is None else list(each.users),
        }
        for each in found
    ]
    show(rows, as_json=as_json, nothing="no embedded servers here: install the extra helios[embedded]")
