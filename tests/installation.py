"""What the tests of migrations share: a database's settings, logins, dumps, and commands in processes of their own."""

import os
import re
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Engine, NullPool, create_engine, text

from helios.schema import migrations

ROOT = Path(__file__).parent.parent
REVISIONS = list(ScriptDirectory.from_config(migrations.configuration()).walk_revisions())[::-1]  # the first is first
HEAD = REVISIONS[-1].revision
Run = Callable[..., tuple[int, str, str]]  # a command in this process: exit status, stdout, stderr
COPIED = "copied"  # the prefix of the roles of databases that are copies


def engine_of(url: URL) -> Engine:
    """An engine without a pool, so that nothing stays connected."""
    return create_engine(url, poolclass=NullPool)


def admin(cluster: URL, statement: str) -> None:
    """Run what runs in no transaction."""
    with engine_of(cluster).connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(statement)


@contextmanager
def made(cluster: URL, template: str = "template1") -> Iterator[URL]:
    """Make a database, a copy of its template; at the end it is dropped, and with it the logins named after it."""
    url = cluster.set(database=f"t_{uuid.uuid4().hex[:12]}")
    admin(cluster, f"CREATE DATABASE {url.database} TEMPLATE {template}")
    try:
        yield url
    finally:
        admin(cluster, f"DROP DATABASE {url.database} WITH (FORCE)")  # first: then they own nothing
        logins = "SELECT rolname::text FROM pg_roles WHERE rolname LIKE '%' || :name"
        run_sql(cluster, *(f'DROP ROLE "{role}"' for (role,) in rows(cluster, logins, name=url.database)))


def run_sql(url: URL, *statements: str) -> None:
    """Run statements in one transaction."""
    with engine_of(url).begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


def ask(url: URL, question: str, **values: Any) -> Any:
    """Ask for one value."""
    with engine_of(url).connect() as connection:
        return connection.scalar(text(question), values)


def rows(url: URL, question: str, **values: Any) -> list[tuple[Any, ...]]:
    """Ask for rows."""
    with engine_of(url).connect() as connection:
        return [tuple(row) for row in connection.execute(text(question), values)]


def login(url: URL, name: str, *statements: str, options: str = "") -> URL:
    """Make a login named after the database, run statements in which {login} is its name, and give its URL."""
    role = f"{name}_{url.database}"
    run_sql(url, f"CREATE ROLE {role} LOGIN {options}", *(each.format(login=role) for each in statements))
    return url.set(username=role)


def variables(url: URL, schema: str = "helios_trading", **more: str) -> dict[str, str]:
    """The environment of a process that works on this database."""
    given = {"DATABASE_URL": url.render_as_string(hide_password=False), "DATABASE_SCHEMA": schema, **more}
    passed = ("PATH", "HOME", "LANG", "HELIOS_POSTGRES_BIN", "HELIOS_REDIS_BIN", "VIRTUAL_ENV")
    return {name: os.environ[name] for name in passed if name in os.environ} | given


def use(monkeypatch: pytest.MonkeyPatch, url: URL, schema: str = "helios_trading", **more: str) -> None:
    """Make this process work on this database."""
    for name in ("DATABASE_MIGRATION_URL", "DATABASE_ROLE_PREFIX", "HELIOS_ENVIRONMENT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables(url, schema, **more).items():
        monkeypatch.setenv(name, value)


def upgrade(url: URL, schema: str = "helios_trading", **more: str) -> None:
    """Upgrade a database in this process, and leave the environment as it was."""
    with pytest.MonkeyPatch.context() as patch:
        use(patch, url, schema, **more)
        migrations.upgrade()


def start(*arguments: str, env: dict[str, str], cwd: Path = ROOT) -> "subprocess.Popen[str]":
    """Start `python -m ...` as a process of its own."""
    command = [sys.executable, "-m", *arguments]
    return subprocess.Popen(
        command, env=env, cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    )


def finish(process: "subprocess.Popen[str]", expected: int | None = 0) -> tuple[str, str]:
    """Wait for a process, and give what it said on stdout and stderr."""
    said, talk = process.communicate(timeout=120)
    assert expected in (None, process.returncode), talk
    return said, talk


def alembic(*arguments: str, env: dict[str, str], expected: int = 0) -> tuple[str, str]:
    """Run Alembic's own command from the project's folder."""
    return finish(start("alembic", *arguments, env=env), expected)


def dump(programs: Path, url: URL, *options: str) -> str:
    """Dump a database with pg_dump; the key that newer versions make up anew each time is left out."""
    command = [programs / "pg_dump", *options, "--dbname", libpq(url)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={"PATH": os.environ["PATH"]})
    return re.sub(r"^\\(un)?restrict .*\n", "", done.stdout, flags=re.MULTILINE)


def psql(programs: Path, url: URL, script: str) -> str:
    """Run a script with psql, as a DBA would."""
    command = [programs / "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "--dbname", libpq(url)]
    done = subprocess.run(command, input=script, capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stderr
    return done.stdout


def libpq(url: URL) -> str:
    """Write a URL as libpq's own programs read it."""
    return url.set(drivername="postgresql").render_as_string(hide_password=False)
