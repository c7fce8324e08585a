"""Answers as tables of pandas, polars and Arrow: nothing is rounded, and moments are in UTC.

None of the three is a dependency of Helios; whoever asks for one has it installed.
"""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from importlib import import_module
from typing import TYPE_CHECKING, Any

from sqlalchemy.types import TypeDecorator, TypeEngine

from helios.errors import HeliosError

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow as pa

# The widest decimal that Arrow and polars both compute with; one type for all columns, so that the tables of several
# series can be put together. 20 digits before the point hold every price and volume of the exchanges.
PRECISION, SCALE = 38, 18

Columns = Mapping[str, type]
Values = Iterable[Sequence[Any]]


def python_type(of: TypeEngine[Any]) -> type:
    """Tell the Python type of a column's values: Decimal, datetime, int, str ..."""
    kind: type = (of.impl_instance if isinstance(of, TypeDecorator) else of).python_type
    return kind


def arrow(columns: Columns, rows: Values) -> "pa.Table":
    """Make an Arrow table: decimal128(38, 18), timestamp[us, UTC], int64, bool, string.

    Raises:
        HeliosError: pyarrow is not installed.

    """
    pyarrow = library("pyarrow", "an Arrow table")
    types = {
        Decimal: pyarrow.decimal128(PRECISION, SCALE),
        datetime: pyarrow.timestamp("us", "UTC"),
        timedelta: pyarrow.duration("us"),
        int: pyarrow.int64(),
        bool: pyarrow.bool_(),
    }
    data = dict(filled(columns, rows))
    return pyarrow.table(
        {name: pyarrow.array(values, types.get(kind, pyarrow.string())) for name, (kind, values) in data.items()}
    )


def polars(columns: Columns, rows: Values) -> "pl.DataFrame":
    """Make a polars DataFrame: Decimal(38, 18), Datetime[us, UTC], Int64, Boolean, String.

    Raises:
        HeliosError: polars is not installed.

    """
    library_ = library("polars", "a polars DataFrame")
    types = {
        Decimal: library_.Decimal(PRECISION, SCALE),
        datetime: library_.Datetime("us", "UTC"),
        timedelta: library_.Duration("us"),
        int: library_.Int64(),
        bool: library_.Boolean(),
    }
    data = dict(filled(columns, rows))
    series = [
        library_.Series(name, values, dtype=types.get(kind, library_.String())) for name, (kind, values) in data.items()
    ]
    frame: pl.DataFrame = library_.DataFrame(series)
    return frame


def pandas(columns: Columns, rows: Values) -> "pd.DataFrame":
    """Make a pandas DataFrame: Decimal as objects, datetime64[us, UTC], Int64, boolean, string.

    Raises:
        HeliosError: pandas is not installed.

    """
    library_ = library("pandas", "a pandas DataFrame")
    types = {
        Decimal: "object",
        datetime: "datetime64[us, UTC]",
        timedelta: "timedelta64[us]",
        int: "Int64",
        bool: "boolean",
    }
    data = dict(filled(columns, rows, as_objects=True))
    return library_.DataFrame(
        {name: library_.Series(values, dtype=types.get(kind, "string")) for name, (kind, values) in data.items()}
    )


def filled(columns: Columns, rows: Values, *, as_objects: bool = False) -> Iterable[tuple[str, tuple[type, list[Any]]]]:
    """Turn rows into columns of values that the libraries take: choices and ids as text, as are decimals too long."""
    turned = list(zip(*rows, strict=True)) or [()] * len(columns)
    for (name, kind), values in zip(columns.items(), turned, strict=True):
        if kind is Decimal and not as_objects and not all(each is None or fits(each) for each in values):
            yield name, (str, [None if each is None else f"{each:f}" for each in values])
        elif kind in (str, uuid.UUID):
            yield name, (str, [None if each is None else str(each) for each in values])
        else:
            yield name, (kind, list(values))


def fits(value: Decimal) -> bool:
    """Tell whether a number has no more digits than the columns hold, on either side of the point."""
    _, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int):
        return False  # NaN and the infinities
    spare = next((at for at, digit in enumerate(reversed(digits)) if digit), 0)  # zeros at the end say nothing
    return exponent + spare >= -SCALE and value.adjusted() < PRECISION - SCALE


def library(name: str, what: str) -> Any:  # noqa: ANN401 - a module that may be absent
    """Import a library that Helios does not depend on.

    Raises:
        HeliosError: it is not installed.

    """
    try:
        return import_module(name)
    except ImportError as error:
        if error.name != name:
            raise
        raise HeliosError(f"{what} needs {name}, which is not installed: pip install {name}") from None
