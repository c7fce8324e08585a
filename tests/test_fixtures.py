"""The suite's own fixtures: what they save in time costs nothing of what is proved."""

import os

from installation import COPIED, dump, upgrade


def test_a_copy_is_what_an_upgrade_makes(upgraded, database, programs):
    """A test that begins with a copy begins with the very tables, rights and comments that an upgrade leaves."""
    upgrade(database, DATABASE_ROLE_PREFIX=COPIED)
    assert dump(programs, database) == dump(programs, upgraded)


def test_a_pytest_that_a_test_starts_is_no_worker():
    """Whatever runs this suite in several processes, its children do not take themselves for one of them."""
    assert [] == [name for name in os.environ if name.startswith(("PYTEST_XDIST_WORKER", "PYTEST_XDIST_TESTRUN"))]
