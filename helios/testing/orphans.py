"""Rows and keys that look like test data: found by their names, shown with what hangs on them, deleted only when asked.

Looking like a test is no proof: a symbol may be called TESTUSDT and trade. What the exchange has confirmed is spared,
with everything it hangs on, and whoever deletes has seen the list before.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Column, ColumnElement, Connection, MetaData, String, Table, delete, func, inspect, select, tuple_

from helios.errors import HeliosError, SchemaError
from helios.schema import migrations
from helios.testing.halves import joined, reaching_redis
from helios.testing.run import Run
from helios.testing.subject import Subject

if TYPE_CHECKING:
    from redis import Redis

Listed = TypeVar("Listed")

WORDS = "test|tests|testing|pytest|tst|dummy|fake|mock|sample"
SYMBOL = r"^(test|pytest|dummy|fake|mock|sample)[a-z0-9]*([-_/:][a-z0-9]+)*$"
NAMED = rf"^({WORDS})([-_:. ].*|\d*)$"
PATTERNS = {  # of text columns, by their names, in any metadata
    "symbol": SYMBOL,
    "client_order_id": NAMED,
    "name": NAMED,
    "session_name": NAMED,
}
KEY = re.compile(rf"(^|[:{{])({WORDS})([-_:.}}]|$)", re.IGNORECASE)
REAL = ("exchange_order_id",)  # columns that only somebody outside can have filled
BOOKKEEPING = re.compile(r"^helios:")  # the kit's own log, and mirrors, which the relay sets right
BATCH = 1000
REDIS = "Redis"


@dataclass(frozen=True, kw_only=True)
class Orphan:
    """A row or key that looks like test data; `hanging` counts the rows of other tables that refer to it.

    `real` says why it is spared nevertheless; empty where it may be deleted.
    """

    place: str
    key: tuple[Any, ...]
    looks: str
    hanging: dict[str, int] = field(default_factory=dict)
    real: str = ""


@dataclass(frozen=True, kw_only=True)
class Link:
    """Columns of one table that name the row of another."""

    child: Table
    columns: tuple[Column[Any], ...]
    parent: Table
    names: tuple[Column[Any], ...]


class Rows:
    """The rows of a metadata's tables that look like test data."""

    def __init__(self, connection: Connection, metadata: MetaData, links: Iterable[Link] = ()) -> None:
        self.connection = connection
        self.metadata = metadata
        self.more = tuple(links)

    @cached_property
    def links(self) -> list[Link]:
        """List who refers to whom: the foreign keys, and what was handed over beside them."""
        found = list(self.more)
        for table in self.metadata.tables.values():
            for key in table.foreign_key_constraints:
                names = tuple(each.column for each in key.elements)
                found.append(Link(child=table, columns=tuple(key.columns), parent=key.referred_table, names=names))
        return found

    def find(self) -> Iterator[Orphan]:
        """Look through every text column whose name has a pattern."""
        for table in self.metadata.sorted_tables:
            for column in table.columns:
                if column.name in PATTERNS and isinstance(column.type, String):
                    yield from self.looking_so(table, column)

    def looking_so(self, table: Table, column: Column[Any]) -> Iterator[Orphan]:
        """Find the rows of one column."""
        keys = list(table.primary_key.columns)
        if not keys:
            return
        rows = self.connection.execute(
            select(*keys, column.label("looks")).where(column.regexp_match(PATTERNS[column.name], flags="i"))
        ).all()
        for row in rows:
            *key, looks = row
            found = self.family(table, tuple(key))
            hanging = Counter({each.name: len(members) for each, members in found.items() if each is not table})
            yield Orphan(
                place=table.name,
                key=tuple(key),
                looks=f"{column.name} {looks!r}",
                hanging=dict(hanging),
                real=self.reality(found),
            )

    def family(self, table: Table, key: tuple[Any, ...]) -> dict[Table, set[tuple[Any, ...]]]:
        """Gather the keys of a row and of all rows that hang on it, however far."""
        found: dict[Table, set[tuple[Any, ...]]] = {table: {key}}
        todo = [(table, {key})]
        while todo:
            parent, keys = todo.pop()
            for link in self.links:
                if link.parent is parent and (fresh := self.children(link, keys) - found.get(link.child, set())):
                    found.setdefault(link.child, set()).update(fresh)
                    todo.append((link.child, fresh))
        return found

    def children(self, link: Link, keys: set[tuple[Any, ...]]) -> set[tuple[Any, ...]]:
        """Find the keys of the rows that refer to these rows."""
        found: set[tuple[Any, ...]] = set()
        for batch in batches(keys):
            parents = select(*link.names).where(among(link.parent, batch))
            children = select(*link.child.primary_key.columns).where(tuple_(*link.columns).in_(parents))
            found |= {tuple(row) for row in self.connection.execute(children)}
        return found

    def reality(self, found: dict[Table, set[tuple[Any, ...]]]) -> str:
        """Say what shows that these rows are real, if anything does."""
        for table, keys in found.items():
            for column in (table.columns[name] for name in REAL if name in table.columns):
                for batch in batches(keys):
                    asked = select(func.count()).where(among(table, batch), column.is_not(None))
                    if count := self.connection.scalar(asked):
                        return f"{count} of its {table.name} are known to the exchange"
        return ""

    def delete(self, orphans: Iterable[Orphan]) -> dict[str, int]:
        """Delete rows with what hangs on them, each by its key; gives how many of each table.

        Raises:
            HeliosError: what hangs on one of them is real, or one refers to another in a ring.

        """
        doomed: dict[Table, set[tuple[Any, ...]]] = {}
        for orphan in orphans:
            if orphan.real:
                raise HeliosError(f"{orphan.place} {orphan.key} is not deleted: {orphan.real}")
            found = self.family(self.table(orphan.place), orphan.key)
            if real := self.reality(found):  # it may have become so since it was listed
                raise HeliosError(f"{orphan.place} {orphan.key} is not deleted: {real}")
            for table, keys in found.items():
                doomed.setdefault(table, set()).update(keys)
        counts: Counter[str] = Counter()
        for table in reversed(self.metadata.sorted_tables):
            for batch in batches(doomed.get(table, set())):
                counts[table.name] += self.connection.execute(delete(table).where(among(table, batch))).rowcount
        return {name: count for name, count in counts.items() if count}

    def table(self, name: str) -> Table:
        """Find a table by its name."""
        return next(each for each in self.metadata.tables.values() if each.name == name)


def links_of(metadata: MetaData) -> list[Link]:
    """List the links of Helios's own tables that are no foreign keys: klines name their instrument without one."""
    found = {table.name: table for table in metadata.tables.values()}
    if "klines" not in found or "instruments" not in found:
        return []
    klines, instruments = found["klines"], found["instruments"]
    if klines.foreign_key_constraints or "instrument_id" not in klines.columns:
        return []
    return [Link(child=klines, columns=(klines.c.instrument_id,), parent=instruments, names=(instruments.c.id,))]


def among(table: Table, keys: Iterable[tuple[Any, ...]]) -> ColumnElement[bool]:
    """Say in SQL that a row has one of these primary keys."""
    return tuple_(*table.primary_key.columns).in_(list(keys))


def batches(keys: Iterable[Listed]) -> Iterator[list[Listed]]:
    """Cut keys into lists that fit one statement."""
    listed = list(keys)
    for start in range(0, len(listed), BATCH):
        yield listed[start : start + BATCH]


def find(subject: Subject) -> list[Orphan]:
    """List the rows and keys that look like test data; nothing is written.

    Raises:
        SchemaError: the schema is not there, or Helios's own lacks revisions.

    """
    with subject.direct() as connection, joined(subject, connection) as halves:
        refuse_absent(connection, subject)
        found = list(Rows(connection, subject.metadata, links_of(subject.metadata)).find())
        if halves.redis is not None:
            with reaching_redis():
                found += keys(halves.redis, symbols_of(found))
    return found


def refuse_absent(connection: Connection, subject: Subject) -> None:
    """Look only where there are tables to look into.

    Raises:
        SchemaError: the schema is not there, or Helios's own lacks revisions.

    """
    if not inspect(connection).has_schema(subject.schema):
        remedy = "run `helios upgrade` first" if subject.helios else "make its tables first"
        raise SchemaError(f"schema {subject.schema!r} does not exist: {remedy}")
    if subject.helios:
        migrations.refuse_pending(connection, subject.schema)


@dataclass
class Deletion:
    """What was deleted, by tables; unless it is `confirmed`, it comes back."""

    counts: dict[str, int]
    confirmed: bool = False


@contextmanager
def deleting(subject: Subject, orphans: Iterable[Orphan]) -> Iterator[Deletion]:
    """Delete orphans as a run of their own, which is undone at the end unless that is declined.

    Raises:
        EnvironmentRefusedError: the database is production, or counts as it.
        HeliosError: one of them is real.

    """
    chosen = list(orphans)
    run = Run.begin(subject)
    deletion = Deletion({})
    try:
        with run.engine.begin() as connection:
            rows = Rows(connection, subject.metadata, links_of(subject.metadata))
            deletion.counts = rows.delete(each for each in chosen if each.place != REDIS)
        if names := [each.key[0] for each in chosen if each.place == REDIS]:
            with reaching_redis():
                deletion.counts[REDIS] = sum(run.redis.delete(*batch) for batch in batches(names))
        yield deletion
    finally:
        run.end(undone=not deletion.confirmed)
    unseen = [] if deletion.confirmed else [f"the deletion {each}" for each in run.tracker.unseen]
    if failures := run.failures + unseen:
        raise HeliosError("; ".join(failures))


def keys(client: "Redis", symbols: Iterable[str] = ()) -> Iterator[Orphan]:
    """Find the keys that look like test data, or name a symbol that does; scanned in steps, never by KEYS."""
    of_symbols = {each.lower() for each in symbols}
    for raw in client.scan_iter(count=BATCH):
        name = raw.decode(errors="backslashreplace") if isinstance(raw, bytes) else str(raw)
        if BOOKKEEPING.match(name):
            continue
        parts = {part.lower() for part in re.split(r"[:{}]", name)}
        if named := of_symbols & parts:
            yield Orphan(place=REDIS, key=(raw,), looks=f"key {name!r}, of {min(named)!r}")
        elif KEY.search(name):
            yield Orphan(place=REDIS, key=(raw,), looks=f"key {name!r}")


def symbols_of(orphans: Iterable[Orphan]) -> set[str]:
    """List the symbols among orphans."""
    return {each.looks.split("'")[1] for each in orphans if each.looks.startswith("symbol ") and not each.real}
