"""What pytest is told once a test has asked for the kit: where each test begins and ends, and what the run says."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from helios.errors import HeliosError
from helios.testing import story
from helios.testing.plugin import FAILED, SAID
from helios.testing.run import Run
from helios.testing.subject import subject_of


def begin(config: pytest.Config) -> Run:
    """Begin the run, and watch the tests from here on; a refusal is one sentence instead of a traceback."""
    failure, metadata = "", config.getini("helios_metadata")
    shared = config.getoption("helios_shared") or not metadata  # without it nobody knew early enough to part them
    try:
        subject = subject_of(metadata, config.getini("helios_migrate"), shared=shared)
        run = Run.begin(subject)
    except HeliosError as error:
        failure = f"helios: {error}"
    if failure:
        pytest.fail(failure, pytrace=False)
    config.pluginmanager.register(Watch(config, run), "helios-watch")
    return run


class Watch:
    """The hooks of a run: a test's scope begins with its first own fixture, and ends when all of them are gone.

    So what a fixture of a wider scope writes stays for the tests that share it, until the end of the run.
    """

    def __init__(self, config: pytest.Config, run: Run) -> None:
        self.config = config
        self.run = run
        self.test = ""
        self.failed = False
        self.kept: list[str] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> None:
        """Begin the test's scope before its first own fixture."""
        if fixturedef.scope == "function":
            self.enter(request.node.nodeid)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> None:
        """Begin the scope of a test that has no fixture of its own."""
        self.enter(item.nodeid)

    def enter(self, test: str) -> None:
        """Begin a test's scope, once."""
        if self.test != test:
            self.test, self.failed = test, False
            self.run.enter(test)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Remember whether the test failed."""
        report = yield
        self.failed = self.failed or report.failed
        return report

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None]:
        """Undo what the test wrote, when all its fixtures are gone; what cannot be undone is the test's error."""
        try:
            yield
        except BaseException:
            self.failed = True
            raise
        finally:
            if self.test == item.nodeid:
                self.leave()

    def leave(self) -> None:
        """End a test's scope."""
        test, self.test = self.test, ""
        if self.failed and self.config.getoption("helios_keep"):
            self.kept.append(test)
            self.run.keep()
            return
        failure = ""
        try:
            self.run.leave()
        except HeliosError as error:
            failure = f"helios: {error}"
        if failure:  # raised here, so that the error's own traceback does not stand above the sentence
            pytest.fail(failure, pytrace=False)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Undo the rest, and say how it went."""
        self.run.end()
        said, failed = story.tell(self.run, kept=self.kept, verbose=self.config.get_verbosity() > 0)
        workeroutput = getattr(self.config, "workeroutput", None)
        if workeroutput is not None:
            workeroutput["helios"] = {"said": said, "failed": failed}
        self.config.stash[SAID], self.config.stash[FAILED] = said, failed
        if failed and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
