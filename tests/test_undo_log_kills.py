"""The short form of chaos_undo_log: runs are killed, and so is what undoes them."""

import chaos_undo_log
from sqlalchemy import URL


def test_killed_runs_and_killed_undos_leave_nothing(cluster: URL) -> None:
    """Every row is as it was; PostgreSQL itself goes on, because other tests use it."""
    assert 0 == chaos_undo_log.chaos(cluster, kills=2, seed=5, crash=False)
