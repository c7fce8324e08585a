"""The user as whom a server runs: this process's own, or, for root, an unprivileged one that exists already."""

import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from helios.errors import ServerError

if sys.platform != "win32":
    import pwd

CANDIDATES = ("postgres", "nobody")


class Drop(TypedDict, total=False):
    """How subprocess changes the user of what it starts."""

    user: int
    group: int
    extra_groups: list[int]


@dataclass(frozen=True)
class Account:
    """An unprivileged user of this machine."""

    name: str
    uid: int
    gid: int

    @property
    def drop(self) -> Drop:
        """What subprocess needs to run something as this user and with no other rights."""
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def may(self, path: Path, *, read: bool) -> bool:
        """Tell whether this user may enter a folder, or read a file, with every folder above it."""
        needed = stat.S_IXOTH | (stat.S_IROTH if read else 0)
        return self._granted(path, needed) and all(self._granted(each, stat.S_IXOTH) for each in path.parents)

    def _granted(self, path: Path, needed: int) -> bool:
        found = path.stat()
        if found.st_uid == self.uid:
            needed <<= 6
        elif found.st_gid == self.gid:
            needed <<= 3
        return found.st_mode & needed == needed


def server_account(data: Path) -> Account | None:
    """Choose the user as whom root starts a server, because PostgreSQL refuses to run as root; None for everybody else.

    Data that exists goes on belonging to whom it belongs, also when a better candidate has come to this machine since.
    """
    if os.geteuid() != 0:
        return None
    if data.exists() and data.stat().st_uid != 0:
        owner = data.stat()
        return Account(user_name(owner.st_uid), owner.st_uid, owner.st_gid)
    for name in CANDIDATES:
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, found.pw_uid, found.pw_gid)
    raise ServerError(
        f"PostgreSQL does not run as root, and this machine has none of the users {', '.join(CANDIDATES)}: "
        "run as a normal user, or set DATABASE_URL"
    )


def user_name(uid: int) -> str:
    """Name a user for people."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"number {uid}"
