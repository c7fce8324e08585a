"""The ancestor's rows as Helios's, in SQL: each value read exactly, each row judged before anything is written."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from sqlalchemy import BigInteger, CheckConstraint, Integer, Table, Text, Uuid
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import JSONB

from helios.adopting.ancestor import Column, Heir, Kind
from helios.adopting.source import Found, Source, quoted
from helios.errors import InputError
from helios.models import Account, Instrument, metadata
from helios.models.base import Choice, Exact, UtcMoment
from helios.names import table_name
from helios.queries.query import table_of

DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy's own dialects are untyped
ALL = {"first": "(0,0)", "last": "(4294967295,0)"}  # the places of all rows of a table
NUMBERS = ("int2", "int4", "int8", "numeric")
FLOATS = ("float4", "float8")
TEXTS = ("text", "varchar", "bpchar", "uuid", "name", "citext")
NUMBER = r"'^\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d{1,3})?\s*$'"
UUID = "'^[0-9a-fA-F]{8}(-?[0-9a-fA-F]{4}){3}-?[0-9a-fA-F]{12}$'"
KINDS: tuple[tuple[type, Kind], ...] = (
    (Exact, Kind.NUMBER),
    (Integer, Kind.WHOLE),
    (UtcMoment, Kind.MOMENT),
    (Choice, Kind.CHOICE),
    (Uuid, Kind.ID),
    (JSONB, Kind.JSON),
    (Text, Kind.TEXT),
)


@dataclass(frozen=True, kw_only=True)
class Mapping:
    """How the rows of one table become rows of a model.

    Raises:
        InputError: a column is of a type from which its value cannot be read.

    """

    found: Found
    heir: Heir
    source: Source
    reasons: tuple[tuple[str, str], ...] = ()  # conditions of the moment, and why they refuse a row

    def __post_init__(self) -> None:
        """Write each value once: a column that cannot be read is known before anything is copied."""
        for name in self.names:
            self.value(name)

    @property
    def table(self) -> Table:
        """The table that takes the rows."""
        return table_of(self.heir.model)

    @property
    def copied(self) -> list[str]:
        """The columns of the model that are written, but for its references to instrument and account."""
        values = [*self.heir.columns, *self.heir.derived]
        return [name for name in values if name in self.table.columns and self.is_told(name)]

    def is_told(self, name: str) -> bool:
        """Say whether the table tells a value, or something stands in for it."""
        column = self.heir.columns.get(name)
        return column is None or self.found.named(name) is not None or column.otherwise is not None

    @property
    def judged(self) -> str:
        """Write the query of the rows, in which each has `reason`: why it cannot be adopted, or NULL.

        It is bounded by :first and :last, the places of rows in the ancestor's table.
        """
        return f"""
            SELECT d.*, CASE {" ".join(self.verdicts())} END AS reason FROM (
                SELECT r.*{"".join(f', {sql} AS "{name}"' for name, sql in self.heir.derived.items())}
                FROM ({self.read}) AS r
            ) AS d
        """

    @property
    def read(self) -> str:
        """Write the query that reads values, under the names they have here."""
        values = [f'{self.value(name)} AS "{name}"' for name in self.names]
        values += [f's.{quoted(self.column(name))} IS NOT NULL AS "told {name}"' for name in self.told]
        newest = ""
        if "open_time" in self.heir.columns:
            values.append("series.newest")
            newest = f"""
                LEFT JOIN unnest(CAST(:symbols AS text[]), CAST(:newest AS timestamptz[])) AS series (symbol, newest)
                    ON series.symbol = {self.value("symbol")}
            """
        return f"""
            SELECT s.tableoid AS part, s.ctid AS place, to_jsonb(s) AS raw, {", ".join(values)}
            FROM {quoted(self.source.schema)}.{quoted(self.found.name)} AS s {newest}
            WHERE s.ctid >= CAST(:first AS tid) AND s.ctid < CAST(:last AS tid)
        """

    @property
    def names(self) -> list[str]:
        """All the values that are read, and the columns of the model that nothing tells, which are NULL."""
        made = {*self.heir.columns, *self.heir.derived, "instrument_id", "account_id"}
        return [*self.heir.columns, *(each.name for each in self.table.columns if each.name not in made)]

    @property
    def told(self) -> list[str]:
        """The values that may be there and yet make no sense."""
        return [name for name in self.heir.columns if self.found.named(name) is not None]

    def column(self, name: str) -> str:
        """Name the column that tells a value."""
        return cast("str", self.found.named(name))

    def value(self, name: str) -> str:
        """Write the expression that reads one value; NULL where it is none."""
        column = self.heir.columns.get(name, Column(names=()))
        kind = column.kind or kind_of(self.table, name)
        if name not in self.heir.columns or self.found.named(name) is None:
            return column.otherwise or f"CAST(NULL AS {sql_type(kind)})"
        type_name = self.found.types[self.column(name)]
        told = f"s.{quoted(self.column(name))}"
        expression = reading(kind, type_name, told)
        if kind is Kind.CHOICE:
            expression = choosing(self.table, name, column, told)
        if expression is None:
            raise InputError(
                f"column {self.column(name)} of {self.source.schema}.{self.found.name} is {type_name}, "
                f"from which no {kind.value} can be read: convert it in a view of your own, or rename the table"
            )
        return f"coalesce({expression}, {column.otherwise})" if column.otherwise else expression

    def verdicts(self) -> Iterator[str]:
        """Write the conditions under which a row is refused, the first that holds tells why."""
        yield from self.senseless()
        for name in self.heir.needed:
            yield f"WHEN \"{name}\" IS NULL THEN '{name} is missing'"
        for refusal in self.heir.refusals:
            yield f"WHEN {refusal.when} THEN {literal(refusal.why)}"
        for when, why in self.reasons:
            yield f"WHEN {when} THEN {literal(why)}"
        yield from self.unfit()

    def senseless(self) -> Iterator[str]:
        """Write when a value is there, and yet makes no sense; what is read without a choice of cases always does."""
        for name in self.told:
            column = self.heir.columns[name]
            if column.otherwise is not None or "CASE" not in self.value(name):
                continue
            kind = column.kind or kind_of(self.table, name)
            why = f"'{name} is no {kind.value}'"
            if kind is Kind.CHOICE:
                told = f"left(raw ->> {literal(self.column(name))}, 40)"
                why = f"'{name} is none that Helios knows\\: ' || {told}"
            yield f'WHEN "told {name}" AND "{name}" IS NULL THEN {why}'

    def unfit(self) -> Iterator[str]:
        """Write what the model's own table would refuse: what is missing, does not fit, or breaks a CHECK."""
        for name in self.copied:
            column = self.table.columns[name]
            if not column.nullable and name not in self.heir.needed:
                yield f"WHEN \"{name}\" IS NULL THEN '{name} is missing'"
            if isinstance(column.type, Integer):
                bits = 63 if isinstance(column.type, BigInteger) else 31
                fits = f"{name} = trunc({name}) AND {name} BETWEEN {-(2**bits)} AND {2**bits - 1}"
                yield f"WHEN NOT ({fits}) THEN '{name} is no whole number below 2^{bits}'"
        for check in self.table.constraints:
            if isinstance(check, CheckConstraint) and isinstance(check.name, str):
                short = check.name.removeprefix(f"ck_{self.table.name}_").replace("_", " ")
                yield f"WHEN NOT ({check.sqltext}) THEN {literal(f'it breaks the rule: {short}')}"

    @property
    def referred(self) -> str:
        """Write the joins of a judged row `j` with its instrument `i` and its account `a`."""
        symbol = "j.symbol" if "symbol" in self.heir.columns else "NULL"
        return f"""
            LEFT JOIN {table_name(Instrument.__table__)} AS i
                ON i.exchange = :exchange AND i.market = :market AND i.symbol = {symbol}
            LEFT JOIN {table_name(Account.__table__)} AS a ON a.exchange = :exchange AND a.name = :account
        """

    @property
    def known(self) -> str:
        """Write the join of such a row with what is there of it, `k`."""
        names = {table.name: table_name(table) for table in metadata.tables.values()}
        return f"LEFT JOIN {self.heir.joined.format(**names)}"

    @property
    def references(self) -> dict[str, str]:
        """The references that the model has, and the joined row they come from."""
        return {
            name: sql
            for name, sql in (("instrument_id", "i.id"), ("account_id", "a.id"))
            if name in self.table.columns and "symbol" in self.heir.columns
        }

    @property
    def key(self) -> str:
        """Name a column of what is there that is never NULL, so that NULL says it is not there."""
        return f"k.{next(iter(self.table.primary_key)).name}"

    def typed(self, name: str) -> str:
        """Write a value of a judged row in the type of the model's column."""
        return f'CAST(j."{name}" AS {self.table.columns[name].type.compile(DIALECT)})'


def reading(kind: Kind, type_name: str, told: str) -> str | None:
    """Write how a value of a kind is read from a column of a type; None where it cannot be.

    A double is read by its shortest text, which is what people wrote; a moment without a zone is taken as UTC.
    """
    if kind in (Kind.NUMBER, Kind.WHOLE):
        return number(type_name, told)
    if kind is Kind.MOMENT:
        return moment(type_name, told)
    if kind is Kind.JSON:
        return f"to_jsonb({told})"
    return identity(type_name, told) if kind is Kind.ID else f"CAST({told} AS text)"


def moment(type_name: str, told: str) -> str | None:
    """Write how a moment is read."""
    if type_name == "timestamptz":
        return told
    if type_name in ("timestamp", "date"):
        return f"CAST({told} AS timestamp) AT TIME ZONE 'UTC'"
    return since_1970(f"({number(type_name, told)})") if type_name in (*NUMBERS, *FLOATS) else None


def identity(type_name: str, told: str) -> str:
    """Write how a UUID is read, or made of a number, always the same."""
    if type_name == "uuid":
        return told
    if type_name in TEXTS:
        return f"CASE WHEN {told} ~ {UUID} THEN CAST({told} AS uuid) END"
    return f"CAST(md5('adopted ' || {told}) AS uuid)"


def number(type_name: str, told: str) -> str | None:
    """Write how a number is read exactly."""
    if type_name in NUMBERS:
        return f"CAST({told} AS numeric)"
    if type_name in FLOATS:
        return f"CAST(CAST({told} AS text) AS numeric)"
    return f"CASE WHEN {told} ~ {NUMBER} THEN CAST({told} AS numeric) END" if type_name in TEXTS else None


def since_1970(told: str) -> str:
    """Write how seconds, milliseconds or microseconds since 1970 are told apart, by their size."""
    units = ((10**11, 1), (10**14, 1000), (10**17, 1_000_000))
    cases = " ".join(f"WHEN {told} < {limit} THEN to_timestamp({told} / {unit})" for limit, unit in units)
    return f"CASE WHEN {told} < 0 THEN NULL {cases} END"


def choosing(table: Table, name: str, column: Column, told: str) -> str:
    """Write how the ancestor's word for a choice becomes Helios's."""
    choices = cast("Choice", table.columns[name].type).choices
    words = {each.value.upper(): each.value for each in choices} | dict(column.words)
    cases = " ".join(f"WHEN {literal(word)} THEN {literal(value)}" for word, value in words.items())
    return f"CASE upper(btrim(CAST({told} AS text))) {cases} END"


def kind_of(table: Table, name: str) -> Kind:
    """Tell what a column of a model holds."""
    return next((kind for of, kind in KINDS if isinstance(table.columns[name].type, of)), Kind.TEXT)


def sql_type(kind: Kind) -> str:
    """Name the type in which values of a kind are read."""
    return {
        Kind.NUMBER: "numeric",
        Kind.WHOLE: "numeric",
        Kind.MOMENT: "timestamptz",
        Kind.JSON: "jsonb",
        Kind.ID: "uuid",
    }.get(kind, "text")


def literal(value: str) -> str:
    """Write a text as SQL, for a statement in which a colon marks a value to bind."""
    doubled = value.replace("'", "''")
    return f"'{doubled}'".replace(":", "\\:")
