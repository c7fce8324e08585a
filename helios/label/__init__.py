"""The label of a test run: what a process that belongs to one knows, and how its connections show it.

The run's id stands in the environment, so that child processes inherit it, also those that never heard of pytest:
HELIOS_TEST_RUN for what Helios itself connects, PGOPTIONS for everything else that is built on libpq (psycopg 3,
psycopg2, psql; asyncpg does not read it). A PostgreSQL connection shows it as the setting `helios.test_run`, a Redis
client by recording what it writes. Without a label nothing changes.
"""

import os
import re
from functools import cache

from helios.errors import LabelError, SettingError

VARIABLE = "HELIOS_TEST_RUN"
SETTING = "helios.test_run"
LARGEST = 2**63 - 1
OPTION = re.compile(rf"\s*-c\s*{re.escape(SETTING)}=\S*")


def run() -> int | None:
    """Give the id of the test run that this process belongs to now, or None.

    Raises:
        SettingError: the environment holds what cannot be an id.

    """
    given = os.environ.get(VARIABLE)
    return identity(given) if given else None


@cache
def identity(given: str) -> int:
    """Read an id, as the environment holds it."""
    if not given.isascii() or not given.isdigit() or not 0 < int(given) <= LARGEST:
        raise SettingError(
            f"{VARIABLE}={given!r} is not the id of a test run: unset it; the testing kit sets it itself"
        )
    return int(given)


def permitted_run(environment: str) -> int | None:
    """Give the run's id as `run` does, but refuse one in a process of production.

    It was started by a test with production's settings: unlabelled, its writes would be real.

    Raises:
        LabelError: the process believes to be production, and is labelled.

    """
    found = run()
    if found is not None and environment == "production":
        raise LabelError(
            f"{VARIABLE}={found} in a process with HELIOS_ENVIRONMENT=production: "
            "a test run may not work on production; unset the one, or change the other"
        )
    return found


def variables(run: int) -> dict[str, str]:
    """Give the environment variables that label a process, and its children, as part of a run."""
    return {VARIABLE: str(run), "PGOPTIONS": labelled(os.environ.get("PGOPTIONS", ""), run)}


def labelled(options: str, run: int) -> str:
    """Add the label to libpq's options, in the place of another one."""
    return f"{unlabelled(options)} -c {SETTING}={run}".strip()


def unlabelled(options: str) -> str:
    """Take the label out of libpq's options."""
    return OPTION.sub("", options).strip()
