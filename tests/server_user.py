"""A process that uses an embedded server, and what the tests do with such processes.

As a program it joins the server, says so in one line of JSON, and leaves when its stdin ends.
"""

import contextlib
import json
import os
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from sqlalchemy import URL

from helios import servers
from helios.errors import HeliosError
from helios.settings import Settings

ROOT = Path(__file__).parent.parent
OUTSIDER = 54321  # a user that owns nothing here
NOBODY = 65534
KINDS = ("postgres", "valkey")


class User:
    """A process that uses a server."""

    def __init__(
        self, home: Path, kind: str = "postgres", *, uid: int | None = None, then: str = "stay", **variables: str
    ) -> None:
        search = f"{ROOT}:{ROOT / 'tests'}:{sysconfig.get_path('purelib')}"
        account: dict[str, Any] = {} if uid is None else {"user": uid, "group": uid, "extra_groups": []}
        self.process = subprocess.Popen(
            [reachable_python(uid), "-B", __file__, kind, str(home), then],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd="/",
            env={**os.environ, "PYTHONPATH": search, **variables},
            **account,
        )

    def answer(self) -> dict[str, Any]:
        """Wait until it has joined; gives what it found, or its `error`."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the user ended without a word"
        return dict(json.loads(line))

    def joined(self) -> dict[str, Any]:
        """Wait until it has joined, which it must."""
        answer = self.answer()
        assert "error" not in answer, answer["error"]
        return answer

    def kill(self) -> None:
        """End it as hard as can be."""
        self.process.kill()
        self.process.communicate()

    def leave(self) -> None:
        """Let it end by itself."""
        self.process.communicate(timeout=60)

    def __enter__(self) -> Self:
        """Begin, joined or not."""
        return self

    def __exit__(self, *_: object) -> None:
        """Kill it, unless it has ended."""
        self.kill()


def reachable_python(uid: int | None) -> str:
    """Find an interpreter of this version that a user may run."""
    candidates = [sys.executable, f"/usr/bin/python3.{sys.version_info.minor}", "/usr/bin/python3"]
    for each in candidates:
        account: dict[str, Any] = {} if uid is None else {"user": uid, "group": uid, "extra_groups": []}
        wanted = "import sys; print(sys.version_info[:2])"
        try:
            done = subprocess.run([each, "-c", wanted], capture_output=True, text=True, check=False, cwd="/", **account)
        except OSError:
            continue
        if done.stdout.strip() == str(sys.version_info[:2]):
            return each
    raise LookupError(f"none of {', '.join(candidates)} can be run by user {uid} as Python {sys.version_info[:2]}")


def until(condition: Callable[[], bool], patience: float = 40.0) -> float:
    """Wait for something to become true, which it must; gives how long it took."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() < begin + patience, f"did not happen within {patience} s"
        time.sleep(0.002)
    return time.monotonic() - begin


def alive(pid: int) -> bool:
    """Tell whether a process runs; one that nobody has buried does not."""
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def working_in(folder: Path) -> list[int]:
    """List the processes that work in or below a folder: servers, with all their parts."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        try:
            where = (each / "cwd").readlink()
        except OSError:
            continue
        if where.is_relative_to(folder):
            found.append(int(each.name))
    return found


def state_of(settings: Settings, url: URL) -> dict[str, Any] | None:
    """Tell what the supervisor says of the server with this URL."""
    for each in servers.status(settings):
        if each.url == url:
            with contextlib.suppress(FileNotFoundError):
                state = json.loads((each.data.parent / "state").read_text())
                return {**state, "folder": str(each.data.parent)}
    return None


def main(kind: str, home: str, then: str) -> None:
    """Join, tell, and do what is asked then."""
    settings = replace(Settings.from_environment(), helios_home=Path(home))
    join = servers.database_url if kind == "postgres" else servers.redis_url
    try:
        if then == "up":
            servers.up(settings)
        if then == "status":
            servers.status(settings)
        begin = time.perf_counter()
        url = join(settings)
        seconds = time.perf_counter() - begin
        found = None
        while found is None:  # the server may be killed just now
            found = state_of(settings, join(settings))
    except HeliosError as error:
        print(json.dumps({"error": str(error)}), flush=True)  # noqa: T201 - it is what this program is for
        return
    answer = {"url": url.render_as_string(), "seconds": seconds, **found}
    try:
        os.waitpid(-1, os.WNOHANG)
        answer["children"] = True
    except ChildProcessError:
        answer["children"] = False
    if then == "fork":
        answer["fork"] = os.fork()
        if answer["fork"]:
            print(json.dumps(answer), flush=True)  # noqa: T201
            os._exit(0)
    else:
        print(json.dumps(answer), flush=True)  # noqa: T201
    if then != "up":
        sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
