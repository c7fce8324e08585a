"""What the feed's statements share: rows bound as arrays, so that their text stays the same for any number of rows."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, cast

from sqlalchemy import Connection, CursorResult, text
from sqlalchemy.orm import Session

Writer = Session | Connection


def execute(writer: Writer, statement: str, binds: Mapping[str, Any]) -> int:
    """Run a statement; how many rows it wrote."""
    result = cast("CursorResult[Any]", writer.execute(text(statement), binds))
    return result.rowcount


def unnested(types: Mapping[str, str]) -> str:
    """Write the rows that `columns_of` binds, as a table expression."""
    arrays = ", ".join(f"CAST(:{name} AS {kind}[])" for name, kind in types.items())
    return f"unnest({arrays})"


def columns_of(rows: Sequence[Mapping[str, Any]], types: Mapping[str, str]) -> dict[str, list[Any]]:
    """Turn rows into a list for each column."""
    return {name: [plain(row[name]) for row in rows] for name in types}


def plain(value: Any) -> Any:  # noqa: ANN401 - whatever a column holds
    """Turn a choice into its text: drivers differ in how they write an enumeration."""
    return value.value if isinstance(value, StrEnum) else value
