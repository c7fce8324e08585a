"""Which bucket an instrument or account falls into, by its id: so a bucket's relay need not read what is of others."""

from dataclasses import replace
from typing import Any

from helios.mirrors.image import Changes, rows
from helios.mirrors.keys import bucket_names, bucket_of
from helios.mirrors.values import SOME_NAMES


class Owners:
    """The buckets of ids, each asked once; all are forgotten where any name changes, of which the outbox tells."""

    def __init__(self, buckets: int) -> None:
        self.buckets = buckets
        self.instruments: dict[int, str] = {}
        self.accounts: dict[int, str] = {}

    def learn(self, cursor: Any, changes: Changes) -> None:  # noqa: ANN401 - a driver's cursor
        """Ask for the buckets of what changed."""
        if changes.everything or changes.renamed:
            self.instruments.clear()
            self.accounts.clear()
        of_instruments = changes.tickers | {each[0] for each in changes.series}
        of_accounts = {each[0] for each in changes.orders} | {each[0] for each in changes.positions}
        for table, known, wanted in (
            ("instruments", self.instruments, of_instruments),
            ("accounts", self.accounts, of_accounts),
        ):
            if lacking := wanted - known.keys():
                found = rows(cursor, SOME_NAMES[table], [list(lacking)])
                known |= {number: bucket_of(tuple(name), self.buckets) for number, *name in found}

    def of_bucket(self, changes: Changes, bucket: str) -> Changes:
        """Leave out what is of other buckets."""
        return replace(
            changes,
            tickers={each for each in changes.tickers if self.instruments.get(each) == bucket},
            series={each for each in changes.series if self.instruments.get(each[0]) == bucket},
            orders={each for each in changes.orders if self.accounts.get(each[0]) == bucket},
            positions={each for each in changes.positions if self.accounts.get(each[0]) == bucket},
            renamed={each for each in changes.renamed if bucket_of(each.name[:3], self.buckets) == bucket},
        )

    def buckets_of(self, changes: Changes) -> set[str]:
        """Name the buckets that changes are of; a new name may move things from any bucket to any other."""
        if changes.everything or changes.renamed:
            return set(bucket_names(self.buckets))
        found = {self.instruments.get(each) for each in changes.tickers}
        found |= {self.instruments.get(each[0]) for each in changes.series}
        found |= {self.accounts.get(each[0]) for each in changes.orders}
        found |= {self.accounts.get(each[0]) for each in changes.positions}
        return {each for each in found if each is not None}
