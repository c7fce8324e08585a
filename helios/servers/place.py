"""The folder of one server: what lies where, who may enter, and what it tells about the server."""

import contextlib
import json
import os
import secrets
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from helios.errors import ServerError
from helios.servers import locks
from helios.servers.account import Account, user_name

SOCKET_PATH_LIMIT = 103  # bytes: macOS's, the smallest there is; Linux has four more
LOG_LIMIT = 1_000_000
MAKING = 1.0  # seconds between making a folder and opening it to the server's user, at the very most
ENDING = 45.0  # seconds that a server gets to end
UNFIT = ",?#%"  # in a path: a comma separates hosts in a PostgreSQL URL, the others mean something in a Redis URL
PROGRAMS = ("postgres", "valkey-server", "redis-server")
SHORT = "/tmp"  # noqa: S108 - only a folder made there with a random name, closed to others, is used


@dataclass(frozen=True)
class State:
    """What the supervisor says about a server that is ready."""

    supervisor: int
    server: int
    version: str
    sockets: str


class Place:
    """The folder of one server: `<home>/<name>`, entered by its owner alone (for root: also by the server's user)."""

    def __init__(self, home: Path, name: str) -> None:
        self.home = home.resolve()
        self.name = name
        self.folder = self.home / name
        self.data = self.folder / "data"
        self.log = self.folder / "server.log"
        self.lease = self.folder / "lease"  # shared by the users; the supervisor takes it when nobody has it
        self.starting = (
            self.folder / "starting"
        )  # one starter at a time; shared with its supervisor until that is ready
        self.alive = self.folder / "alive"  # the supervisor's, as long as it lives
        self.guard = self.folder / "guard"  # the server's own, as long as any process of it lives

    def make(self, account: Account | None) -> None:
        """Make the folder unless it is there; no folder that exists is changed.

        Raises:
            ServerError: it cannot be made, belongs to somebody else, or the server's user cannot enter it.

        """
        closed = account is None
        try:
            make_folders(self.home, 0o700 if closed else 0o755)
            make_folders(self.folder, 0o700 if closed else 0o711)
        except OSError as error:
            raise ServerError(
                f"HELIOS_HOME={str(self.home)!r} cannot be used ({error.strerror}): name a folder that you may write to"
            ) from None
        self.check()
        until = time.monotonic() + MAKING
        while account is not None and not account.may(self.folder, read=False):
            if time.monotonic() < until:  # another starter may be about to open the folder that it has just made
                time.sleep(locks.STEP)
                continue
            raise ServerError(
                f"HELIOS_HOME={str(self.home)!r} cannot be entered by the user {account.name}, as whom root runs the "
                "server: name a folder outside closed ones, such as /var/lib/helios"
            )

    def check(self) -> None:
        """Refuse a folder through which another user could reach the server or mislead us."""
        # a folder like the system's temporary one may be the home: there nobody can replace what is ours
        refuse_strange(self.home, {0, os.geteuid()}, stat.S_IWOTH, sticky=True)
        refuse_strange(self.folder, {os.geteuid()}, stat.S_IWOTH | stat.S_IWGRP)

    def state(self) -> State | None:
        """Tell what the supervisor says, if there is one and its server is ready."""
        if not locks.taken(self.alive):
            return None
        try:
            return State(**json.loads((self.folder / "state").read_text()))
        except FileNotFoundError:
            return None

    def serves(self, socket_name: str) -> State | None:
        """Tell the same, having knocked at the socket."""
        state = self.state()
        if state is None:
            return None
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as link:
            link.connect(str(Path(state.sockets) / socket_name))
            return state
        return None

    def wait_ended(self) -> None:
        """Wait until supervisor and server are gone."""
        until = time.monotonic() + ENDING
        while locks.taken(self.alive) or locks.taken(self.guard):
            if time.monotonic() > until:
                raise ServerError(f"{self.name} in {str(self.folder)!r} did not end within {ENDING:g} s")
            time.sleep(locks.STEP)

    def server_pid(self) -> int | None:
        """Tell the number of the server that was started last; it may be anybody's by now."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            return int((self.folder / "pid").read_text())
        return None

    def kept(self) -> bool:
        """Tell whether the server stays up without users."""
        try:
            return (self.folder / "kept").read_text() == boot()
        except FileNotFoundError:
            return False

    def keep(self, *, wanted: bool) -> None:
        """Let the server stay up without users, until this machine restarts, or no longer."""
        if wanted:
            (self.folder / "kept").write_text(boot())
        else:
            (self.folder / "kept").unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove what the last server left; only while its guard is held."""
        for name in ("state", "state.new", "stop", "pid"):
            (self.folder / name).unlink(missing_ok=True)
        if self.log.exists() and self.log.stat().st_size > LOG_LIMIT:
            self.log.replace(self.log.with_name("server.log.1"))

    def make_sockets(self, account: Account | None, socket_name: str) -> Path:
        """Make an empty folder for the socket: here, or, where the path is too long, in the temporary folder."""
        noted = self.folder / "sockets"
        self._remove_sockets(noted, account)
        sockets = self.folder / "run"
        if not fit(sockets / socket_name):
            sockets = short_folder(socket_name)
            noted.write_text(str(sockets))  # before it exists, so that whoever comes after a kill knows of it
        sockets.mkdir(mode=0o700)
        if account is not None:
            os.chown(sockets, account.uid, account.gid)
        return sockets

    def _remove_sockets(self, noted: Path, account: Account | None) -> None:
        shutil.rmtree(self.folder / "run", ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            old = Path(noted.read_text())
            noted.unlink()
            found = old.lstat()
            if stat.S_ISDIR(found.st_mode) and found.st_uid in {os.geteuid(), account.uid if account else os.geteuid()}:
                shutil.rmtree(old, ignore_errors=True)

    def last_words(self) -> str:
        """Quote the end of the server's log."""
        try:
            lines = self.log.read_text(errors="replace").strip().splitlines()
        except FileNotFoundError:
            return "it left no log"
        return " / ".join(lines[-3:]) or "its log is empty"


def refuse_strange(path: Path, owners: set[int], closed_to: int, *, sticky: bool = False) -> None:
    """Refuse a folder that is somebody else's, or that others may write to."""
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise ServerError(f"{str(path)!r} is not a folder: remove it, or set HELIOS_HOME to another one")
    if found.st_uid not in owners:
        raise ServerError(
            f"{str(path)!r} belongs to the user {user_name(found.st_uid)}: set HELIOS_HOME to a folder of your own"
        )
    if found.st_mode & closed_to and not (sticky and found.st_mode & stat.S_ISVTX):
        raise ServerError(f"{str(path)!r} may be written to by other users: close it to them, or set HELIOS_HOME")


def make_folders(path: Path, mode: int) -> None:
    """Make a folder and those above it that are missing, with this mode whatever the umask."""
    if path.is_dir():
        return
    make_folders(path.parent, mode)
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        if path.is_dir():
            return
        raise
    path.chmod(mode)


def fit(path: Path) -> bool:
    """Tell whether a path can be a socket's and stand in a URL."""
    return len(os.fsencode(path)) <= SOCKET_PATH_LIMIT and not any(each in str(path) for each in UNFIT)


def short_folder(socket_name: str) -> Path:
    """Name a folder that does not exist yet, in the temporary folder, short enough for a socket."""
    name = f"helios-{secrets.token_hex(6)}"
    for parent in (tempfile.gettempdir(), SHORT):
        if fit(Path(parent, name, socket_name)):
            return Path(parent, name)
    raise ServerError(f"no folder with a path short enough for a socket: {tempfile.gettempdir()!r} is too long")


def boot() -> str:
    """Name the time since this machine started: it is another one after a restart."""
    if sys.platform == "linux":
        return Path("/proc/sys/kernel/random/boot_id").read_text()
    return subprocess.run(
        ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"], capture_output=True, text=True, check=False
    ).stdout


def is_server_in(pid: int, place: Place) -> bool:
    """Tell whether a process is a server that works in a place; a number alone may be anybody's by now."""
    if sys.platform == "linux":
        try:
            return Path(f"/proc/{pid}/cwd").readlink() == place.data
        except OSError:
            return False
    command = subprocess.run(
        ["/bin/ps", "-p", str(pid), "-o", "command="], capture_output=True, text=True, check=False
    ).stdout
    return Path(command.split(" ")[0]).name in PROGRAMS and str(place.folder) in command
