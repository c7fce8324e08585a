"""The verification run: the whole pipeline once, on the database as it is set, and then nothing of it is left.

    python scripts/test_data_pipeline.py [--fail-at STEP] [--plain]

Each line names a step, what proves it, and how long it took. Whatever happens - a step that fails, Ctrl-C - what was
written is undone and proved to be gone; after kill -9 the next run does it first. Exit status 0 only when all holds.
"""

import argparse
import hashlib
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

try:
    import make_klines
    from sqlalchemy import func, select, text

    from helios import queries
    from helios.backfill import load, recognise
    from helios.errors import HeliosError
    from helios.feed import Feed
    from helios.models import Account, Instrument, Interval, Kline, Market, Order, OrderHistory, TradingSession
    from helios.quality import measuring
    from helios.schema import migrations
    from helios.testing import orphans, story
    from helios.testing.proof import differences, digest
    from helios.testing.run import Run
    from helios.testing.subject import Subject, subject_of
    from helios.testing.sweeping import sweep
except ImportError as missing:
    raise SystemExit(
        f"{missing}: install Helios first, `make demo` does it, or `pip install -e '.[embedded]'` in this checkout"
    ) from None

SYMBOL = "TESTPIPELINEUSDT"  # looks like test data on purpose: what is left of it would be found as an orphan
ACCOUNT = "test-pipeline"
ROWS = 1_440
DAY = datetime(2025, 1, 1, tzinfo=UTC)
SIZES = text("""
    SELECT count(*) FILTER (WHERE relkind IN ('r', 'p') AND NOT relispartition) AS tables,
           count(*) FILTER (WHERE relispartition AND relkind = 'r') AS partitions,
           count(*) FILTER (WHERE relkind IN ('i', 'I')) AS indexes
    FROM pg_class WHERE relnamespace = to_regnamespace(:schema)
""")
PUBLIC = text("""
    SELECT coalesce(string_agg(concat_ws(' ', oid, relname, relkind, xmin, relacl), ';' ORDER BY oid), '')
    FROM pg_class WHERE relnamespace = to_regnamespace('public')
""")
STEPS = ("schema", "klines", "ticker", "orders", "quality", "keys")


class PlannedFailureError(HeliosError):
    """The failure that --fail-at asked for."""


@dataclass
class Report:
    """The lines of this run, and whether one of them was bad."""

    colours: bool
    fail_at: str | None = None
    bad: list[str] = field(default_factory=list)

    @contextmanager
    def step(self, name: str) -> Iterator[list[str]]:
        """Time a step; it appends its evidence to the list, and fails with an exception."""
        evidence: list[str] = []
        began = time.monotonic()
        try:
            yield evidence
            self.fail_where_asked(name)
        except BaseException as error:
            self.line(name, "Ctrl-C" if isinstance(error, KeyboardInterrupt) else str(error), began, good=False)
            raise
        self.line(name, "; ".join(evidence), began, good=True)

    def fail_where_asked(self, name: str) -> None:
        """Fail on purpose."""
        if name == self.fail_at:
            raise PlannedFailureError("failed on purpose, as --fail-at asked")

    def line(self, name: str, said: str, began: float, *, good: bool) -> None:
        """Print a step."""
        mark = "ok" if good else "FAILED"
        if self.colours:
            mark = f"\033[{32 if good else 31};1m{mark}\033[0m"
        if not good:
            self.bad.append(name)
        print(
            f"{mark:<6} {name:<13} {said.splitlines()[0] if said else ''}  [{time.monotonic() - began:.2f} s]",
            flush=True,
        )


def main() -> int:
    """Run every step, then undo and prove it, whatever happened."""
    parser = argparse.ArgumentParser(description="The whole pipeline once, and nothing of it is left.")
    parser.add_argument("--fail-at", choices=STEPS, help="fail in this step on purpose")
    parser.add_argument("--plain", action="store_true", help="no colours")
    options = parser.parse_args()
    report = Report(colours=sys.stdout.isatty() and not options.plain, fail_at=options.fail_at)
    try:
        subject = subject_of()
        verify(subject, report)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if not report.bad and not isinstance(error, HeliosError):
            raise
        if not report.bad:
            print(f"FAILED {error}", file=sys.stderr)
        return 1
    return 1 if report.bad else 0


def verify(subject: Subject, report: Report) -> None:
    """Do the pipeline between two digests."""
    with report.step("configuration") as said:
        said.extend([str(subject), f"application {subject.settings.database_application_name}"])
    with report.step("repair") as said, subject.direct() as connection:
        public = fingerprint(connection)
        said.extend([story.repaired(each) for each in sweep(subject)] or ["no dead run had left anything"])
        made = subject.ready(connection)
    before, orphaned = digest(subject), names(subject)
    run = Run.begin(subject)
    try:
        run.enter("pipeline")
        pipeline(run, report, made=made)
    finally:
        clean(run, report)
        prove(subject, report, before, orphaned, public)


def pipeline(run: Run, report: Report, *, made: bool) -> None:
    """Write through every part of Helios, and read back."""
    for name, step in zip(STEPS, (schema_is_there, klines, ticker, orders, quality, keys), strict=True):
        with report.step(name) as said:
            said.extend(step(run, made) if step is schema_is_there else step(run))


def schema_is_there(run: Run, made: bool) -> list[str]:  # noqa: FBT001 - told by `ready`
    """Every revision is applied, and the tables are where they belong."""
    schema = run.subject.schema
    at = ", ".join(migrations.current(run.connection, schema))
    sizes = run.connection.execute(SIZES, {"schema": schema}).one()
    counts = f"{sizes.tables} tables, {sizes.partitions} partitions, {sizes.indexes} indexes"
    return [f"{'made for this run' if made else 'was there'}, at revision {at}", counts, ", ".join(run.servers)]


def klines(run: Run) -> list[str]:
    """A file in the archive's layout is loaded, and comes back whole."""
    with tempfile.TemporaryDirectory(prefix="helios-pipeline-") as folder:
        made = make_klines.make_file(Path(folder), SYMBOL, "1m", start=DAY, rows=ROWS, defects=("gap", "nan"))
        began = time.monotonic()
        loaded = load(run.engine, recognise(made.path))
        took = time.monotonic() - began
    with run.sessions() as session:
        found = session.scalar(
            select(func.count()).select_from(Kline).where(Kline.instrument_id == instrument(session))
        )
    expect(made.good, found, "candles in the table")
    return [f"{found} candles of {loaded.rows} lines, {loaded.rejected} rejected", f"{loaded.rows / took:,.0f} lines/s"]


def ticker(run: Run) -> list[str]:
    """A message of the exchange becomes the price that is read back."""
    now = round(time.time() * 1000)
    feed = Feed(run.sessions, exchange="binance", market=Market.SPOT, account=ACCOUNT)
    message = {
        "e": "bookTicker",
        "u": 1,
        "E": now,
        "T": now,
        "s": SYMBOL,
        "b": "99.99",
        "B": "7",
        "a": "100.01",
        "A": "8",
    }
    feed.take(message)
    with run.sessions() as session:
        price = queries.current_price(session, instrument(session))
    expect("100.00", str(price.value), "price")
    return [f"price {price.value}, {price.age.total_seconds() * 1000:.0f} ms old"]


def orders(run: Run) -> list[str]:
    """A session with an order, its fill, its history and its position."""
    with run.sessions.begin() as session:
        session.add(TradingSession(name=ACCOUNT, strategy="grid", mode="paper", status="ACTIVE", started_at=DAY))
    feed = Feed(run.sessions, exchange="binance", market=Market.SPOT, account=ACCOUNT)
    feed.take(execution())
    feed.take(execution(x="TRADE", X="FILLED", l="3", z="3", L="100", t=7, I=5002))
    with run.sessions() as session:
        order = session.scalars(select(Order).join(Account).where(Account.name == ACCOUNT)).one()
        versions = session.scalar(select(func.count()).where(OrderHistory.order_id == order.id))
        expect("FILLED", order.status.value, "state of the order")
        return [f"order {order.status}, {len(order.fills)} fill, {versions} versions in its history"]


def quality(run: Run) -> list[str]:
    """The file with a gap is scored below a day of it without one."""
    with run.sessions() as session:
        number = instrument(session)
        scores = [
            measuring.measure(session, number, Interval.M1, since=DAY, until=DAY + length).verdict.score
            for length in (timedelta(minutes=30), timedelta(days=1))
        ]
    if not scores[0] > scores[1]:
        raise HeliosError(f"poor data scored {scores[1]:.4f}, good data {scores[0]:.4f}")
    return [f"score {scores[0]:.4f} of half an hour, {scores[1]:.4f} of the day with its gap"]


def keys(run: Run) -> list[str]:
    """Keys of every kind, some of them with an expiry."""
    client = run.redis
    client.set(f"test:price:{SYMBOL}", "100.00", ex=600)
    client.hset(f"test:book:{SYMBOL}", mapping={"bid": "99.99", "ask": "100.01"})
    with client.pipeline() as pipe:
        for number in range(25):
            pipe.rpush(f"test:queue:{SYMBOL}", number).zadd(f"test:levels:{SYMBOL}", {str(number): number})
        pipe.execute()
    names = list(client.scan_iter(f"test:*:{SYMBOL}"))
    expect(4, len(names), "keys")
    return [f"{len(names)} keys, as {', '.join(sorted(client.type(each).decode() for each in names))}"]


def clean(run: Run, report: Report) -> None:
    """Undo all of it."""
    with report.step("clean-up") as said:
        try:
            run.leave()
        finally:
            run.end()
        said.append(story.counts([change for scope in run.scopes for change in scope.changes]))
        said.extend([f"left {what}" for scope in run.scopes for what in scope.left])
        if run.failures:
            raise HeliosError("; ".join(run.failures))


def prove(subject: Subject, report: Report, before: dict[str, str], orphaned: set[str], public: str) -> None:
    """Show that nothing is left."""
    with report.step("digest") as said:
        after = digest(subject)
        said.append(f"before {summed(before)}, after {summed(after)}: {len(before)} tables and keys")
        if changed := differences(before, after):
            raise HeliosError(f"not as before: {', '.join(changed)}")
    with report.step("orphans") as said:
        new = names(subject) - orphaned
        said.append(f"none of this run ({len(orphaned)} were there before)" if orphaned else "none")
        if new:
            raise HeliosError(f"left behind: {', '.join(sorted(new))}")
    with report.step("public") as said, subject.direct() as connection:
        said.append("untouched")
        expect(public, fingerprint(connection), "fingerprint of public")


def instrument(session: Any) -> int:  # noqa: ANN401 - a session
    """Find the instrument of this run."""
    return int(session.scalars(select(Instrument.id).where(Instrument.symbol == SYMBOL)).one())


def execution(**changed: Any) -> dict[str, Any]:  # noqa: ANN401 - fields of Binance's message
    """Make a message about an order."""
    at = round(time.time() * 1000)
    message = {
        "e": "executionReport",
        "E": at,
        "s": SYMBOL,
        "c": "test-pipeline-1",
        "S": "BUY",
        "o": "LIMIT",
        "f": "GTC",
    }
    message |= {"q": "3", "p": "100", "P": "0", "F": "0", "g": -1, "C": "", "x": "NEW", "X": "NEW", "r": "NONE", "i": 1}
    message |= {"l": "0", "z": "0", "L": "0", "n": "0", "N": None, "T": at, "t": -1, "I": 5001, "w": True, "m": False}
    message |= {"M": False, "O": at, "Z": "0", "Y": "0", "Q": "0", "W": at, "V": "NONE"}
    return message | changed


def names(subject: Subject) -> set[str]:
    """Name every orphan."""
    return {f"{each.place} {each.looks}" for each in orphans.find(subject)}


def fingerprint(connection: Any) -> str:  # noqa: ANN401 - a connection
    """Sum up what `public` holds."""
    return hashlib.sha256(str(connection.scalar(PUBLIC)).encode()).hexdigest()[:12]


def summed(digest: dict[str, str]) -> str:
    """Sum up a digest."""
    return hashlib.sha256(repr(sorted(digest.items())).encode()).hexdigest()[:12]


def expect(wanted: object, found: object, what: str) -> None:
    """Fail where something is not as it has to be."""
    if wanted != found:
        raise HeliosError(f"{what}: expected {wanted}, found {found}")


if __name__ == "__main__":
    sys.exit(main())
