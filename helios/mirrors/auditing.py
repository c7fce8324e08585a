"""Keys that Redis lost or changed by itself, found a slice at a time and written again.

Evicted or deleted by hand, a key has no entry in the outbox. Readers go to PostgreSQL for it, and this brings it back.
"""

from typing import Any

from helios.mirrors import checking, keys
from helios.mirrors.image import Writes
from helios.mirrors.keys import Key
from helios.mirrors.relay import Relay, log
from helios.mirrors.source import Source
from helios.mirrors.store import Store, commands_of
from helios.mirrors.values import statement
from helios.models import Interval

INSTRUMENTS, ACCOUNTS = 10, 1  # looked at in a slice
NEXT_INSTRUMENTS = statement("""
    SELECT id, exchange, market, symbol FROM {instruments} WHERE id > %s ORDER BY id LIMIT %s
""")
NEXT_ACCOUNTS = statement("SELECT id, exchange, name FROM {accounts} WHERE id > %s ORDER BY id LIMIT %s")


class Audit:
    """Goes round through the instruments and accounts for ever."""

    def __init__(self, relay: Relay) -> None:
        self.relay = relay
        self.instrument = self.account = 0

    def step(self) -> int:
        """Look at the next slice, while no relay moves; how many keys had to be written again."""
        source, store = self.relay.sides()
        with source.leading() as point:
            if point is None or store.token != point.token:
                return 0
            slice_ = [store.place.key(each.table, *each.name) for each in self.next_slice(source)]
            wrong, _ = checking.compare(source, store, slice_)
            if wrong:
                self.repair(store, wrong)
        return len(wrong)

    def next_slice(self, source: Source) -> list[Key]:
        """Name the keys of the next instruments and accounts; after the last come the first."""
        with source.connection.cursor() as cursor:
            instruments = self.following(cursor, NEXT_INSTRUMENTS, self.instrument, INSTRUMENTS)
            accounts = self.following(cursor, NEXT_ACCOUNTS, self.account, ACCOUNTS)
        self.instrument = instruments[-1][0] if instruments else 0
        self.account = accounts[-1][0] if accounts else 0
        wanted = [Key(keys.TICKER, tuple(name)) for _, *name in instruments]
        wanted += [Key(keys.KLINES, (*name, each.value)) for _, *name in instruments for each in Interval]
        wanted += [Key(table, tuple(name)) for _, *name in accounts for table in checking.HASHES]
        return wanted

    @staticmethod
    def following(cursor: Any, query: str, after: int, most: int) -> list[Any]:  # noqa: ANN401 - a driver's cursor
        """Read the next rows by id."""
        cursor.execute(query, [after, most])
        return list(cursor.fetchall())

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
