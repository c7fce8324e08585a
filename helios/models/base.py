"""What every table shares: the metadata with its naming rules, exact numbers, moments in UTC, choices, and the repr."""

import uuid
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import Annotated, Any, cast

import uuid_utils.compat
from sqlalchemy import (
    CheckConstraint,
    DateTime,
    Dialect,
    MetaData,
    Numeric,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    inspect,
)
from sqlalchemy import Identity as GeneratedNumber
from sqlalchemy.orm import DeclarativeBase, InstanceState, mapped_column
from sqlalchemy.types import TypeDecorator

from helios.errors import InputError
from helios.settings import Settings

metadata = MetaData(
    schema=Settings.from_environment().database_schema,
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",  # the short name says what the constraint holds
    },
)


class Exact(TypeDecorator[Decimal]):
    """A number as it was written: `numeric` without precision or scale, so nothing is ever rounded."""

    impl = Numeric
    cache_ok = True

    def process_bind_param(self, value: Any | None, dialect: Dialect) -> Decimal | None:  # noqa: ANN401, ARG002 - SQLAlchemy's signature
        """Take a Decimal, an int or a str; refuse a float, which has lost digits before it came here."""
        if value is None or isinstance(value, Decimal):
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            return Decimal(value)
        if isinstance(value, str):
            try:
                return Decimal(value)
            except InvalidOperation:
                raise InputError(f"{value!r} is not a number: write it like '0.00000123'") from None
        raise InputError(f"{value!r} is a {type(value).__name__}, which is not exact: pass a Decimal, an int or a str")


class UtcMoment(TypeDecorator[datetime]):
    """A moment: `timestamptz`, handed over with its time zone and given back in UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: Any | None, dialect: Dialect) -> datetime | None:  # noqa: ANN401, ARG002 - SQLAlchemy's signature
        """Refuse a moment without a time zone: the server would take it for the session's."""
        if value is None:
            return None
        if not isinstance(value, datetime):
            raise InputError(f"{value!r} is not a moment: pass a datetime with its time zone")
        if value.utcoffset() is None:
            raise InputError(f"{value!r} has no time zone: pass tzinfo=UTC, or the zone it was read in")
        return value

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], datetime | None]:  # noqa: ARG002 - SQLAlchemy's signature
        """Turn the session's time zone into UTC: one call for each value, where process_result_value takes two."""

        def in_utc(value: datetime | None) -> datetime | None:
            return value if value is None or value.tzinfo is UTC else value.astimezone(UTC)

        return in_utc


class Choice(TypeDecorator[StrEnum]):
    """One value of a StrEnum, stored as `text`; Base adds a CHECK of the column's name.

    Not a PostgreSQL ENUM: its type would be made in `public`, whatever schema the metadata names, and stay there.
    """

    impl = Text
    cache_ok = True

    def __init__(self, choices: type[StrEnum]) -> None:
        super().__init__()
        self.choices = choices

    def process_bind_param(self, value: Any | None, dialect: Dialect) -> str | None:  # noqa: ANN401, ARG002 - SQLAlchemy's signature
        """Take a member or its text; refuse what is neither."""
        if value is None:
            return None
        try:
            return self.choices(value).value
        except ValueError:
            known = ", ".join(self.choices)
            raise InputError(f"{value!r} is not a {self.choices.__name__}: choose one of {known}") from None

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], StrEnum | None]:  # noqa: ARG002 - SQLAlchemy's signature
        """Give the member back: by a look into a dict, which costs a tenth of asking the enumeration."""
        return {member.value: member for member in self.choices}.get


def one_of(column: str, choices: Iterable[str]) -> str:
    """Say in SQL that the column holds one of these texts."""
    texts = "', '".join(choices)
    return f"{column} IN ('{texts}')"


def positive(*columns: str) -> str:
    """Say in SQL that the columns are above zero and finite; `> 0` alone lets NaN pass, which sorts above all."""
    return " AND ".join(f"{column} > 0 AND {column} < 'Infinity'" for column in columns)


def not_negative(*columns: str) -> str:
    """Say in SQL that the columns are zero or above, and finite."""
    return " AND ".join(f"{column} >= 0 AND {column} < 'Infinity'" for column in columns)


def finite(*columns: str) -> str:
    """Say in SQL that the columns are numbers of any sign: neither NaN nor an infinity."""
    return " AND ".join(f"{column} > '-Infinity' AND {column} < 'Infinity'" for column in columns)


def share(*columns: str) -> str:
    """Say in SQL that the columns are between 0 and 1."""
    return " AND ".join(f"{column} BETWEEN 0 AND 1" for column in columns)


def not_blank(*columns: str) -> str:
    """Say in SQL that the texts hold more than white space."""
    return " AND ".join(f"{column} ~ '\\S'" for column in columns)


# What a column holds, to be read as a word: `last_price: Mapped[Price]`.
Price = Annotated[Decimal, mapped_column(Exact)]
Quantity = Annotated[Decimal, mapped_column(Exact)]
Money = Annotated[Decimal, mapped_column(Exact)]
Ratio = Annotated[Decimal, mapped_column(Exact)]
Moment = Annotated[datetime, mapped_column(UtcMoment)]
Recorded = Annotated[
    datetime,
    mapped_column(UtcMoment, server_default=func.now(), comment="When the row was first written here"),
]
Refreshed = Annotated[
    datetime,
    mapped_column(
        UtcMoment,
        server_default=func.now(),
        onupdate=func.now(),
        comment="When the row was last written here; ORM and Core set it by themselves, raw SQL sets it",
    ),
]
NumberedId = Annotated[int, mapped_column(GeneratedNumber(always=True), primary_key=True)]
TimeOrderedId = Annotated[
    uuid.UUID,
    mapped_column(Uuid, primary_key=True, default=uuid_utils.compat.uuid7),
]


class Base(DeclarativeBase):
    """The base of all models; in an instance's repr stands what identifies it, as far as it is loaded."""

    metadata = metadata
    type_annotation_map = {str: Text(), Decimal: Exact(), datetime: UtcMoment()}  # noqa: RUF012 - SQLAlchemy's form
    # What the server fills in comes back with the statement itself, so that no attribute needs a second
    # statement later, which an async session could not send.
    __mapper_args__ = {"eager_defaults": True}  # noqa: RUF012 - SQLAlchemy's form

    def __init_subclass__(cls, **options: Any) -> None:  # noqa: ANN401 - DeclarativeBase's signature
        """Add the CHECK of each choice: to the table, because Alembic overlooks a column's own."""
        super().__init_subclass__(**options)
        table = cast("Table", cls.__table__)
        for column in table.columns:
            if isinstance(column.type, Choice):
                table.append_constraint(CheckConstraint(one_of(column.name, column.type.choices), name=column.name))

    def __repr__(self) -> str:
        """Show the identifying columns without any SQL, also when the instance is detached or expired."""
        state: InstanceState[Any] = inspect(self)
        known = dict(state.dict)
        if state.identity is not None:
            known |= dict(zip((column.name for column in state.mapper.primary_key), state.identity, strict=True))
        shown = (f"{name}={known[name]!r}" for name in self._identifying(state) if name in known)
        return f"{type(self).__name__}({', '.join(shown)})"

    @staticmethod
    def _identifying(state: InstanceState[Any]) -> list[str]:
        """Name the columns of the primary key and of the unique constraints, in the table's order."""
        table = cast("Table", state.mapper.local_table)
        keys = [each for each in table.constraints if isinstance(each, PrimaryKeyConstraint | UniqueConstraint)]
        return [column.name for column in table.columns if any(column.name in key.columns for key in keys)]
