"""What a neighbour notices of test runs on its schema: the time of its commits, alone and beside four suites.

Example: python -m benchmarks --part neighbour

The suites are processes that write, commit and take back, on the schema that the neighbour works in too: of Helios, and
for comparison of those who delete what they wrote. On few cores both cost the neighbour time merely by being there.
"""

import argparse
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from benchmarks.place import Place
from helios.models import Instrument
from helios.schema import environment
from helios.testing import tracked

SUITES = 4
COMMITS = 1500
ROWS = 10
NOBODY, DELETING, HELIOS = "alone", f"beside {SUITES} suites that delete", f"beside {SUITES} suites of Helios"


def neighbour(at: Place, options: argparse.Namespace, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Measure in turn: median and 99th percentile of a commit; ratios to being alone, less is better."""
    with at.engine().begin() as connection:
        environment.mark(connection, "helios_trading", "test")
        connection.execute(
            text("INSERT INTO helios_trading.instruments (exchange, market, symbol) VALUES ('real', 'spot', 'A')")
        )
    taken: dict[str, list[list[float]]] = {NOBODY: [], DELETING: [], HELIOS: []}
    for turn in range(options.rounds):
        for name, rounds in taken.items():
            say(f"round {turn + 1} of {options.rounds}: {name}")
            with suites(at, name):
                rounds.append(commits(at))
    results = [told(name, rounds) for name, rounds in taken.items()]
    for each in results:
        each |= {f"{part}_ratio": round(each[f"{part}_ms"] / results[0][f"{part}_ms"], 2) for part in ("p50", "p99")}
    return results


def told(name: str, rounds: list[list[float]]) -> dict[str, Any]:
    """Give the medians of the rounds."""
    percentiles = [statistics.quantiles(each, n=100) for each in rounds]
    return {
        "way": name,
        "p50_ms": round(statistics.median(each[49] for each in percentiles) * 1000, 2),
        "p99_ms": round(statistics.median(each[98] for each in percentiles) * 1000, 2),
    }


def commits(at: Place) -> list[float]:
    """Change a row that the neighbour holds alone, and commit; the seconds of each."""
    taken = []
    with create_engine(at.url).connect() as connection:
        for number in range(COMMITS):
            began = time.perf_counter()
            connection.execute(
                text("UPDATE helios_trading.instruments SET base_asset = :number WHERE exchange = 'real'"),
                {"number": str(number)},
            )
            connection.commit()
            taken.append(time.perf_counter() - began)
    return taken


@contextmanager
def suites(at: Place, name: str) -> Iterator[None]:
    """Let suites work meanwhile."""
    url = at.url.render_as_string(hide_password=False)
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.neighbour", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"DATABASE_URL": url, "HELIOS_ENVIRONMENT": "test"},
            text=True,
        )
        for _ in range(0 if name == NOBODY else SUITES)
    ]
    try:
        for each in started:
            each.stdout.readline()  # type: ignore[union-attr] # it is a pipe
        yield
    finally:
        for each in started:
            each.communicate("")
        if any(each.returncode for each in started):
            raise RuntimeError(f"a suite failed: {name}")


def work(name: str) -> None:
    """Be a suite: test after test, until told to end."""
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    if name == HELIOS:
        with tracked() as run:
            print("begun", flush=True)
            while not over.is_set():
                run.enter("a test")
                write(Session(run.engine))
                run.leave()
    else:
        engine = create_engine(os.environ["DATABASE_URL"], poolclass=NullPool)
        print("begun", flush=True)
        while not over.is_set():
            session = Session(engine)
            rows = write(session)
            for each in rows:
                session.delete(each)
            session.commit()
            session.close()


def write(session: Session) -> list[Instrument]:
    """Do what a test does."""
    rows = [Instrument(exchange="suite", market="spot", symbol=f"{os.getpid()} {number}") for number in range(ROWS)]
    session.add_all(rows)
    session.commit()
    return rows


if __name__ == "__main__":
    work(sys.argv[1])
