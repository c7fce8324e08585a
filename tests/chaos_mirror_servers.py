"""A PostgreSQL and a Valkey that chaos may kill, pause, empty, put back to older copies, or replace by a standby."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg2
from redis import Redis, RedisError

from helios import servers
from helios.servers.account import Account, server_account
from helios.settings import Settings

CHOSEN = Settings.from_environment()
PATIENCE = 60.0
OPTIONS = {
    "shared_buffers": "64MB",
    "max_wal_size": "64MB",
    "min_wal_size": "32MB",
    "wal_keep_size": "32MB",
    "max_prepared_transactions": "20",
}


def until(holds: Callable[[], object], what: str) -> None:
    """Wait until something holds."""
    end = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} took longer than {PATIENCE:g} s")
        time.sleep(0.01)


def owned(folder: Path, account: Account | None) -> None:
    """Give a folder to the servers' user."""
    if account is not None:
        for each in (folder, *folder.rglob("*")):
            os.chown(each, account.uid, account.gid)


class Program:
    """A server's process: started by a command, killed by a signal."""

    def __init__(self, account: Account | None, log: Path) -> None:
        self.account = account
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None

    def run(self, command: list[str], **how: Any) -> None:
        """Start it as the servers' user, in a folder that this user may enter."""
        how |= self.account.drop if self.account else {}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, cwd="/", stdout=log, stderr=log, stdin=subprocess.DEVNULL, **how)

    def tell(self, what: signal.Signals) -> None:
        """Send a signal."""
        assert self.process is not None
        self.process.send_signal(what)

    def end(self, what: signal.Signals) -> None:
        """End it, and wait until it is gone."""
        if self.process is not None:
            self.process.send_signal(what)
            self.process.wait(timeout=PATIENCE)
            self.process = None


class Postgres(Program):
    """A primary at port 5432 of a folder of sockets and, now and then, a standby at 5433."""

    def __init__(self, top: Path, sockets: Path) -> None:
        self.recipe = servers.Postgres(
            top / "home", binaries=CHOSEN.helios_postgres_bin, durable=False, options=OPTIONS
        )
        super().__init__(server_account(self.recipe.place.data), top / "postgres.log")
        self.top, self.sockets = top, sockets
        self.recipe.place.make(self.account)
        with open(os.devnull) as nothing:  # noqa: PTH123 - a descriptor is wanted
            self.command = self.recipe.prepare(sockets, self.account, nothing.fileno())
        self.data, self.older = self.recipe.place.data, top / "older"
        self.standby: Program | None = None
        self.standby_data = top / "standby"
        self.dsn = f"host={sockets} user=helios dbname=helios connect_timeout=2"
        self.url = f"postgresql://helios@/helios?host={sockets}"

    def start(self) -> None:
        """Start the primary, and wait until it takes writes."""
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        self.run([*self.command, "-D", str(self.data)])
        until(lambda: self.answers(self.dsn, "SELECT NOT pg_is_in_recovery()"), "the start of PostgreSQL")

    def stop(self, *, crash: bool) -> None:
        """Stop it at once, what was not flushed is lost, or in order."""
        self.end(signal.SIGQUIT if crash else signal.SIGINT)

    @staticmethod
    def answers(dsn: str, question: str) -> bool:
        """Tell whether a server answers, and says yes."""
        try:
            with contextlib.closing(psycopg2.connect(dsn)) as connection, connection.cursor() as cursor:
                cursor.execute(question)
                return bool(cursor.fetchone()[0])
        except psycopg2.Error:
            return False

    def keep_copy(self) -> None:
        """Keep a copy of the data as it is, to be put back later."""
        self.stop(crash=False)
        shutil.rmtree(self.older, ignore_errors=True)
        shutil.copytree(self.data, self.older, symlinks=True)
        self.start()

    def put_back(self) -> None:
        """Put the older copy back."""
        self.stop(crash=True)
        shutil.rmtree(self.data)
        shutil.copytree(self.older, self.data, symlinks=True)
        owned(self.data, self.account)
        self.data.chmod(0o700)
        self.start()

    def follow(self) -> None:
        """Make a standby that follows."""
        program = self.recipe.programs / "pg_basebackup"
        backup = str(program) if program.exists() else "pg_basebackup"  # not every wheel has it
        command = [backup, "-D", str(self.standby_data), "-h", str(self.sockets), "-U", "helios", "-R"]
        subprocess.run([*command, "-X", "stream", "-c", "fast", "--no-sync"], check=True, capture_output=True)
        owned(self.standby_data, self.account)
        self.standby = Program(self.account, self.log)
        self.standby.run([*self.command, "-D", str(self.standby_data), "-c", "port=5433"])
        until(lambda: self.answers(f"{self.dsn} port=5433", "SELECT pg_is_in_recovery()"), "the start of a standby")

    def cut(self) -> None:
        """Have the standby follow no more: from now on it lags."""
        with contextlib.closing(psycopg2.connect(f"{self.dsn} port=5433")) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("ALTER SYSTEM SET primary_conninfo TO ''")
                cursor.execute("SELECT pg_reload_conf()")

    def promote(self) -> None:
        """End the primary, and put the standby in its place, promoted."""
        self.stop(crash=True)
        assert self.standby is not None
        self.standby.end(signal.SIGINT)
        self.standby = None
        shutil.rmtree(self.data)
        self.standby_data.rename(self.data)
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        self.run([*self.command, "-D", str(self.data)])
        until(
            lambda: self.answers(self.dsn, "SELECT pg_is_in_recovery()"), "the standby's start in the primary's place"
        )
        until(lambda: self.answers(self.dsn, "SELECT pg_promote()"), "a promotion")

    def close(self) -> None:
        """End everything."""
        for each in (self.standby, self):
            if each is not None:
                each.end(signal.SIGQUIT)


class Valkey(Program):
    """A Valkey whose only snapshots are those that chaos takes."""

    def __init__(self, top: Path, sockets: Path) -> None:
        self.recipe = servers.Valkey(top / "home", binaries=CHOSEN.helios_redis_bin, durable=False)
        super().__init__(server_account(self.recipe.place.data), top / "valkey.log")
        self.recipe.place.make(self.account)
        self.command = self.recipe.prepare(sockets, self.account, 0)
        self.dump = self.recipe.place.data / "dump.rdb"
        self.older = top / "older.rdb"
        self.url = f"unix://{sockets / 'valkey.sock'}?db=0"
        self.client = Redis.from_url(self.url, socket_timeout=PATIENCE)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.run(self.command)
        until(self.answers, "the start of Valkey")

    def answers(self) -> bool:
        """Tell whether it answers, its snapshot loaded."""
        try:
            return bool(self.client.ping())
        except (RedisError, OSError):
            return False

    def keep_copy(self) -> None:
        """Keep a snapshot as it is now, to be put back later."""
        self.client.save()
        shutil.copy(self.dump, self.older)
        self.dump.unlink()

    def restart(self, *, older: bool) -> None:
        """Kill it, and start it empty or with the older snapshot."""
        self.end(signal.SIGKILL)
        self.dump.unlink(missing_ok=True)
        if older:
            shutil.copy(self.older, self.dump)
            owned(self.dump, self.account)
        self.start()

    def close(self) -> None:
        """End it."""
        self.client.close()
        self.end(signal.SIGKILL)
