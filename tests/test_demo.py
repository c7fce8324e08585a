"""`make demo`'s script: it does the main job on files of one's own, and a demo that was killed hinders none."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import make_klines
import pytest
from installation import ROOT
from server_user import until, working_in

MONTH = make_klines.datetime(2025, 1, 1, tzinfo=make_klines.UTC)


@pytest.fixture
def command(tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The demo on a small file; its DATABASE_URL points to nowhere, because the demo must not use it."""
    monkeypatch.setenv("HELIOS_HOME", str(own_home))
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:s3cret@127.0.0.1:1/real")
    file = make_klines.make_file(tmp_path / "um", "XRPUSDT", "1h", start=MONTH, rows=240, market="um", defects=("gap",))
    return [sys.executable, str(ROOT / "scripts" / "demo.py"), str(file.path)]


def test_the_demo_does_the_main_job_and_leaves_nothing(command, own_home):
    """Every step is shown, the second load writes nothing, `public` is untouched, and no server is left."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stdout + done.stderr
    for each in ("helios upgrade", "helios klines load", "helios klines list", "helios klines show", "helios doctor"):
        assert f"$ {each}" in done.stdout
    loads = re.findall(r" 1h +(\w+) +235 +(\d+) +(\d+) ", done.stdout)  # mode, rows, written, unchanged
    assert [("direct", "235", "0"), ("compared", "0", "235")] == loads
    assert "`public` is untouched" in done.stdout
    assert [] == working_in(own_home.parent)
    assert not (own_home / "demo").exists()


def test_a_killed_demo_hinders_no_other(command, own_home):
    """SIGKILL in the middle of the demo and its children, at three moments; then it runs through."""
    for moment in (1.0, 2.5, 4.5):
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(moment)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        until(lambda: not working_in(own_home.parent))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stdout + done.stderr
