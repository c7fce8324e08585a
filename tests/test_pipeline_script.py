"""The verification run: it does the whole pipeline beside real data, and nothing of it is left, however it ends."""

import signal
import subprocess
import sys

import pytest
from installation import ROOT, variables
from kit import content, keys

SCRIPT = [sys.executable, str(ROOT / "scripts" / "test_data_pipeline.py")]


@pytest.fixture
def env(kept_database, valkey):
    """The environment of a process on a database with real data; nothing of it may be different afterwards."""
    before = content(kept_database), keys(valkey)
    yield variables(kept_database, REDIS_URL=valkey.render_as_string(hide_password=False))
    assert before == (content(kept_database), keys(valkey))


def run(env: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*SCRIPT, *arguments], env=env, capture_output=True, text=True, check=False)


def until_line(env: dict[str, str], step: str) -> "subprocess.Popen[str]":
    """Start it, and wait until a step is done."""
    process = subprocess.Popen(SCRIPT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if step in line:
            return process
    raise AssertionError(process.communicate())


def test_a_failing_step_is_told_and_cleaned_up(env):
    """Exit status 1, the step's line says why, the steps behind it are not run, clean-up and proof are."""
    done = run(env, "--fail-at", "orders")
    assert 1 == done.returncode, done.stdout + done.stderr
    lines = {line.split()[1]: line.split()[0] for line in done.stdout.splitlines()}
    assert "FAILED" == lines.pop("orders")
    assert {"configuration", "repair", "schema", "klines", "ticker", "clean-up", "digest", "orphans", "public"} == set(
        lines
    )
    assert {"ok"} == set(lines.values())
    assert "" == done.stderr


def test_an_interrupted_run_cleans_up(env):
    """Ctrl-C in the middle: the same clean-up and proof, exit status 130."""
    process = until_line(env, "ticker")
    process.send_signal(signal.SIGINT)
    said, talk = process.communicate(timeout=60)
    assert 130 == process.returncode, said + talk
    assert "ok     digest" in said


def test_a_killed_run_is_repaired_by_the_next(env):
    """Killed with -9 in the middle: the next run says what it undid first, does everything, and proves it."""
    process = until_line(env, "orders")
    process.kill()
    process.communicate()
    done = run(env)
    assert 0 == done.returncode, done.stdout + done.stderr
    assert "repaired first: run " in done.stdout
    assert "FAILED" not in done.stdout
    assert "\033" not in done.stdout
