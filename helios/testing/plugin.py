"""The pytest plugin: options and fixtures, and nothing else until a test asks for one of them.

pytest loads this file in every project where Helios is installed, so it imports only pytest; what the fixtures need is
imported when the first of them is used.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis
    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
    from sqlalchemy.orm import Session

    from helios.testing.run import Run

FIXTURES = (
    "helios_run",
    "helios_engine",
    "helios_session",
    "helios_rollback_session",
    "helios_async_session",
    "helios_redis",
)
SAID = pytest.StashKey[list[str]]()
FAILED = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options of the command line and of the ini file."""
    group = parser.getgroup("helios", "Helios: tests that leave nothing behind")
    group.addoption(
        "--helios-keep",
        action="store_true",
        help="leave what a failed test wrote, to be looked at; the next run, or `helios sweep`, undoes it",
    )
    group.addoption(
        "--helios-shared",
        action="store_true",
        help="let the workers of pytest-xdist share one schema instead of each having its own",
    )
    parser.addini(
        "helios_metadata",
        "the MetaData, or declarative base, under test, as package.module:attribute (default: Helios's own tables)",
    )
    parser.addini(
        "helios_migrate",
        "function(connection) that makes or migrates these tables, as package.module:function "
        "(default: metadata.create_all where no table is there; Helios's own tables: its migrations)",
    )


def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Give a worker of pytest-xdist its schema, before any module of the project reads the environment.

    Only where the ini file names the metadata: nothing else tells, this early, that the suite uses the kit.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    shared = "--helios-shared" in early_config.invocation_params.args
    if worker and not shared and early_config.getini("helios_metadata"):
        from helios.testing.subject import own_schema  # noqa: PLC0415 - see above

        own_schema(worker)


def pytest_report_collectionfinish(config: pytest.Config, items: list[pytest.Item]) -> list[str]:
    """Name what is under test, where a test asks for a fixture of the kit."""
    if not any(set(FIXTURES).intersection(getattr(item, "fixturenames", ())) for item in items):
        return []
    from helios.testing.subject import named  # noqa: PLC0415 - see above

    return [f"helios: {named(config.getini('helios_metadata'), config.getini('helios_migrate'))}"]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:  # noqa: ANN401, ARG001 - a worker of pytest-xdist
    """Take over what a worker of pytest-xdist has to say at its end."""
    told = getattr(node, "workeroutput", {}).get("helios")
    if told:
        said = node.config.stash.setdefault(SAID, [])
        said += [f"[{node.gateway.id}] {line}" for line in told["said"]]
        node.config.stash[FAILED] = node.config.stash.get(FAILED, False) or told["failed"]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Make the run fail where a clean-up failed."""
    if session.config.stash.get(FAILED, False) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Tell what was written and removed."""
    if said := config.stash.get(SAID, []):
        failed = config.stash.get(FAILED, False)
        terminalreporter.section("helios", red=failed, bold=failed)
        for line in said:
            terminalreporter.line(line)


@pytest.fixture(scope="session")
def helios_run(request: pytest.FixtureRequest) -> Run:
    """The run that undoes, after each test, what that test wrote; at its end, all the rest."""
    from helios.testing.watch import begin  # noqa: PLC0415 - see above

    return begin(request.config)


@pytest.fixture(scope="session")
def helios_engine(helios_run: Run) -> Engine:
    """An engine on the tables under test; what it writes is undone."""
    return helios_run.engine


@pytest.fixture
def helios_session(helios_run: Run) -> Iterator[Session]:
    """A session whose commits are real, seen by every other process, and undone after the test."""
    with helios_run.sessions() as session:
        yield session


@pytest.fixture
def helios_rollback_session(helios_run: Run) -> Iterator[Session]:
    """A session in a transaction that is rolled back: for a test in which nothing else looks at the database."""
    with helios_run.rollback_session() as session:
        yield session


@pytest.fixture
def helios_async_session(helios_run: Run) -> async_sessionmaker[AsyncSession]:
    """What makes asynchronous sessions, each for an `async with`; their commits are undone."""
    return helios_run.async_sessions


@pytest.fixture
def helios_redis(helios_run: Run) -> Redis:
    """A Redis client; keys come back as they were, with their types and expiries."""
    return helios_run.redis
