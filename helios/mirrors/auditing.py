"""Keys that Redis lost or changed by itself, found a slice at a time and written again.

Evicted, deleted or altered by hand, a key has no entry in the outbox. Readers go to PostgreSQL for one that is gone,
and this brings it back. A slice is as big as can be compared in a millisecond or two, for nothing is relayed meanwhile;
what cannot be cut, as all orders of an account, may take longer, and is paid for with a longer pause.
"""

import time
from typing import Any

from helios.mirrors import checking, keys
from helios.mirrors.image import Writes, is_sharded
from helios.mirrors.keys import Key, Place
from helios.mirrors.relay import Relay, log
from helios.mirrors.source import Source
from helios.mirrors.store import Store, commands_of
from helios.mirrors.values import statement
from helios.models import Interval

TAKES = 0.0015  # seconds that a slice takes, about
MOST = 1_000  # things in the biggest slice
NEXT_INSTRUMENTS = statement("""
    SELECT id, exchange, market, symbol FROM {instruments} WHERE id > %s ORDER BY id LIMIT %s
""")
NEXT_ACCOUNTS = statement("SELECT id, exchange, name FROM {accounts} WHERE id > %s ORDER BY id LIMIT %s")
# From one series to the next through the primary key, as there may be many millions of candles.
NEXT_SERIES = statement("""
    WITH RECURSIVE found AS (
        SELECT (SELECT min(instrument_id) FROM {klines} WHERE "interval" = %(interval)s AND instrument_id > %(after)s)
            AS id, 1 AS number
        UNION ALL
        SELECT (SELECT min(instrument_id) FROM {klines} WHERE "interval" = %(interval)s AND instrument_id > found.id),
            number + 1
        FROM found WHERE id IS NOT NULL AND number < %(most)s
    )
    SELECT found.id, exchange, market, symbol FROM found LEFT JOIN {instruments} USING (id) WHERE found.id IS NOT NULL
""")
# Each series of shards would be a question to all of them: every instrument is asked for instead.
NEXT_OF_SHARDS = statement("""
    SELECT id, exchange, market, symbol FROM {instruments} WHERE id > %(after)s ORDER BY id LIMIT %(most)s
""")


class Named:
    """Goes through the rows of a table, each of which is the name of a key in some of the mirrors' tables."""

    def __init__(self, query: str, *tables: str) -> None:
        self.query = query
        self.tables = tables
        self.after = 0

    def step(self, source: Source, _store: Store, most: int) -> tuple[list[Key], bool]:
        """Name the next keys, and whether they were the last."""
        found = rows(source, self.query, [self.after, most])
        self.after = found[-1][0] if len(found) == most else 0
        return [Key(table, tuple(name)) for _, *name in found for table in self.tables], not self.after


class SeriesOfKlines:
    """Goes through the series that have candles, one interval after the other."""

    def __init__(self) -> None:
        self.after = self.place = 0

    def step(self, source: Source, _store: Store, most: int) -> tuple[list[Key], bool]:
        """Name the next keys, and whether they were the last."""
        intervals = list(Interval)
        with source.connection.cursor() as cursor:
            query = NEXT_OF_SHARDS if is_sharded(cursor) else NEXT_SERIES
        while True:
            interval = intervals[self.place].value
            found = rows(source, query, {"interval": interval, "after": self.after, "most": most})
            self.after = found[-1][0] if len(found) == most else 0
            if not self.after:
                self.place = (self.place + 1) % len(intervals)
            if found or not self.place:
                named = [name for _, *name in found if None not in name]
                return [Key(keys.KLINES, (*name, interval)) for name in named], not self.place


class Found:
    """Goes through the keys that are in Redis, some of which may have no row."""

    def __init__(self) -> None:
        self.cursor = "0"

    def step(self, _source: Source, store: Store, most: int) -> tuple[list[Key], bool]:
        """Name the next keys, and whether they were the last."""
        self.cursor, names = store.scan(self.cursor, most)
        return [key for key in map(store.place.parse, names) if key], self.cursor == "0"


Walk = Named | SeriesOfKlines | Found


class Audit:
    """Goes round for ever through what the tables name and what Redis holds, a slice of each in turn."""

    def __init__(self, relay: Relay) -> None:
        self.relay = relay
        # With the fewest things of a slice: below that, beginning and ending it would cost more than looking.
        self.least: dict[Walk, int] = {
            Named(NEXT_INSTRUMENTS, keys.TICKER): 25,
            SeriesOfKlines(): 1,
            Named(NEXT_ACCOUNTS, *checking.HASHES): 1,
            Found(): 10,
        }
        self.walks, self.sizes = list(self.least), dict(self.least)
        self.rounds = dict.fromkeys(self.walks, 0)

    def step(self) -> int:
        """Look at the next slice, while no relay moves; how many keys had to be written again."""
        source, store = self.relay.sides()
        walk = self.walks[0]
        with source.leading() as point:
            if point is None or store.token != point.token:
                return 0
            began = time.monotonic()
            some, last = walk.step(source, store, self.sizes[walk])
            wrong, _ = checking.compare(source, store, names_of(store.place, some))
            if wrong:
                self.repair(store, wrong)
        self.adapt(walk, time.monotonic() - began)
        self.rounds[walk] += last
        self.relay.counts.audits = min(self.rounds.values())
        self.walks = [*self.walks[1:], walk]
        return len(wrong)

    def adapt(self, walk: Walk, took: float) -> None:
        """Make the next slice of a walk as big as its time allows, no more than twice this one."""
        size = self.sizes[walk]
        self.sizes[walk] = max(self.least[walk], min(round(size * TAKES / took), 2 * size, MOST))

    def repair(self, store: Store, wrong: tuple[checking.Difference, ...]) -> None:
        """Write what Redis should hold, as it was compared: read anew, it might be ahead of the token it stands under.

        PostgreSQL could lose such a row in that very instant, and nothing would tell that Redis still has it.
        """
        writes = Writes()
        for each in wrong:
            of = store.place.parse(each.key)
            (writes.hashes if of and of.table in checking.HASHES else writes.texts)[each.key] = each.expected
        store.write(commands_of(writes))
        self.relay.counts.repaired += len(wrong)
        log.warning(
            "wrote again %d keys that Redis had lost or changed by itself, the first: %s", len(wrong), wrong[0].key
        )


def names_of(place: Place, some: list[Key]) -> list[str]:
    """Write the keys of a bucket as Redis has them, each once."""
    return list({place.key(each.table, *each.name): None for each in some if place.holds(each.name)})


def rows(source: Source, query: str, values: Any) -> list[Any]:  # noqa: ANN401 - a list, or values by name
    """Read rows."""
    with source.connection.cursor() as cursor:
        cursor.execute(query, values)
        return list(cursor.fetchall())
