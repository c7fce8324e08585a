"""Several files, over one connection or more: files of one series one after the other, each series on its own."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from threading import Event

from sqlalchemy import Connection, Engine

from helios.backfill.initial import Initial
from helios.backfill.loading import Options, connected, filling, load_one
from helios.backfill.report import Progress, Report
from helios.backfill.source import Source
from helios.errors import HeliosError

MOST_JOBS = 4  # by default: more connections than that seldom help one disk

Tell = Callable[[Source, Progress], None]


@dataclass(frozen=True)
class Outcome:
    """What became of one of the files: a report, or why there is none."""

    source: Source
    report: Report | None = None
    error: HeliosError | None = None


class StoppedError(Exception):
    """The caller wants no more."""


def usual_jobs() -> int:
    """Say how many connections are used where nobody says."""
    return max(1, min(MOST_JOBS, os.cpu_count() or 1))


def load_many(  # noqa: PLR0913 - options, by keyword alone
    engine: Engine,
    sources: Sequence[Source],
    options: Options,
    *,
    jobs: int | None = None,
    initial: bool = False,
    progress: Tell | None = None,
) -> Iterator[Outcome]:
    """Load files over `jobs` connections, and tell of each as it is done; one that fails does not stop the others.

    Each file is a transaction of its own; with `initial`, all files of an interval are one, because they share the
    partitions that are exchanged at its end. A caller that stops early ends the loads that run.
    """
    stop = Event()

    def tell(source: Source, at: Progress) -> None:
        if stop.is_set():
            raise StoppedError
        if progress:
            progress(source, at)

    groups: dict[object, list[Source]] = {}
    for source in sources:
        groups.setdefault(source.interval if initial else (source.series, source.interval), []).append(source)
    run = filled if initial else loaded
    with ThreadPoolExecutor(jobs or usual_jobs(), "load") as pool:
        try:
            running = [pool.submit(run, engine, group, options, tell, stop) for group in groups.values()]
            for done in in_order_of_their_end(running):
                yield from done
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def in_order_of_their_end(running: list["Future[list[Outcome]]"]) -> Iterator[list[Outcome]]:
    """Give results as they come."""
    for each in as_completed(running):
        yield each.result()


def loaded(engine: Engine, group: list[Source], options: Options, tell: Tell, stop: Event) -> list[Outcome]:
    """Load the files of one series, one after the other."""
    outcomes = []
    for source in group:
        if stop.is_set():
            break
        try:
            with connected(engine) as connection:
                outcomes.append(attempt(connection, source, options, tell))
        except HeliosError as error:
            outcomes.append(Outcome(source, error=error))
    return outcomes


def filled(engine: Engine, group: list[Source], options: Options, tell: Tell, stop: Event) -> list[Outcome]:
    """Fill the partitions of one interval with all its files; a file that fails is left out."""
    try:
        with connected(engine) as connection, filling(connection) as into:
            outcomes = [attempt(connection, each, options, tell, into) for each in group if not stop.is_set()]
    except HeliosError as error:
        return [Outcome(source, error=error) for source in group]
    return outcomes


def attempt(
    connection: Connection, source: Source, options: Options, tell: Tell, initial: Initial | None = None
) -> Outcome:
    """Load one file, or say why not."""
    try:
        report = load_one(connection, source, options, lambda at: tell(source, at), initial)
    except HeliosError as error:
        return Outcome(source, error=error)
    return Outcome(source, report)
