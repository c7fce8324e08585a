"""Draw the tables and what refers to what, from the models, as a Mermaid diagram; `--write` puts it into the README.

Example: python scripts/entity_diagram.py --write
"""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import Column, Table, UniqueConstraint
from sqlalchemy.dialects import postgresql

from helios.models import Base, metadata

README = Path(__file__).parent.parent / "README.md"
BLOCK = re.compile(r"```mermaid\nerDiagram\n.*?```", flags=re.DOTALL)
TYPES = {"TIMESTAMP WITH TIME ZONE": "timestamptz"}


def diagram() -> str:
    """Write the diagram: each table with the columns that identify it or refer to others, and a line a reference.

    Tables that only Helios itself reads, its bookkeeping, are left out.
    """
    drawn = [table for table in metadata.tables.values() if not table.info.get("bookkeeping")]
    tables = sorted(drawn, key=lambda table: table.name)
    lines = [*(line for table in tables for line in references(table)), *sorted(references_without_key())]
    for table in tables:
        lines += [f"{table.name} {{", *(f"    {row}" for row in keys(table)), "}"]
    body = "".join(f"    {line}\n" for line in lines)
    return f"```mermaid\nerDiagram\n{body}```"


def references(table: Table) -> Iterator[str]:
    """Write a line for each foreign key of a table."""
    for column in table.columns:
        for key in column.foreign_keys:
            parent = "|o" if column.nullable else "||"
            child = "o|" if is_alone_unique(table, column) else "o{"
            yield f"{key.column.table.name} {parent}--{child} {table.name} : {column.name}"


def references_without_key() -> Iterator[str]:
    """Write a dotted line for each reference that the models know and no foreign key holds."""
    for mapper in Base.registry.mappers:
        for relationship in mapper.relationships:
            for parent, child in relationship.local_remote_pairs:
                if relationship.viewonly and not child.references(parent) and not parent.references(child):
                    yield f"{relationship.target.name} ||..o{{ {mapper.local_table.name} : {parent.name}"


def keys(table: Table) -> Iterator[str]:
    """Write the columns of a table that are part of a key, each with its type."""
    for column in table.columns:
        marks = [
            mark
            for mark, holds in (
                ("PK", column.primary_key),
                ("FK", bool(column.foreign_keys)),
                ("UK", any(column.name in each.columns for each in unique_keys(table))),
            )
            if holds
        ]
        if marks:
            written = column.type.compile(postgresql.dialect())
            yield f"{TYPES.get(written, written.lower())} {column.name} {', '.join(marks)}"


def unique_keys(table: Table) -> list[UniqueConstraint]:
    """List the unique constraints of a table."""
    return [each for each in table.constraints if isinstance(each, UniqueConstraint)]


def is_alone_unique(table: Table, column: Column[object]) -> bool:
    """Say whether a value of the column stands in one row only."""
    return [column] == list(table.primary_key) or any([column] == list(each.columns) for each in unique_keys(table))


def main() -> None:
    """Print the diagram, or put it in the place of the one in the README."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put it into the README")
    if not parser.parse_args().write:
        print(diagram())
        return
    written, count = BLOCK.subn(lambda _: diagram(), README.read_text())
    if count != 1:
        parser.error("the README holds no block that begins with ```mermaid and erDiagram, or several")
    README.write_text(written)


if __name__ == "__main__":
    main()
