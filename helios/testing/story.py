"""What a run says at its end: what was written and removed, what was repaired first, and what is left, test by test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from helios.testing.run import Run
    from helios.testing.sweeping import Repair
    from helios.testing.tracker import Inserted
    from helios.testing.undo import Change

SHOWN = 4  # tables named in a line


def tell(run: Run, *, kept: Iterable[str] = (), verbose: bool = False) -> tuple[list[str], bool]:
    """Write the summary of a run, a line each, and tell whether something could not be undone."""
    said = [f"{run.subject}, {', '.join(run.servers)}"]
    said += [repaired(each) for each in run.repaired]
    if run.untriggered:
        said.append(untriggered(run.untriggered))
    changes = [change for scope in run.scopes for change in scope.changes]
    if changes or not run.kept:
        said.append(written(changes))
    said += [f"undone of runs that ended meanwhile: {counts(each.changes)}" for each in run.finished]
    if verbose:
        said += [f"{scope.test} inserted {inserted(scope.inserted)}" for scope in run.scopes if scope.inserted]
    said += [f"{scope.test} left {what}" for scope in run.scopes for what in scope.left]
    said += [f"while {scope.test} was at work, {what}" for scope in run.scopes for what in scope.others]
    said += [f"{each.test or 'the run'} {each}" for each in run.tracker.unseen]
    said += [f"{test} failed: what it wrote is kept until the next run, or `helios sweep`" for test in kept]
    return said + run.failures, bool(run.failures)


def untriggered(tables: list[str]) -> str:
    """Tell which tables the tracker alone follows, and what it does not see."""
    return (
        f"followed by the tracker alone, as this role may not install triggers: {', '.join(tables)}; what text SQL, "
        "a driver's cursor, COPY, TRUNCATE, triggers and cascades of the database, or other processes write there is "
        "not undone"
    )


def repaired(repair: Repair) -> str:
    """Tell what a dead run had left."""
    runs = f"run {repair.runs[0]}" if len(repair.runs) == 1 else f"{len(repair.runs)} runs"
    return f"repaired first: {runs} had died in schema {repair.schema}; {counts(repair.changes)}"


def written(changes: Iterable[Change]) -> str:
    """Tell what was written and undone."""
    return f"undone: {counts(changes)}"


def counts(changes: Iterable[Change]) -> str:
    """Count changes by what was done: `removed 3 rows (orders 2, fills 1), restored 1 row (tickers 1)`."""
    told = []
    changes = list(changes)
    for what, word in (("deleted", "removed"), ("restored", "restored"), ("kept", "kept")):
        tables: Counter[str] = Counter()
        for change in changes:
            if change.what == what:
                tables[change.table] += change.count
        if total := sum(tables.values()):
            told.append(f"{word} {total:,} ({most(tables)})")
    return ", ".join(told) or "nothing, as nothing was written"


def inserted(rows: Iterable[Inserted]) -> str:
    """Count instances by their tables."""
    return most(Counter(each.table for each in rows))


def most(tables: Counter[str]) -> str:
    """Name the tables with the most rows."""
    named = [f"{table} {count:,}" for table, count in tables.most_common(SHOWN)]
    more = len(tables) - len(named)
    return ", ".join(named) + (f", {more} more" if more > 0 else "")
