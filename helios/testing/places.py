"""Where the rows of a statement are: the queries that find what it will write, or has written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import (
    CTE,
    BindParameter,
    ColumnElement,
    Constraint,
    Delete,
    Insert,
    Select,
    Update,
    and_,
    false,
    literal,
    literal_column,
    or_,
    select,
    true,
    tuple_,
)
from sqlalchemy.dialects.postgresql.dml import OnConflictDoNothing, OnConflictDoUpdate
from sqlalchemy.sql import visitors
from sqlalchemy.sql.expression import ColumnClause

from helios.errors import HeliosError

AT_ONCE = 500  # keys in a query
AsIs = OnConflictDoNothing | None

Values = Mapping[str, Any]


def kept(table: Any, criterion: ColumnElement[bool], call: str, *, lock: str = "") -> Select[Any]:  # noqa: ANN401 - a Table, typed as less
    """Hand the places of rows to a function of the log, as the last of a call.

    What is to be updated (U) or deleted (D) is locked, and no more than by the statement itself.

    Raises:
        HeliosError: looking for the rows would write.

    """
    if any(
        isinstance(each, CTE) and isinstance(each.element, Insert | Update | Delete)
        for each in visitors.iterate(criterion)
    ):
        raise HeliosError(
            f"a write to {table.fullname} finds its rows by another write, a CTE, which would be done twice to keep "
            "them as they were before: write one after the other"
        )
    part = ColumnClause[Any]("tableoid", _selectable=table).label("helios_part")
    place = ColumnClause[Any]("ctid", _selectable=table).label("helios_place")
    found = select(part, place).select_from(table).where(criterion)
    locked = found.with_for_update(of=table, key_share=lock == "U") if lock else found
    rows = locked.subquery("helios_rows")
    places = "coalesce(array_agg(helios_part), '{}'), coalesce(array_agg(helios_place), '{}')"
    return select(literal_column(f"{call}, {places})")).select_from(rows)


def matching(statement: Update | Delete) -> ColumnElement[bool]:
    """Say which rows an UPDATE or DELETE will find."""
    return statement.whereclause if statement.whereclause is not None else true()


def inserted(table: Any, keys: Iterable[Any]) -> Iterator[ColumnElement[bool]]:  # noqa: ANN401 - as above
    """Say by their keys which rows an INSERT has made, as far as it knows them."""
    columns = list(table.primary_key)
    known = [tuple(key) for key in keys if key is not None and all(each is not None for each in key)]
    for first in range(0, len(known) if columns else 0, AT_ONCE):
        yield tuple_(*columns).in_(known[first : first + AT_ONCE])


def conflicting(statement: Insert, parameters: Sequence[Values]) -> Iterator[tuple[ColumnElement[bool], Values]]:
    """Say which rows an upsert will find, and so update; the values stand in the criteria.

    Raises:
        HeliosError: it cannot be told; the message says how to write the statement.

    """
    clause = statement._post_values_clause  # noqa: SLF001 - SQLAlchemy tells it nowhere else
    if not isinstance(clause, OnConflictDoUpdate):
        return
    columns = conflict_columns(statement, clause)
    rows = [row for each in parameters for row in proposed(statement, each)]
    for first in range(0, len(rows), AT_ONCE):
        some = rows[first : first + AT_ONCE]
        yield or_(false(), *(and_(*(each == row[each.key] for each in columns)) for row in some)), {}


def conflict_columns(statement: Insert, clause: OnConflictDoUpdate) -> list[Any]:
    """Find the columns whose values decide between INSERT and UPDATE."""
    table: Any = statement.table
    named: Iterable[Any] = clause.inferred_target_elements or ()
    if isinstance(clause.constraint_target, Constraint):
        named = clause.constraint_target.columns
    elif clause.constraint_target is not None:
        constraints = getattr(table, "constraints", ())
        named = next((each.columns for each in constraints if each.name == clause.constraint_target), ())
    names = {each.name: each for each in table.columns}
    columns = [names.get(each.name if isinstance(each, ColumnClause) else each) for each in named]
    if not columns or any(each is None for each in columns):
        raise HeliosError(
            f"an upsert into {table.fullname} names no columns by which rows conflict, so the rows that it updates "
            "could not be undone: name them as index_elements"
        )
    return columns


def proposed(statement: Insert, parameters: Values) -> Iterator[dict[str, Any]]:
    """Give the values of each row that an INSERT proposes.

    Raises:
        HeliosError: they come from a query.

    """
    table: Any = statement.table
    lists = statement._multi_values  # noqa: SLF001 - as above
    rows: list[Any] = [row for each in lists for row in each] or [statement._values or {}]  # noqa: SLF001
    if statement.select is not None:
        raise HeliosError(
            f"an upsert into {table.fullname} takes its rows from a query, so those that it updates could not be "
            "undone: read the rows first, and hand them over as values"
        )
    for row in rows:
        pairs = row.items() if isinstance(row, Mapping) else zip(table.columns, row, strict=False)
        values = {str(getattr(key, "key", key)): filled(value, parameters) for key, value in pairs}
        yield Proposed(table.fullname, values | dict(parameters))


def filled(value: Any, parameters: Values) -> Any:  # noqa: ANN401 - a value, or an expression
    """Put the parameters of a statement into an expression."""

    def given(element: Any, **_: Any) -> Any:  # noqa: ANN401 - SQLAlchemy's
        known = isinstance(element, BindParameter) and element.key in parameters
        return literal(parameters[element.key], element.type) if known else None

    return visitors.replacement_traverse(value, {}, given) if isinstance(value, ColumnElement) else value


class Proposed(dict[str, Any]):
    """The values of a row; one that is not there is named when it is asked for."""

    def __init__(self, table: str, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.table = table

    def __missing__(self, key: str) -> Any:  # noqa: ANN401 - never given
        """Name the column that is not there."""
        raise HeliosError(
            f"an upsert into {self.table} leaves out {key!r}, by which rows conflict, so those that it updates could "
            "not be undone: give its value"
        )
