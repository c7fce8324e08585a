"""Mirrors while everything dies: two rounds here, hundreds by `make chaos`."""

import json
import os
import subprocess
import sys
import time

from installation import ROOT

ROUNDS = os.environ.get("HELIOS_ROUNDS", "2")


def test_whatever_dies_both_sides_end_equal():
    """Writers, relays, Valkey and PostgreSQL are killed, emptied, put back; then nothing differs."""
    seed = str(time.time_ns() % 10**6)
    command = [sys.executable, str(ROOT / "tests" / "chaos_mirrors.py"), ROUNDS, "--seed", seed, "--keys", "500"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stderr[-3000:] + done.stdout[:3000]
    told = json.loads(done.stdout)
    assert (int(ROUNDS), 0, []) == (told["rounds"], told["rounds_wrong"], told["wrong"])
    assert sum(told["done"].values()) >= int(ROUNDS)
