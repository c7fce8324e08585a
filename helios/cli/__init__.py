"""The `helios` command: the only part that prints and asks.

Each command's module is imported when it is called, so that `helios up` does not wait for SQLAlchemy and Alembic.
"""

import importlib
import logging
import sys
from typing import NoReturn

import click

from helios.errors import HeliosError

COMMANDS = {
    "up": "helios.cli.servers",
    "down": "helios.cli.servers",
    "status": "helios.cli.servers",
    "upgrade": "helios.cli.database",
    "downgrade": "helios.cli.database",
    "grants": "helios.cli.database",
    "environment": "helios.cli.database",
    "klines": "helios.cli.klines",
    "price": "helios.cli.price",
    "quality": "helios.cli.quality",
    "retain": "helios.cli.retain",
    "mirror": "helios.cli.mirror",
    "sweep": "helios.cli.leftovers",
    "orphans": "helios.cli.leftovers",
    "adopt": "helios.cli.adopt",
    "doctor": "helios.cli.doctor",
}


class Commands(click.Group):
    """A group that knows its commands by name and imports them on demand."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """List the commands in the order of their use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """Import a command."""
        if cmd_name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(COMMANDS[cmd_name]), cmd_name)
        return command if isinstance(command, click.Command) else None


@click.group(cls=Commands, epilog="Example: helios up && helios upgrade && helios klines load BTCUSDT-1m-2025-01.zip")
@click.version_option(package_name="helios")
@click.option("-v", "--verbose", is_flag=True, help="Tell more on stderr, such as each statement on roles and grants.")
def helios(*, verbose: bool) -> None:
    """Helios, the data layer of a trading system: its PostgreSQL schema, its klines, its servers for development.

    Settings come from the environment or a .env file; .env.example lists them.
    """
    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.WARNING)
    logging.getLogger("helios").setLevel(logging.DEBUG if verbose else logging.INFO)


def main() -> NoReturn:
    """Run the command; a failure is one sentence on stderr, with exit status 1, or 2 where the input was wrong."""
    try:
        status = helios.main(standalone_mode=False)
    except HeliosError as error:
        click.echo(f"helios: {error}", err=True)
        sys.exit(error.exit_status)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("helios: interrupted", err=True)
        sys.exit(130)
    except Exception as error:
        if logging.getLogger("helios").isEnabledFor(logging.DEBUG):
            raise
        # A library said this, not Helios; its first line is what a person can act on.
        said = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
        click.echo(f"helios: {said or type(error).__name__} ({type(error).__name__}; helios -v shows where)", err=True)
        sys.exit(1)
    sys.exit(status if isinstance(status, int) else 0)
