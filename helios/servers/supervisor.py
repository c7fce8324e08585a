"""The process between a server and its users: starts the server, and ends it when the last user is gone.

It is run by its path, by a bare interpreter (`python -I -S supervisor.py <folder>`), and therefore imports the standard
library only. The plan comes as JSON on stdin; one word goes back on stdout: `ready` or `failed`.
It never signals a process that is not its own child.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

STARTING, WATCHING = 0.005, 0.05  # seconds between two looks
LOG_LIMIT, LOG_KEPT, LOG_LOOKS = 8_000_000, 1_000_000, 100
FAREWELLS = ((signal.SIGINT, 30.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))
PR_SET_PDEATHSIG = 1

Plan = dict[str, Any]


class Supervisor:
    """One server, from its start to its end."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.folder = Path(plan["folder"])
        self.log = self.folder / "server.log"
        self.told_to_stop = False
        self.looks = 0
        self.lease = os.open(self.folder / "lease", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        for name in ("starting", "alive"):
            os.set_inheritable(plan[name], False)  # noqa: FBT003 - it takes no keyword

    def run(self) -> None:
        """Start the server, watch it, end it."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self.stop)
        server = self.start()
        try:
            (self.folder / "pid").write_text(str(server.pid))
            self.watch(server)
        finally:
            self.withdraw()
            farewell(server)
            self.clear_sockets()

    def watch(self, server: "subprocess.Popen[bytes]") -> None:
        """Wait until the server has ended or should."""
        ready = False
        while server.poll() is None and not self.unwanted():
            if not ready and self.answers():
                ready = True
                self.announce(server.pid)
            self.trim_log()
            time.sleep(WATCHING if ready else STARTING)
        if not ready:
            say("failed")

    def stop(self, _number: int, _frame: FrameType | None) -> None:
        """Remember that somebody asked for the end."""
        self.told_to_stop = True

    def start(self) -> "subprocess.Popen[bytes]":
        """Start the server as a child that dies with this process; all of its parts hold the guard."""
        with self.log.open("ab") as log:
            return subprocess.Popen(
                self.plan["command"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=self.plan["environment"],
                pass_fds=[self.plan["guard"]],
                preexec_fn=tie_to_parent(),  # noqa: PLW1509 - this process has one thread
                umask=0o077,
                user=self.plan["account"].get("user"),
                group=self.plan["account"].get("group"),
                extra_groups=self.plan["account"].get("extra_groups"),
            )

    def unwanted(self) -> bool:
        """Tell whether the server should end; if nobody uses it, newcomers wait from here on until it is down."""
        if self.told_to_stop or (self.folder / "stop").exists():
            return True
        try:
            fcntl.flock(self.lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if self.kept():
            fcntl.flock(self.lease, fcntl.LOCK_UN)
            return False
        return True

    def kept(self) -> bool:
        """Tell whether the server was asked to stay without users; a request from before a reboot is void."""
        try:
            return bool((self.folder / "kept").read_text() == self.plan["boot"])
        except OSError:
            return False

    def answers(self) -> bool:
        """Tell whether the server takes connections."""
        if self.plan["kind"] == "postgres":
            with contextlib.suppress(OSError, IndexError):
                # the eighth line is what pg_ctl waits for
                lines = (Path(self.plan["data"]) / "postmaster.pid").read_text().splitlines()
                return lines[7].strip() == "ready"
            return False
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as link:
            link.settimeout(1)
            link.connect(self.plan["socket"])
            link.sendall(b"PING\r\n")
            return link.recv(16).startswith(b"+PONG")  # while it loads its data, it says -LOADING
        return False

    def announce(self, pid: int) -> None:
        """Tell everybody that the server is ready, and let the next starter look."""
        state = {
            "supervisor": os.getpid(),
            "server": pid,
            "version": self.plan["version"],
            "sockets": self.plan["sockets"],
        }
        draft = self.folder / "state.new"
        draft.write_text(json.dumps(state))
        draft.replace(self.folder / "state")
        say("ready")
        os.close(self.plan["starting"])

    def withdraw(self) -> None:
        """Say no longer that the server is ready; somebody may have made the folder anew, with a server of its own."""
        state = self.folder / "state"
        with contextlib.suppress(OSError, ValueError):
            if json.loads(state.read_text())["supervisor"] == os.getpid():
                state.unlink()

    def trim_log(self) -> None:
        """Keep the log of a server that runs for months small; its writers append, so it may be cut under them."""
        self.looks += 1
        with contextlib.suppress(OSError):
            if self.looks % LOG_LOOKS or self.log.stat().st_size < LOG_LIMIT:
                return
            with self.log.open("rb") as log:
                log.seek(-LOG_KEPT, os.SEEK_END)
                self.log.with_name("server.log.1").write_bytes(log.read())
            os.truncate(self.log, 0)

    def clear_sockets(self) -> None:
        """Remove the socket folder if it had to stand outside the server's folder."""
        sockets = Path(self.plan["sockets"])
        if sockets.parent != self.folder:
            with contextlib.suppress(OSError):
                for each in sockets.iterdir():
                    each.unlink()
                sockets.rmdir()
                (self.folder / "sockets").unlink()


def tie_to_parent() -> Any:  # noqa: ANN401 - a callable for preexec_fn
    """Make what a child does before it becomes the server: on Linux, ask the kernel for SIGINT when its parent dies.

    It runs after the change of user, which would clear the request.
    """
    parent = os.getpid()
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def tie() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it, and that is inherited
        if prctl is not None:
            prctl(PR_SET_PDEATHSIG, int(signal.SIGINT), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return tie


def farewell(server: "subprocess.Popen[bytes]") -> None:
    """End the server: first so that it keeps everything, then more firmly."""
    for number, patience in FAREWELLS:
        if server.poll() is None:
            server.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(patience)


def say(word: str) -> None:
    """Tell the starter, if it still lives, and be silent from then on."""
    with contextlib.suppress(OSError):
        os.write(1, word.encode())
    os.dup2(2, 1)


def main() -> None:
    """Read the plan, leave the starter's family, and run."""
    plan = json.load(sys.stdin)
    if os.fork():
        os._exit(0)  # the starter waits for this, and is left with no child of its own
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.close(nothing)
    Supervisor(plan).run()


if __name__ == "__main__":
    main()
