"""Valkey (or Redis) as a server of ours: its options, its URL."""

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from sqlalchemy.engine import URL, make_url

from helios.servers.account import Account
from helios.servers.binaries import find_valkey, readable, version_of
from helios.servers.membership import Membership
from helios.servers.place import Place, State

SOCKET = "valkey.sock"
OPTIONS = {
    "port": "0",
    "unixsocketperm": "700",
    "daemonize": "no",
    "appendonly": "no",
    "maxmemory-policy": "noeviction",
}


class Valkey:
    """A Valkey with its data in `<home>/valkey-<major version>`, shared by all that name the same home.

    Its data survives: a snapshot is written now and then, and when the server ends. `durable=False`, for tests, writes
    none.
    """

    kind = "valkey"
    socket_name = SOCKET

    def __init__(
        self,
        home: Path,
        *,
        binaries: Path | None = None,
        durable: bool = True,
        options: Mapping[str, str] | None = None,
    ) -> None:
        self.program = find_valkey(binaries)
        self.version = version_of(self.program)
        # Redis and Valkey have parted: neither reads the other's newer snapshots
        brand = "redis" if self.program.name.startswith("redis") else "valkey"
        self.place = Place(home, f"{brand}-{self.version.split('.')[0]}")
        self.options = {**OPTIONS, "save": "60 1" if durable else "", **(options or {})}
        self.membership = Membership(self)

    def acquire(self) -> URL:
        """Join the server, start it if need be, and give its URL."""
        return valkey_address(self.membership.acquire())

    def release(self) -> None:
        """Leave the server; the last one to leave ends it."""
        self.membership.release()

    def wait_ended(self) -> None:
        """Wait until the server is down, because its last user has left; ServerError if it goes on."""
        self.place.wait_ended()

    def prepare(self, sockets: Path, account: Account | None, starting: int) -> list[str]:  # noqa: ARG002 - nothing is run here
        """Make the data folder, and give the server's command."""
        if not self.place.data.exists():
            self._make_data(account)
        for unfinished in self.place.data.glob("temp-*.rdb"):  # of a server that was killed while it saved
            unfinished.unlink()
        top = self.program.resolve().parent
        name = self.program.resolve().name
        program = readable(account, self.place.home, top, (name,), f"{self.place.name}-{self.version}") / name
        options = {**self.options, "unixsocket": str(sockets / SOCKET), "dir": str(self.place.data)}
        return [str(program), *(part for key, value in options.items() for part in (f"--{key}", value))]

    def _make_data(self, account: Account | None) -> None:
        new = self.place.folder / "data.new"
        new.mkdir(mode=0o700, exist_ok=True)
        if account is not None:
            os.chown(new, account.uid, account.gid)
        new.rename(self.place.data)

    def stranger(self) -> int | None:
        """Find nobody: Valkey's data folder does not tell who serves it."""
        return None


def valkey_address(state: State) -> URL:
    """Give the server's URL."""
    return make_url(f"unix://{quote(str(Path(state.sockets) / SOCKET))}?db=0")
