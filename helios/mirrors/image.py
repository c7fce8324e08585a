"""What Redis should hold, read from the tables: of what changed, of some keys, or everything."""

import json
from collections import defaultdict, deque
from collections.abc import Collection, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import Any, TypeVar, cast

from helios.errors import SchemaError
from helios.mirrors import keys
from helios.mirrors.keys import Key, Name, Place
from helios.mirrors.values import IS_SHARDED, NAMES, ORDERS, POSITIONS, PRESENT, SERIES, SERIES_OF_SHARDS, TICKERS
from helios.models import Interval

Item = TypeVar("Item")
AT_ONCE = 1_000  # things read at a time
AHEAD = 4  # of so many, read before they are wanted


@dataclass
class Writes:
    """What Redis is to be told: texts by key, fields by hash, whole contents by hash; None means gone.

    `packed` holds so many more keys with their texts, `pairs`, as Redis's protocol writes them.
    """

    texts: dict[str, str | None] = field(default_factory=dict)
    fields: dict[str, dict[str, str | None]] = field(default_factory=dict)
    hashes: dict[str, dict[str, str] | None] = field(default_factory=dict)
    pairs: int = 0
    packed: bytes = b""

    def __len__(self) -> int:
        """Count what is written."""
        of_hashes = sum(len(each or "-") for each in (*self.fields.values(), *self.hashes.values()))
        return self.pairs + len(self.texts) + of_hashes


@dataclass
class Changes:
    """What the entries of the outbox name, each thing once."""

    everything: bool = False
    tickers: set[int] = field(default_factory=set)
    series: set[tuple[int, str]] = field(default_factory=set)
    orders: set[tuple[int, str]] = field(default_factory=set)
    positions: set[tuple[int, int, str]] = field(default_factory=set)
    instruments: set[int] = field(default_factory=set)
    renamed: set[Key] = field(default_factory=set)  # keys of old and new names

    def take(self, subject: str, names: Iterable[str]) -> None:
        """Take in the keys of a subject.

        Raises:
            SchemaError: the triggers are those of a newer version.

        """
        if subject == "ticker":
            self.tickers.update(map(int, names))
        elif subject == "series":
            self.series |= {(int(number), interval) for number, interval in split(names)}
        elif subject == "order":
            self.orders |= {(int(account), order) for account, order in split(names)}
        elif subject == "position":
            self.positions |= {(int(account), int(number), side) for account, number, side in split(names)}
        elif subject in ("instrument", "account"):
            for number, *name in map(json.loads, names):
                self.take_name(subject, int(number), tuple(name))
        elif subject == "all":
            self.everything = True
        else:
            raise SchemaError(
                f"mirror_outbox tells of a {subject!r}: the schema is ahead, run the newer version of Helios"
            )

    def take_name(self, subject: str, number: int, name: Name) -> None:
        """Take in a name that something has now, or had before."""
        if subject == "account":
            self.renamed |= {Key(keys.ORDERS, name), Key(keys.POSITIONS, name)}
            return
        self.instruments.add(number)
        self.renamed.add(Key(keys.TICKER, name))
        self.renamed |= {Key(keys.KLINES, (*name, each.value)) for each in Interval}


def split(names: Iterable[str]) -> Iterator[list[str]]:
    """Cut keys into their parts."""
    return (each.split("|") for each in names)


def of_changes(
    cursor: Any,  # noqa: ANN401 - a driver's cursor
    place: Place,
    changes: Changes,
    *,
    packed: bool = False,
) -> Generator[Writes, None, None]:
    """Read what changed as it is now, a part at a time; `packed`, where nobody has to see keys and texts, is faster."""
    for ids in parts(changes.tickers):
        if packed and place.buckets == 1:  # of several, each name tells whether it is in this one
            yield packed_tickers(cursor, place, ids)
        else:
            yield Writes(texts=tickers(cursor, place, ids))
    of_series = statements_of_series(cursor) if changes.series else SERIES
    for pairs in parts(changes.series):
        for interval, instruments in by_interval(pairs).items():
            values = {"interval": interval, "ids": [number for (number,) in instruments]}
            found = rows(cursor, of_series["ids"], values)
            yield Writes(texts=texts(place, keys.KLINES, found))
    for table, statements, wanted in (
        (keys.ORDERS, ORDERS, changes.orders),
        (keys.POSITIONS, POSITIONS, changes.positions),
    ):
        for some in parts(wanted):
            yield Writes(fields=fields(place, table, rows(cursor, statements["ids"], columns(some))))
    for numbers in parts(changes.instruments):
        for table, statements in ((keys.ORDERS, ORDERS), (keys.POSITIONS, POSITIONS)):
            yield Writes(fields=fields(place, table, rows(cursor, statements["instruments"], [numbers])))
    for names in parts(changes.renamed):
        yield of_keys(cursor, place, names)


def tickers(cursor: Any, place: Place, ids: Iterable[int]) -> dict[str, str | None]:  # noqa: ANN401 - a driver's cursor
    """Read the tickers of some instruments."""
    return texts(place, keys.TICKER, rows(cursor, TICKERS["ids"], [array_of(ids)]))


def packed_tickers(cursor: Any, place: Place, ids: Iterable[int]) -> Writes:  # noqa: ANN401 - a driver's cursor
    """Have PostgreSQL write tickers as Redis takes them, but those that are gone, or whose names have to be escaped."""
    values = [array_of(ids), f"{place.prefix}{keys.TICKER}:"]
    ((pairs, others, packed),) = rows(cursor, TICKERS["packed"], values)
    return Writes(texts=tickers(cursor, place, others) if others else {}, pairs=pairs, packed=(packed or "").encode())


def of_keys(cursor: Any, place: Place, wanted: Collection[Key]) -> Writes:  # noqa: ANN401 - a driver's cursor
    """Read the whole content of some keys."""
    names: dict[str, list[Name]] = defaultdict(list)
    for key in wanted:
        names[key.table].append(key.name)
    writes = Writes()
    if names[keys.TICKER]:
        found = rows(cursor, TICKERS["names"], columns(names[keys.TICKER]))
        writes.texts |= texts(place, keys.TICKER, found)
    of_series = statements_of_series(cursor) if names[keys.KLINES] else SERIES
    for interval, named in by_interval(names[keys.KLINES]).items():
        of_names = dict(zip(("exchanges", "markets", "symbols"), columns(named), strict=True))
        found = rows(cursor, of_series["names"], {**of_names, "interval": interval})
        writes.texts |= texts(place, keys.KLINES, found)
    for table, statements in ((keys.ORDERS, ORDERS), (keys.POSITIONS, POSITIONS)):
        if names[table]:
            found = rows(cursor, statements["names"], columns(names[table]))
            writes.hashes |= dict(hashes(place, table, found))
    return writes


def everything(connection: Any, place: Place) -> Iterator[Writes]:  # noqa: ANN401 - a driver's connection
    """Read the content of all keys of a bucket, a part at a time, in the transaction that is open."""
    with connection.cursor() as cursor:
        of_series = statements_of_series(cursor)
    for table, statements in ((keys.TICKER, TICKERS), (keys.KLINES, of_series)):
        for some in streamed(connection, place, statements, "instruments"):
            yield Writes(texts=texts(place, table, some))
    for table, statements in ((keys.ORDERS, ORDERS), (keys.POSITIONS, POSITIONS)):
        all_rows = (row for some in streamed(connection, place, statements, "accounts") for row in some)
        for key, content in hashes(place, table, all_rows):
            yield Writes(hashes={key: content})


def statements_of_series(cursor: Any) -> dict[str, str]:  # noqa: ANN401 - a driver's cursor
    """Choose the statements by which series are read: those for shards of Citus where klines are some."""
    return SERIES_OF_SHARDS if is_sharded(cursor) else SERIES


def is_sharded(cursor: Any) -> bool:  # noqa: ANN401 - a driver's cursor
    """Tell whether klines are shards of Citus, which only who writes them follows."""
    ((sharded,),) = rows(cursor, IS_SHARDED, [])
    return bool(sharded)


def streamed(connection: Any, place: Place, statements: dict[str, str], of: str) -> Iterator[list[Any]]:  # noqa: ANN401 - a driver's connection
    """Read everything of a bucket; rows stay on the server until they are wanted."""
    spread = place.buckets > 1
    ids: list[int] = []
    if spread:
        with connection.cursor() as cursor:
            ids = [number for number, *name in rows(cursor, NAMES[of], []) if place.holds(tuple(name))]
    with connection.cursor("helios_mirror") as cursor:
        cursor.itersize = AT_ONCE
        cursor.execute(statements["some" if spread else "all"], {"ids": ids} if spread else None)
        while some := cursor.fetchmany(AT_ONCE):
            yield some


def by_interval(series: Iterable[tuple[Any, ...]]) -> dict[str, list[tuple[Any, ...]]]:
    """Sort series, whose last part is their interval, by it."""
    sorted_out: dict[str, list[tuple[Any, ...]]] = defaultdict(list)
    for *whose, interval in series:
        sorted_out[interval].append(tuple(whose))
    return sorted_out


def rows(cursor: Any, statement: str, values: list[Any] | dict[str, Any]) -> list[Any]:  # noqa: ANN401 - a driver's
    """Run a query."""
    cursor.execute(statement, values)
    return list(cursor.fetchall())


def held(place: Place, found: Iterable[Any], named: int) -> Iterable[Any]:
    """Leave out rows of instruments or accounts, named by so many columns, that are of other buckets.

    One could have been renamed since it was asked what is of this bucket.
    """
    return found if place.buckets == 1 else (row for row in found if place.holds(tuple(row[:named])))


def texts(place: Place, table: str, found: Iterable[Any]) -> dict[str, str | None]:
    """Make keys and texts of rows whose last column is the text."""
    prefix = f"{place.prefix}{table}:"
    return {prefix + keys.joined(tuple(row[:-1])): row[-1] for row in held(place, found, 3)}


def fields(place: Place, table: str, found: Iterable[Any]) -> dict[str, dict[str, str | None]]:
    """Make the fields of hashes of rows: exchange, account, field, text.

    Without PRESENT: a hash that was evicted, and comes back with one field, must not be taken for whole.
    """
    made: dict[str, dict[str, str | None]] = defaultdict(dict)
    for exchange, account, name, text in held(place, found, 2):
        made[place.key(table, exchange, account)][name] = text
    return made


def hashes(place: Place, table: str, found: Iterable[Any]) -> Iterator[tuple[str, dict[str, str] | None]]:
    """Make whole hashes of rows in the order of their accounts; a fifth column tells whether the account exists."""
    for (exchange, account), group in groupby(held(place, found, 2), lambda row: (row[0], row[1])):
        its_rows = list(group)
        if its_rows[0][4:] == (False,):
            yield place.key(table, exchange, account), None
        else:
            content = {row[2]: row[3] for row in its_rows if row[2]}
            yield place.key(table, exchange, account), {PRESENT: "", **content}


def columns(of_rows: Collection[tuple[Any, ...]]) -> list[Any]:
    """Turn rows into the lists of their columns, as unnest takes them."""
    return [list(column) for column in zip(*of_rows, strict=True)]


def array_of(numbers: Iterable[int]) -> str:
    """Write numbers as the text of an array, which the server reads in a fifth of the time that ARRAY[...] takes."""
    return f"{{{','.join(map(str, numbers))}}}"


def ahead(items: Iterator[Item]) -> Generator[Item, None, None]:
    """Have the next items made in a thread while one is used: PostgreSQL reads while Redis writes.

    Who stops early has to close it: until then, the thread uses the connection that the items are read from.
    """
    end = object()
    thread = ThreadPoolExecutor(1)
    try:
        coming = deque(thread.submit(next, items, end) for _ in range(AHEAD))
        while (item := coming.popleft().result()) is not end:
            coming.append(thread.submit(next, items, end))
            yield cast("Item", item)
    finally:
        thread.shutdown(cancel_futures=True)


def parts(items: Collection[Item]) -> Iterator[list[Item]]:
    """Cut into parts, in an order that is always the same."""
    rest = iter(sorted(items))  # type: ignore[type-var]
    while some := list(islice(rest, AT_ONCE)):
        yield some
