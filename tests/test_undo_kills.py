"""Test runs killed at random moments; the long form of this is the program chaos_undo.py."""

import shutil
import tempfile
from pathlib import Path

import chaos_undo


def test_killed_runs_leave_nothing(monkeypatch):
    """Whatever is killed, and whenever: rows and keys are as before, each time."""
    folder = Path(tempfile.mkdtemp(prefix="hu-"))
    folder.chmod(0o755)
    for name in ("DATABASE_URL", "REDIS_URL"):
        monkeypatch.setenv(name, "")
    try:
        tally = chaos_undo.chaos(folder, 4, seed=12, most=1)
    finally:
        shutil.rmtree(folder)
    assert tally["dirty at death"]
    assert {"wrong": 0, "not swept": 0, "unexpected": 0} == {
        each: tally[each] for each in ("wrong", "not swept", "unexpected")
    }
