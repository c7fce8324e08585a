"""PostgreSQL as a server of ours: its cluster, its options, its URL."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from sqlalchemy.engine import URL

from helios.errors import ServerError
from helios.servers.account import Account
from helios.servers.binaries import environment, find_postgres, readable, version_of
from helios.servers.membership import Membership
from helios.servers.place import Place, State, is_server_in

NAME = "helios"  # of the superuser and of the database
OPTIONS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "wal_level": "replica",
    "max_prepared_transactions": "20",
    "max_connections": "100",
    "shared_preload_libraries": "plpgsql",  # else each connection that fires a trigger loads it anew
    "log_checkpoints": "off",
    "logging_collector": "off",
}
FOR_TESTS = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


class Postgres:
    """A PostgreSQL with a cluster in `<home>/postgres-<major version>`, shared by all that name the same home.

    `durable=False` is for tests: a power cut may then destroy the cluster. `options` are settings of PostgreSQL;
    whoever starts the server decides on them.
    """

    kind = "postgres"
    socket_name = ".s.PGSQL.5432"

    def __init__(
        self,
        home: Path,
        *,
        binaries: Path | None = None,
        durable: bool = True,
        options: Mapping[str, str] | None = None,
    ) -> None:
        self.programs = find_postgres(binaries)
        self.version = version_of(self.programs / "postgres")
        self.place = Place(home, f"postgres-{self.major}")
        self.durable = durable
        self.options = {**OPTIONS, **({} if durable else FOR_TESTS), **(options or {})}
        self.membership = Membership(self)

    @property
    def major(self) -> str:
        """The part of the version that decides who can read a cluster."""
        return self.version.split(".")[0]

    def acquire(self) -> URL:
        """Join the server, start it if need be, and give the superuser's URL."""
        return postgres_address(self.membership.acquire())

    def release(self) -> None:
        """Leave the server; the last one to leave ends it."""
        self.membership.release()

    def wait_ended(self) -> None:
        """Wait until the server is down, because its last user has left; ServerError if it goes on."""
        self.place.wait_ended()

    def prepare(self, sockets: Path, account: Account | None, starting: int) -> list[str]:
        """Make the cluster unless it is there, and give the server's command."""
        programs = self._readable(account)
        if not self.place.data.exists():
            self._make_cluster(programs, account, starting)
        self._check_version()
        (self.place.data / "postmaster.pid").unlink(missing_ok=True)  # nobody serves: its number may be anybody's
        options = {**self.options, "unix_socket_directories": quoted(sockets)}
        settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        return [str(programs / "postgres"), "-D", str(self.place.data), *settings]

    def stranger(self) -> int | None:
        """Find a postmaster of this cluster that somebody else started."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            pid = int((self.place.data / "postmaster.pid").read_text().splitlines()[0])
            return pid if is_server_in(pid, self.place) else None
        return None

    def parts(self) -> tuple[Path, tuple[str, ...]]:
        """Tell which files the programs consist of: a folder, and what of it is needed."""
        programs = self.programs.resolve()
        top, package = programs.parent, programs.parent.parent
        libraries = package.with_name(f"{package.name}.libs")  # a wheel's, beside the package: found by a relative path
        if libraries.is_dir():
            top = package.parent
        wanted = [programs / "postgres", programs / "initdb", programs.parent / "lib", programs.parent / "share"]
        found = [each for each in wanted if each.exists()] + ([libraries] if libraries.is_dir() else [])
        return top, tuple(str(each.relative_to(top)) for each in found)

    def _readable(self, account: Account | None) -> Path:
        top, parts = self.parts()
        copy = readable(account, self.place.home, top, parts, f"postgres-{self.version}")
        return copy / self.programs.resolve().relative_to(top)

    def _make_cluster(self, programs: Path, account: Account | None, starting: int) -> None:
        """Make it aside and rename it, so that a killed start leaves none that looks whole."""
        new = self.place.folder / "data.new"
        if new.exists():
            shutil.rmtree(new)
        new.mkdir(mode=0o700)
        if account is not None:
            os.chown(new, account.uid, account.gid)
        sync = [] if self.durable else ["--no-sync"]
        initdb: list[Path | str] = [
            "-D",
            new,
            "-U",
            NAME,
            "-E",
            "UTF8",
            "--locale=C",
            "--auth-local=trust",
            "--auth-host=reject",
        ]
        self._run([programs / "initdb", *initdb, "--no-instructions", *sync], "", account, starting)
        single: list[Path | str] = ["--single", "-D", new, *([] if self.durable else ["-F"]), "postgres"]
        self._run([programs / "postgres", *single], f"CREATE DATABASE {NAME}\n", account, starting)
        new.rename(self.place.data)
        folder = os.open(self.place.folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _run(self, command: list[Path | str], words: str, account: Account | None, starting: int) -> None:
        done = subprocess.run(
            command,
            input=words,
            text=True,
            capture_output=True,
            errors="replace",
            cwd="/",
            env=environment(),
            umask=0o077,
            pass_fds=(starting,),  # should this process be killed, the next starter waits for the program's end
            check=False,
            **(account.drop if account else {}),
        )
        if done.returncode != 0 or "ERROR:" in done.stderr:
            raise ServerError(
                f"{Path(command[0]).name} could not make a cluster in {str(self.place.folder)!r}: "
                + " / ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
            )

    def _check_version(self) -> None:
        try:
            found = (self.place.data / "PG_VERSION").read_text().strip()
        except FileNotFoundError:
            raise ServerError(
                f"{str(self.place.data)!r} is not a PostgreSQL cluster (it has no PG_VERSION): move it away"
            ) from None
        if found != self.major:
            raise ServerError(
                f"{str(self.place.data)!r} holds a cluster of PostgreSQL {found}, not {self.major}: move it away"
            )


def postgres_address(state: State) -> URL:
    """Give the superuser's URL of the database `helios`."""
    return URL.create("postgresql+psycopg2", NAME, database=NAME, query={"host": state.sockets})


def quoted(folder: Path) -> str:
    """Write a folder for a list of PostgreSQL's, in which blanks and commas mean something."""
    return '"' + str(folder).replace('"', '""') + '"'
