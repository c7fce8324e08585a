"""Write the table of the README's commands from what `--help` says; `--write` puts it into the README.

Example: python scripts/command_table.py --write
"""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import click

from helios.cli import helios

README = Path(__file__).parent.parent / "README.md"
HEAD = "| command | what it does | options |\n|---|---|---|\n"
BLOCK = re.compile(rf"{re.escape(HEAD)}(?:\|.*\n)*")


def table() -> str:
    """Write a row for each command, in the order of their use."""
    return HEAD + "".join(f"{row}\n" for row in rows(helios, click.Context(helios, info_name="helios")))


def rows(command: click.Command, context: click.Context) -> Iterator[str]:
    """Write the row of a command, then those below it; a group that does nothing by itself has none."""
    if not isinstance(command, click.Group) or command.invoke_without_command:
        yield f"| `{called(command, context)}` | {told(command)} | {options(command)} |"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            if below is not None:
                yield from rows(below, click.Context(below, info_name=name, parent=context))


def called(command: click.Command, context: click.Context) -> str:
    """Write how a command is called, with its arguments."""
    arguments = [argument(each, context) for each in command.params if isinstance(each, click.Argument)]
    return " ".join([context.command_path, *arguments])


def argument(each: click.Argument, context: click.Context) -> str:
    """Write an argument; one that is a choice bears its name, for the choices of an interval fill a line."""
    if not isinstance(each.type, click.Choice):
        return each.make_metavar(context)
    name = str(each.name).upper()
    return name if each.required else f"[{name}]"


def told(command: click.Command) -> str:
    """Take the first paragraph of a command's help."""
    paragraph = (command.help or "").strip().partition("\n\n")[0]
    return " ".join(paragraph.split()).replace("|", r"\|")


def options(command: click.Command) -> str:
    """Name a command's options."""
    names = [each.opts[-1] for each in command.params if isinstance(each, click.Option)]
    return ", ".join(f"`{each}`" for each in names)


def main() -> None:
    """Print the table, or put it in the place of the one in the README."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put it into the README")
    if not parser.parse_args().write:
        print(table(), end="")
        return
    written, count = BLOCK.subn(lambda _: table(), README.read_text())
    if count != 1:
        parser.error("the README holds no table of commands, or several")
    README.write_text(written)


if __name__ == "__main__":
    main()
