"""Kills users and supervisors of embedded servers at random moments: `python tests/chaos_servers.py 50 [seed]`.

No start may be refused, and no server may be left when its users are gone. The suite runs a few rounds.
"""

import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from server_user import User, alive, until, working_in

MOMENTS = 1.2  # seconds: a user's own start, a first start of the server, and some


def supervisors(home: Path) -> list[int]:
    """List the supervisors of servers below a folder."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        try:
            command = (each / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if len(command) > 1 and command[-2].startswith(os.fsencode(home)) and b"supervisor.py" in command[-3]:
            found.append(int(each.name))
    return found


def kill_once(home: Path, chance: random.Random, tally: Counter[str]) -> None:
    """Start some users, kill one of them or the supervisor, and see that a new one gets a server, and none is left."""
    kind = chance.choice(("postgres", "valkey"))
    users = [User(home, kind) for _ in range(chance.randint(1, 3))]
    time.sleep(chance.uniform(0, MOMENTS))
    targets = supervisors(home) if chance.random() < 0.7 else []
    if targets:
        os.kill(targets[0], signal.SIGKILL)
        tally["supervisors killed"] += 1
    else:
        users.pop().kill()
        tally["users killed"] += 1
    users.append(User(home, kind))
    for user in users:
        error = user.answer().get("error")
        if error:
            tally["refused"] += 1
            print(error, file=sys.stderr)  # noqa: T201
    for user in users:
        user.kill()
    try:
        took = until(lambda: not working_in(home) and not [pid for pid in supervisors(home) if alive(pid)])
        tally["longest ms to gone"] = max(tally["longest ms to gone"], round(took * 1000))
    except AssertionError:
        tally["left"] += 1


def chaos(rounds: int, seed: int) -> Counter[str]:
    """Kill that many times; now and then in a new home, so that first starts are hit too."""
    chance = random.Random(seed)  # noqa: S311 - chance, not secrecy
    tally: Counter[str] = Counter(refused=0, left=0)
    top = Path(tempfile.mkdtemp(prefix="ht-")).resolve()
    top.chmod(0o755)
    try:
        home = top / "0"
        for number in range(rounds):
            if chance.random() < 0.4:
                home = top / str(number)
            kill_once(home, chance, tally)
    finally:
        shutil.rmtree(top)
    return tally


if __name__ == "__main__":
    count, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else time.time_ns() % 10**6
    print(f"seed {seed}", dict(chaos(count, seed)))  # noqa: T201
