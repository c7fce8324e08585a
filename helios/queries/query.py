"""One statement with its parameters, and the forms its answer is read in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from sqlalchemy import Connection, Row, Select, Table, TextualSelect, select
from sqlalchemy.orm import Session

from helios.errors import InputError
from helios.layout import distributed
from helios.models import Base, Interval, metadata
from helios.queries import frames

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow as pa

Reader = Session | Connection
Rows = Sequence[Row[*tuple[Any, ...]]]
Model = TypeVar("Model", bound=Base)


@dataclass(frozen=True, eq=False)
class Query(Generic[Model]):
    """A question: read it with a session or a connection, asynchronously by `await session.run_sync(query.rows)`.

    Moments are in UTC, numbers exact: rows and objects hold Decimal, pandas columns of Decimal; Arrow and polars
    columns of 38 digits, 18 of them behind the point, or, where a value has more, the whole column as text.

    `of_shards` is the statement where klines are shards of Citus, which does not plan every statement.
    `turned` says that the statement answers in the opposite order: turning it round here costs less than a sort there.
    """

    statement: Select[Any]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    model: type[Model] | None = None
    turned: bool = False
    of_shards: TextualSelect | None = None

    def rows(self, reader: Reader) -> Rows:
        """Read named tuples: the quickest form, because no object is made and no session remembers them."""
        found = reader.execute(self.asked(reader), self.parameters).all()
        return found[::-1] if self.turned else found

    def objects(self, session: Session) -> Sequence[Model]:
        """Read objects of the model, which the session follows.

        Raises:
            InputError: the answer is no rows of one table, such as gaps.

        """
        if self.model is None:
            raise InputError(f"the columns {', '.join(self.columns)} are no model's: read them as rows")
        found = session.scalars(select(self.model).from_statement(self.asked(session)), self.parameters).all()
        return found[::-1] if self.turned else found

    def asked(self, reader: Reader) -> Select[Any] | TextualSelect:
        """Choose the statement; where there are two, the reader tells by which klines are read."""
        if self.of_shards is not None and distributed(reader, str(metadata.schema)):
            return self.of_shards
        return self.statement

    def arrow(self, reader: Reader) -> "pa.Table":
        """Read an Arrow table; needs pyarrow."""
        return frames.arrow(self.columns, self.rows(reader))

    def polars(self, reader: Reader) -> "pl.DataFrame":
        """Read a polars DataFrame; needs polars."""
        return frames.polars(self.columns, self.rows(reader))

    def pandas(self, reader: Reader) -> "pd.DataFrame":
        """Read a pandas DataFrame; needs pandas. `frame.astype({"close": float})` makes a column quick and inexact."""
        return frames.pandas(self.columns, self.rows(reader))

    @property
    def columns(self) -> dict[str, type]:
        """The names of the answer's columns, and the Python type of each one's values."""
        return {str(column.key): frames.python_type(column.type) for column in self.statement.selected_columns}


def table_of(model: type[Base]) -> Table:
    """Give a model's table: its columns make statements that the ORM does not look into, which spares time."""
    return cast("Table", model.__table__)


def known_interval(value: str) -> Interval:
    """Take an interval or its text.

    Raises:
        InputError: there is none of that name.

    """
    try:
        return Interval(value)
    except ValueError:
        raise InputError(f"{value!r} is not an interval: choose one of {', '.join(Interval)}") from None


def moments(**values: datetime | None) -> dict[str, datetime]:
    """Keep the moments that are told.

    Raises:
        InputError: one has no time zone.

    """
    told = {name: value for name, value in values.items() if value is not None}
    for name, value in told.items():
        if value.utcoffset() is None:
            raise InputError(f"{name}={value!r} has no time zone: pass tzinfo=UTC, or the zone it was read in")
    return told
