"""Loads killed at any moment: a few here, two hundred by `make chaos`."""

import os
import time

from chaos_backfill import chaos
from sqlalchemy import URL

KILLS = int(os.environ.get("HELIOS_KILLS", "4"))


def test_kills_leave_no_trace(upgraded: URL) -> None:
    """A load killed at any moment, whatever its tier and mode, leaves nothing half, and the next ends as if alone."""
    seed = time.time_ns() % 10**6
    tally = chaos(upgraded, KILLS, seed)
    assert {"half": 0, "different": 0, "tables left": 0} == {
        name: tally[name] for name in ("half", "different", "tables left")
    }, f"seed {seed}: {dict(tally)}"
    assert KILLS == sum(count for name, count in tally.items() if "killed" in name)
