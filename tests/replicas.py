"""A primary and its hot standby, for tests that kill either: restarts, failovers, a standby that is cut off."""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

import psycopg2
from chaos_mirror_servers import CHOSEN, OPTIONS, Program, owned, until

from helios import servers
from helios.servers.account import server_account

# An acknowledged commit is one; and a promotion does not wait for the next attempt to reach the old primary.
WANTED = {**OPTIONS, "synchronous_commit": "on", "wal_retrieve_retry_interval": "200ms"}
# Everything that was inserted, but for the header of a page on which nothing stands yet.
FLUSHED = """
    SELECT ahead = 0 OR (ahead IN (24, 40) AND pg_wal_lsn_diff(flushed, '0/0') % 8192 = 0)
    FROM (SELECT pg_current_wal_flush_lsn() AS flushed) AS log,
         LATERAL (SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), flushed) AS ahead) AS rest
"""
PORTS = (5432, 5433)


class Node(Program):
    """One server, with a port and data of its own."""

    def __init__(self, pair: "Pair", port: int, data: Path) -> None:
        super().__init__(pair.account, pair.top / f"{port}.log")
        self.pair, self.port, self.data = pair, port, data
        self.dsn = f"host={pair.sockets} port={port} user=helios dbname=helios connect_timeout=2"
        self.url = f"postgresql://helios@/helios?host={pair.sockets}&port={port}"

    def start(self, ready: str = "NOT pg_is_in_recovery()") -> None:
        """Start it, and wait until it is ready."""
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        self.run([*self.pair.command, "-D", str(self.data), "-c", f"port={self.port}"])
        until(lambda: self.answers(f"SELECT {ready}"), "the start of a server")

    def answers(self, question: str) -> bool:
        """Tell whether it answers, and says yes."""
        try:
            return bool(self.ask(question))
        except psycopg2.Error:
            return False

    def ask(self, *statements: str) -> object:
        """Run statements, each for itself; gives the value of the last, if it has one."""
        with contextlib.closing(psycopg2.connect(self.dsn)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                for each in statements:
                    cursor.execute(each)
                return cursor.fetchone()[0] if cursor.description else None


class Pair:
    """A primary and, once `follow` was called, its standby; a failover makes them change their parts."""

    def __init__(self, top: Path) -> None:
        self.top, self.sockets = top, top / "s"
        self.sockets.mkdir()
        self.sockets.chmod(0o1777)
        self.recipe = servers.Postgres(top / "home", binaries=CHOSEN.helios_postgres_bin, durable=False, options=WANTED)
        self.account = server_account(self.recipe.place.data)
        self.recipe.place.make(self.account)
        with open(os.devnull) as nothing:  # noqa: PTH123 - a descriptor is wanted
            self.command = self.recipe.prepare(self.sockets, self.account, nothing.fileno())
        first = self.recipe.place.data
        self.primary = Node(self, PORTS[0], first)
        self.standby = Node(self, PORTS[1], first.with_name("standby"))

    @property
    def url(self) -> str:
        """The address of whichever of both takes writes."""
        hosts = "&".join(f"host={self.sockets}:{port}" for port in PORTS)
        return f"postgresql://helios@/helios?{hosts}&target_session_attrs=read-write"

    def follow(self, *, synchronous: bool = False) -> None:
        """Make the standby anew from the primary; `synchronous`: from then on a commit waits for it."""
        shutil.rmtree(self.standby.data, ignore_errors=True)
        program = self.recipe.programs / "pg_basebackup"
        backup = str(program) if program.exists() else "pg_basebackup"  # not every wheel has it
        command = [backup, "-D", str(self.standby.data), "-h", str(self.sockets), "-p", str(self.primary.port)]
        subprocess.run(
            [*command, "-U", "helios", "-R", "-X", "stream", "-c", "fast", "--no-sync"], check=True, capture_output=True
        )
        owned(self.standby.data, self.account)
        self.standby.start("pg_is_in_recovery()")
        if synchronous:
            self.primary.ask("ALTER SYSTEM SET synchronous_standby_names TO '*'", "SELECT pg_reload_conf()")
            until(
                lambda: self.primary.answers("SELECT count(*) > 0 FROM pg_stat_replication WHERE sync_state = 'sync'"),
                "the standby's becoming synchronous",
            )

    def caught_up(self) -> None:
        """Wait until the standby has replayed what the primary has written by now."""
        until(lambda: self.primary.answers(FLUSHED), "the primary's flushing")
        end = self.primary.ask("SELECT pg_current_wal_flush_lsn()")
        until(lambda: self.standby.answers(f"SELECT pg_last_wal_replay_lsn() >= '{end}'"), "the standby's catching up")

    def cut(self) -> None:
        """Have the standby follow no more: from now on it lags."""
        self.standby.ask("ALTER SYSTEM SET primary_conninfo TO ''", "SELECT pg_reload_conf()")
        until(
            lambda: self.standby.answers("SELECT count(*) = 0 FROM pg_stat_wal_receiver"), "the standby's cutting off"
        )

    def fail_over(self, how: signal.Signals = signal.SIGQUIT) -> None:
        """End the primary unless it has ended, and promote the standby where it stands; nobody follows it then."""
        self.primary.end(how)
        self.standby.ask("ALTER SYSTEM SET synchronous_standby_names TO ''", "SELECT pg_reload_conf()")
        self.standby.ask("SELECT pg_promote()")
        self.primary, self.standby = self.standby, self.primary

    def close(self) -> None:
        """End everything."""
        for each in (self.standby, self.primary):
            each.end(signal.SIGQUIT)


@contextmanager
def pair() -> Iterator[Pair]:
    """Start a primary in a folder of its own; afterwards nothing is left."""
    top = Path(mkdtemp(prefix="ht-")).resolve()
    top.chmod(0o755)
    made = Pair(top)
    try:
        made.primary.start()
        yield made
    finally:
        made.close()
        shutil.rmtree(top)
