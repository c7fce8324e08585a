"""A process's share in a server: joining it, starting it if nobody has, leaving it."""

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Protocol

from helios.errors import ServerError
from helios.servers import locks
from helios.servers.account import Account, server_account
from helios.servers.binaries import environment
from helios.servers.place import Place, State, boot, is_server_in

PATIENCE = 120.0  # seconds: a first start on a slow disk, or the shutdown of a busy server before it
TRIES = 3
# what a server that lost its supervisor hears, and how long it gets; Linux itself sends the first SIGINT (a second one
# would make Valkey forget its data)
LEFTOVER: tuple[tuple[signal.Signals | None, float], ...] = (
    ((None, 30.0),) if sys.platform == "linux" else ((None, 0.2), (signal.SIGINT, 30.0))
) + ((signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0))
_mutex = threading.Lock()
SUPERVISOR = Path(__file__).with_name("supervisor.py")


class Recipe(Protocol):
    """What differs between one kind of server and another."""

    kind: str
    version: str
    place: Place
    socket_name: str

    def prepare(self, sockets: Path, account: Account | None, starting: int) -> list[str]:
        """Make what the server needs, and give its command; what runs meanwhile holds the lock `starting`."""

    def stranger(self) -> int | None:
        """Find a server of this data that was not started by us; asked only while none of ours can run."""


class Membership:
    """One share; it ends with `release()` or with the process, and is inherited by forked ones."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.place = recipe.place
        self.lease: int | None = None
        self._file: tuple[int, int] | None = None

    def acquire(self) -> State:
        """Join the server, and start it if it does not run; again and again is fine."""
        with _mutex:
            until = time.monotonic() + PATIENCE
            try:
                account = server_account(self.place.data)
                self.place.make(account)
                held = self._holds()
                if not held:
                    self.lease = locks.take(self.place.lease, shared=True, until=until)
                    self._file = locks.identity(os.fstat(self.lease))
                try:
                    return self.place.serves(self.recipe.socket_name) or self._start(account, until)
                except BaseException:
                    if not held:
                        self._let_go()
                    raise
            except TimeoutError as error:
                raise ServerError(f"{self.place.name} could not be joined within {PATIENCE:g} s: {error}") from None
            except OSError as error:
                raise ServerError(
                    f"{self.place.name} could not be joined in {str(self.place.folder)!r}: {error}"
                ) from None

    def release(self) -> None:
        """Leave the server; the last one to leave ends it."""
        with _mutex:
            if self._holds():
                self._let_go()

    def _holds(self) -> bool:
        """Tell whether the lease is held: a process may have closed all its files, or somebody removed the folder."""
        if self.lease is None:
            return False
        try:
            ours = locks.identity(os.fstat(self.lease)) == self._file
        except OSError:
            ours = False
        if not ours:
            self.lease = None  # closed, and perhaps a number of another file by now
        elif not self.place.lease.exists() or locks.identity(self.place.lease.stat()) != self._file:
            self._let_go()
        return self.lease is not None

    def _let_go(self) -> None:
        if self.lease is not None:
            os.close(self.lease)
            self.lease = None

    def _start(self, account: Account | None, until: float) -> State:
        with locks.Brief() as brief:
            starting = brief.take(self.place.starting, until - time.monotonic())
            state = self._await_end(until)
            if state is not None:
                return state
            for _ in range(TRIES):
                word = self._try(account, starting, until)
                if word:
                    break
        state = self.place.state()
        if word == "ready" and state is not None:
            return state
        raise ServerError(f"{self.place.name} did not start in {str(self.place.folder)!r}: {self.place.last_words()}")

    def _await_end(self, until: float) -> State | None:
        """Wait while another supervisor ends its server; give the server's state if it turns out to serve."""
        while locks.taken(self.place.alive):
            state = self.place.serves(self.recipe.socket_name)
            if state is not None:
                return state
            if time.monotonic() > until:
                raise TimeoutError("the server before it does not end")
            time.sleep(locks.STEP)
        return None

    def _try(self, account: Account | None, starting: int, until: float) -> str:
        """Start a supervisor and its server; the answer is empty if the supervisor was killed meanwhile."""
        recipe, place = self.recipe, self.place
        with locks.Brief() as brief:
            guard = self._take_guard(brief)
            place.clear()
            self._refuse_stranger()
            sockets = place.make_sockets(account, recipe.socket_name)
            command = recipe.prepare(sockets, account, starting)
            alive = brief.take(place.alive, 5.0)
            plan = {
                "kind": recipe.kind,
                "version": recipe.version,
                "folder": str(place.folder),
                "data": str(place.data),
                "sockets": str(sockets),
                "socket": str(sockets / recipe.socket_name),
                "command": command,
                "environment": environment(),
                "account": account.drop if account else {},
                "boot": boot(),
                "starting": starting,
                "guard": guard,
                "alive": alive,
            }
            answer = self._launch(plan, (starting, guard, alive))
        with answer:
            return _hear(answer, until)

    def _launch(self, plan: dict[str, object], shared: tuple[int, ...]) -> IO[bytes]:
        descriptor = os.open(self.place.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-X", "utf8", SUPERVISOR, self.place.folder],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                pass_fds=shared,
                start_new_session=True,
                cwd="/",
            )
        assert process.stdin is not None  # noqa: S101 - PIPE
        assert process.stdout is not None  # noqa: S101 - PIPE
        try:
            process.stdin.write(json.dumps(plan).encode())
            process.stdin.close()
        except BrokenPipeError:
            pass
        process.wait()  # it leaves a process of its own behind, so that this one is nobody's parent
        return process.stdout

    def _take_guard(self, brief: locks.Brief) -> int:
        """Wait until no process of an earlier server is left; its supervisor is gone already."""
        for number, patience in LEFTOVER:
            pid = self.place.server_pid()
            if number and pid and is_server_in(pid, self.place):
                os.kill(pid, number)
            try:
                return brief.take(self.place.guard, patience)
            except TimeoutError:
                continue
        raise TimeoutError("processes of the server before it do not end")

    def _refuse_stranger(self) -> None:
        pid = self.recipe.stranger()
        if pid is not None:
            raise ServerError(
                f"{str(self.place.data)!r} is already served by process {pid}, which Helios did not start: "
                "stop it first"
            )


def _hear(answer: IO[bytes], until: float) -> str:
    """Read the supervisor's one word; empty if it ended without."""
    ready, _, _ = select.select([answer], [], [], max(0.0, until - time.monotonic()))
    if not ready:
        raise TimeoutError("it did not become ready")
    return answer.read(16).decode()


def _renew_mutex() -> None:
    global _mutex  # noqa: PLW0603 - a thread that held it does not exist in a forked child
    _mutex = threading.Lock()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_renew_mutex)
