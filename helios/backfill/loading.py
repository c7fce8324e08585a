"""One file into the table, in one transaction: whole, or not at all."""

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from io import FileIO
from pathlib import Path
from typing import Any

from psycopg2.errorcodes import UNIQUE_VIOLATION
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from helios import db
from helios.backfill import tables
from helios.backfill.bounds import Bounds, beginning, likely_bounds
from helios.backfill.initial import Initial
from helios.backfill.reading import Reading, now
from helios.backfill.report import Mode, Progress, Report, Stage, remove_rejects, write_rejects
from helios.backfill.source import Source
from helios.backfill.stamp import stamp_of
from helios.backfill.tiers import Tier, chosen, reading
from helios.backfill.transform.candle import OFFICIAL
from helios.backfill.transform.refusal import OutOfBoundsError, OutOfOrderError
from helios.backfill.verdict import completed, judged, moment
from helios.errors import HeliosError, InputError
from helios.layout import make_partition, tell_written
from helios.models import Interval, Kline, KlineFile, QualitySubject

MONDAY = 4 * 86_400_000  # 1970-01-05, where weeks are counted from

Tell = Callable[[Progress], None]


def load(  # noqa: PLR0913 - options, by keyword alone
    bind: Engine | Connection,
    source: Source,
    *,
    strict: bool = False,
    again: bool = False,
    rejects: Path | None = None,
    progress: Tell | None = None,
    tier: str | None = None,
    initial: bool = False,
) -> Report:
    """Load a file of klines.

    A connection that is in a transaction already keeps it: the load is then a savepoint in it, and the caller commits.
    A file without any row is remembered as empty, under its instrument; one that has rows, but no candle, is refused.

    Args:
        bind: an engine of the writer role, or a connection.
        source: the file, as `recognise` told it.
        strict: refuse the whole file when any of its rows is bad.
        again: read the file also when its checksum is the one that was loaded.
        rejects: the folder that a file of the rejected rows goes to; without it they are only counted.
        progress: called some times a second with how far it has come.
        tier: `base` reads with the standard library, `fast` with numpy and pyarrow; None chooses.
        initial: fill empty partitions without their key, which is built afterwards; `bind` may act as the owner.

    Raises:
        InputError: the file cannot be used, holds no candle among its rows, or changed meanwhile; or a partition
            is not empty with `initial`; nothing was written.
        RightsError: the login may not act as the owner, with `initial`.

    """
    options = Options(strict=strict, again=again, rejects=rejects, tier=tier)
    with connected(bind) as connection:
        if not initial:
            return load_one(connection, source, options, progress)
        began = time.monotonic()
        with filling(connection) as into:
            report = load_one(connection, source, options, progress, into)
        report.seconds = time.monotonic() - began
        return report


@dataclass(frozen=True, kw_only=True)
class Options:
    """How files are loaded; the names are those of `load`."""

    strict: bool = False
    again: bool = False
    rejects: Path | None = None
    tier: str | None = None


def load_one(
    connection: Connection,
    source: Source,
    options: Options,
    progress: Tell | None = None,
    initial: Initial | None = None,
) -> Report:
    """Load a file on a connection; with `initial`, into the partitions that it fills and will put in their places."""
    began = time.monotonic()
    try:
        with FileIO(source.path) as file:
            work = Load(
                connection,
                source,
                file,
                strict=options.strict,
                rejects=options.rejects,
                progress=progress or (lambda _: None),
                tier=chosen(options.tier, source.path),
            )
            with work.keeping_still():
                report = None if options.again else work.unchanged()
                if report is None:
                    report = initial.fill(work) if initial else work.read()
    except OSError as error:
        raise InputError(f"{source.path} cannot be read: {error.strerror}") from error
    except DBAPIError as error:
        raise HeliosError(f"{source.path} was not loaded: {tables.said(error.orig)}") from error
    report.seconds = time.monotonic() - began
    return report


@contextmanager
def connected(bind: Engine | Connection) -> Iterator[Connection]:
    """Use a connection as it is, or one of an engine."""
    if isinstance(bind, Connection):
        yield bind
        return
    with db.reaching(bind.url):
        connection = bind.connect()
    with connection:
        yield connection


@contextmanager
def transaction(connection: Connection) -> Iterator[None]:
    """Do something whole or not at all: in a transaction of its own, or a savepoint of the caller's."""
    with connection.begin_nested() if connection.in_transaction() else connection.begin():
        if getattr(connection.connection.driver_connection, "autocommit", False):
            raise HeliosError("Loading needs a transaction, but the connection is in autocommit mode: pass another")
        yield


@contextmanager
def filling(connection: Connection) -> Iterator[Initial]:
    """Fill partitions in one transaction, and put them in their places at its end."""
    try:
        with transaction(connection):
            into = Initial(connection)
            yield into
            into.finish()
    except DBAPIError as error:
        raise HeliosError(f"nothing was loaded into new partitions: {tables.said(error.orig)}") from error


@dataclass
class Load:
    """One file on its way into the table."""

    connection: Connection
    source: Source
    file: FileIO
    strict: bool
    rejects: Path | None
    progress: Tell
    tier: Tier
    size_and_time: tuple[int, int] = field(init=False)
    stamp: str | None = field(init=False)

    def __post_init__(self) -> None:
        """Note what the file is like before anything of it is read."""
        self.size_and_time, self.stamp = self.sized_and_timed(), stamp_of(self.file.fileno())

    def sized_and_timed(self) -> tuple[int, int]:
        """Tell the file's size, and when it was last written to."""
        at = os.fstat(self.file.fileno())
        return at.st_size, at.st_mtime_ns

    def refuse_changed(self) -> None:
        """Refuse a file that was written to since: its parts may be of two versions, and the checksum of a third."""
        if self.sized_and_timed() != self.size_and_time:
            raise InputError(f"{self.source.path} changed while it was read: load it again") from None

    @contextmanager
    def keeping_still(self) -> Iterator[None]:
        """Say of a failure that it came from a change of the file, where there was one."""
        try:
            yield
        except (HeliosError, OSError):
            self.refuse_changed()
            raise

    def unchanged(self) -> Report | None:
        """Report a file whose content is the one that was loaded before."""
        with transaction(self.connection):
            known = tables.known_file(self.connection, self.source)
        if known is None or not (self.is_same(known) or self.holds_same(known)):
            return None
        return Report(
            source=self.source,
            mode=Mode.UNCHANGED,
            rows=known.rows + known.rejected,
            good=known.rows,
            rejected=known.rejected,
            first=known.first_open_time,
            last=known.last_open_time,
        )

    def is_same(self, known: KlineFile) -> bool:
        """Say whether the file is the very one that was loaded."""
        return known.stamp is not None and known.stamp == self.stamp

    def holds_same(self, known: KlineFile) -> bool:
        """Say whether the file holds what was loaded; if so, it will be known by its stamp."""
        if known.sha256 != hashlib.file_digest(self.file, "sha256").hexdigest():
            return False
        if self.stamp and self.stamp == stamp_of(self.file.fileno()):
            with transaction(self.connection):
                tables.keep_stamp(self.connection, self.source, known.sha256, self.stamp)
        return True

    def read(self) -> Report:
        """Load the file straight away where its two ends tell its range, else look at all of it before."""
        bounds = None if self.strict else likely_bounds(self.source, self.file)
        if bounds and not self.partitions_missing(bounds.years):
            try:
                return self.written(bounds)
            except OutOfBoundsError:
                pass
        bounds = self.looked_at()
        self.make_partitions(bounds.years)
        try:
            return self.written(bounds)
        except OutOfBoundsError:
            raise InputError(f"{self.source.path} changed while it was read: load it again") from None

    def looked_at(self) -> Bounds:
        """Read the whole file and write nothing."""
        with self.reading(Stage.LOOKING, None, 0) as rows_in:
            rows_in.wait()
            found = rows_in.told["found"]
        if self.strict and found["rejected"]:
            line, reason = found["first_bad"]
            raise InputError(
                f"{self.source.path} line {line} {reason}; {found['rejected']} rows are bad, "
                "and with --strict nothing is loaded"
            )
        first, last = found["first"], found["last"]
        return Bounds(first, last, found["years"], official=rows_in.told["width"] == OFFICIAL)

    def partitions_missing(self, years: list[int]) -> list[int]:
        """List the years without a partition."""
        with transaction(self.connection):
            return tables.missing_partitions(self.connection, self.source, years)

    def make_partitions(self, years: list[int]) -> None:
        """Make what is missing in a transaction of its own: others that need the same do not wait for the load."""
        for year in self.partitions_missing(years):
            with transaction(self.connection):
                make_partition(self.connection, str(Kline.__table__.schema), self.source.interval, year)

    @contextmanager
    def reading(
        self, stage: Stage, bounds: Bounds | None, instrument_id: int, cuts: Sequence[int] = ()
    ) -> Iterator[Reading]:
        """Start a reading of the file; with `cuts` (ms), of as many sections and one more."""
        interval = self.source.interval
        job = {
            "step": milliseconds(interval),
            "anchor": {Interval.W1: MONDAY, Interval.D3: None}.get(interval, 0),
            "steps": {str(each): milliseconds(each) for each in Interval if each.length},
            "bounds": [bounds.first, bounds.last] if bounds and bounds.first is not None else None,
            "write": bounds is not None,
            "instrument_id": instrument_id,
            "interval": str(interval),
            "now": now(),
            "cuts": cuts,
        }
        size = os.fstat(self.file.fileno()).st_size

        def tell(rows: int) -> None:
            self.progress(Progress(stage, rows, os.lseek(self.file.fileno(), 0, os.SEEK_CUR), size))

        with reading(self.tier, self.source.path, self.file, job, tell) as rows_in:
            yield rows_in

    def written(self, bounds: Bounds) -> Report:
        """Write the file's candles, and what is to be remembered of it, in one transaction."""
        with transaction(self.connection):
            instrument_id = tables.hold_instrument(self.connection, self.source)
            tables.lock_series(self.connection, instrument_id, self.source)
            span = bounds.span
            if span and tables.holds_any(self.connection, instrument_id, self.source, span):
                return self.compared(bounds, span, instrument_id)
            try:
                return self.direct(bounds, instrument_id)
            except tables.CopyError as error:
                if span is None or error.sqlstate != UNIQUE_VIOLATION:
                    raise
                # Somebody else, a feed perhaps, wrote one of the candles meanwhile.
                return self.compared(bounds, span, instrument_id)

    def direct(self, bounds: Bounds, instrument_id: int) -> Report:
        """Copy straight into the partitions, where the rows come in order; else into the table."""
        if self.tier is Tier.FAST or len(bounds.years) == 1:
            places = tables.loadable_partitions(self.connection, self.source, bounds.years)
            with suppress(OutOfOrderError), self.connection.begin_nested():
                return self.copied(Mode.DIRECT, bounds, instrument_id, places or [tables.KLINES])
        with self.connection.begin_nested():
            return self.copied(Mode.DIRECT, bounds, instrument_id, [tables.KLINES])

    def copied(self, mode: Mode, bounds: Bounds, instrument_id: int, places: list[str]) -> Report:
        """Copy each year into its place, or all of them into the one that there is."""
        cuts = [beginning(year) for year in bounds.years[1:]] if len(places) > 1 else []
        with self.reading(Stage.LOADING, bounds, instrument_id, cuts) as rows_in:
            rows_in.peek()
            rows = sum(tables.copy(self.connection, place, bounds.values, rows_in) for place in places)
            return self.finished(mode, rows_in, instrument_id, (rows, 0), rows)

    def compared(self, bounds: Bounds, span: tuple[datetime, datetime], instrument_id: int) -> Report:
        """Copy into a table beside, and write only what differs."""
        with self.reading(Stage.LOADING, bounds, instrument_id) as rows_in:
            rows_in.peek()
            tables.make_stage(self.connection)
            rows = tables.copy(self.connection, tables.STAGE, bounds.values, rows_in)
            size = os.fstat(self.file.fileno()).st_size
            self.progress(Progress(Stage.COMPARING, rows, size, size))
            counts = tables.write_differences(self.connection, instrument_id, self.source, span, bounds.values)
            return self.finished(Mode.COMPARED, rows_in, instrument_id, counts, rows)

    def finished(
        self, mode: Mode, rows_in: Reading, instrument_id: int, counts: tuple[int, int], copied: int
    ) -> Report:
        """Remember the file and its quality, put the rejected rows aside, and sum up."""
        self.refuse_changed()
        found: dict[str, Any] = rows_in.told["found"]
        if copied != found["good"]:
            raise HeliosError(
                f"{self.source.path} was not loaded: {copied} of its {found['good']} rows reached the server. "
                "Load it again"
            )
        report = completed(Report(source=self.source, mode=mode, inserted=counts[0], changed=counts[1]), found)
        if report.first and report.last and mode is not Mode.INITIAL:  # which tells of its partitions itself
            written = (instrument_id, str(self.source.interval), report.first, report.last)
            tell_written(self.connection, str(Kline.__table__.schema), [written])
        if self.rejects is not None and report.rejected:
            report.rejects = write_rejects(self.rejects, self.source, rows_in.rejected())
        elif self.rejects is not None:
            remove_rejects(self.rejects, self.source)
        self.remember(report, instrument_id, found, rows_in.told["sha256"])
        return report

    def remember(self, report: Report, instrument_id: int, found: dict[str, Any], sha256: str) -> None:
        """Write the rows of kline_files and data_quality_metrics."""
        verdict = judged(report, found)
        tables.remember_file(
            self.connection,
            instrument_id,
            self.source,
            {
                "sha256": sha256,
                "rows": report.good,
                "rejected": report.rejected,
                "first_open_time": report.first,
                "last_open_time": report.last,
                "stamp": self.stamp if self.stamp == stamp_of(self.file.fileno()) else None,
            },
        )
        tables.record_quality(
            self.connection,
            {
                "instrument_id": instrument_id,
                "subject": QualitySubject.KLINES,
                "interval": self.source.interval,
                "source": self.source.name,
                "window_start": report.first,
                "window_end": moment(found["end"]),
                "rows_expected": report.expected,
                "rows_found": report.good,
                "rows_rejected": report.rejected,
                "completeness": str(round(report.completeness, 6)),
                "score": verdict.score,
                "alert_level": verdict.alert_level,
                "reasons": report.reasons,
            },
        )


def milliseconds(interval: Interval) -> int:
    """Say how long a candle lasts; 0 for calendar months."""
    return interval.length // timedelta(milliseconds=1) if interval.length else 0
