"""How SQL names tables and functions: with their schema, and quoted where PostgreSQL wants it."""

from typing import Any

from sqlalchemy import Table
from sqlalchemy.dialects import postgresql

PREPARER = postgresql.dialect().identifier_preparer  # type: ignore[no-untyped-call]  # SQLAlchemy's own


def quoted(name: str) -> str:
    """Write a name that stands alone."""
    return PREPARER.quote(name)


def table_name(table: Any) -> str:  # noqa: ANN401 - a declarative class's __table__ is typed as FromClause
    """Write the name of a table."""
    if not isinstance(table, Table):
        raise TypeError(f"{table!r} is not a table")
    return PREPARER.format_table(table)


def function_name(schema: str | None, name: str) -> str:
    """Write the name of a function that the revisions made.

    SQLAlchemy's `func` cannot: it quotes no word of SQL, and takes underscores at a schema's ends for its own.
    """
    return f"{quoted(str(schema))}.{name}"
