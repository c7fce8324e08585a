"""A pgbouncer in transaction mode before the tests' PostgreSQL, where one is installed or given."""

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

import psycopg2
import pytest
from chaos_mirror_servers import Program, owned, until
from sqlalchemy import URL

from helios.servers.account import server_account

FOUND = os.environ.get("HELIOS_PGBOUNCER") or shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
needs_pgbouncer = pytest.mark.skipif(
    FOUND is None,
    reason="there is no pgbouncer here: install it (Debian: apt-get install pgbouncer), or name it in HELIOS_PGBOUNCER",
)
# Two connections to the server for each login and database, so that clients share them all the time.
CONFIGURATION = """
[databases]
* = host={server}
[pgbouncer]
pool_mode = {mode}
listen_addr =
listen_port = 5432
unix_socket_dir = {sockets}
auth_type = trust
auth_file = {users}
default_pool_size = 2
max_client_conn = 200
{more}
"""


@contextmanager
def bouncer(server: str, users: list[str], *, mode: str = "transaction", more: str = "") -> Iterator[str]:
    """Start one before the server whose sockets are in a folder; gives the folder of its own socket."""
    top = Path(mkdtemp(prefix="ht-")).resolve()
    top.chmod(0o755)
    account = server_account(Path(server))
    (top / "users").write_text("".join(f'"{each}" ""\n' for each in users))
    filled = CONFIGURATION.format(server=server, mode=mode, sockets=top, users=top / "users", more=more)
    (top / "pgbouncer.ini").write_text(filled)
    owned(top, account)
    program = Program(account, top / "log")
    try:
        program.run([str(FOUND), str(top / "pgbouncer.ini")])
        until(lambda: answers(top, users[0]), "the start of pgbouncer")
        yield str(top)
    finally:
        program.end(signal.SIGTERM)
        shutil.rmtree(top)


def answers(sockets: Path, user: str) -> bool:
    """Tell whether it answers."""
    try:
        psycopg2.connect(host=str(sockets), user=user, dbname="postgres").close()
    except psycopg2.Error:
        return False
    return True


def through(url: URL, sockets: str) -> URL:
    """Give the same address by the way of a pooler."""
    return url.set(query={"host": sockets})
