"""Fixtures by subject: real servers for the whole run, and a fresh database for each test that asks."""

import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import kit
import pytest
from extensions import Extension, convert, filled
from installation import COPIED, Run, made, upgrade, use
from mirroring import Scene, scene_of
from own_servers import end, postgres
from server_user import until, working_in
from sqlalchemy import URL, Connection, Engine, create_engine, text
from sqlalchemy.pool import NullPool
from tables import PARENTS, insert

from helios import cli, servers
from helios.schema import environment
from helios.settings import Settings

# A pytest that a test starts is no worker of this run, and must not take itself for one.
for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_XDIST_TESTRUNUID"):
    os.environ.pop(name, None)


@pytest.fixture(scope="session")
def home() -> Iterator[Path]:
    """A HELIOS_HOME of this run's own; not in pytest's folder, which an unprivileged server may not enter."""
    folder = Path(tempfile.mkdtemp(prefix="helios-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def own_home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A HELIOS_HOME for one test; afterwards no server may be left in it, and no file in the temporary folder."""
    top = Path(tempfile.mkdtemp(prefix="ht-")).resolve()
    (top / "tmp").mkdir()
    top.chmod(0o755)
    (top / "tmp").chmod(0o1777)
    monkeypatch.setattr(tempfile, "tempdir", str(top / "tmp"))
    monkeypatch.setenv("TMPDIR", str(top / "tmp"))
    yield top / "home"
    until(lambda: not working_in(top))
    left = list((top / "tmp").iterdir())
    shutil.rmtree(top)
    assert [] == left


@pytest.fixture(scope="session")
def ended_home() -> Iterator[Path]:
    """A HELIOS_HOME whose PostgreSQL has ended, for copies: making a cluster takes far longer than starting one."""
    folder = Path(tempfile.mkdtemp(prefix="ht-")).resolve()
    folder.chmod(0o755)
    server = postgres(folder)
    server.acquire()
    end(server)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def used_home(own_home: Path, ended_home: Path) -> Path:
    """A HELIOS_HOME for one test, in which a PostgreSQL has served before."""
    subprocess.run(["/bin/cp", "-a", ended_home, own_home], check=True)
    return own_home


@pytest.fixture(scope="session")
def cluster(home: Path) -> Iterator[URL]:
    """A PostgreSQL of this run's own; yields the superuser's URL of its database `postgres`."""
    binaries = Settings.from_environment().helios_postgres_bin
    server = servers.Postgres(home, binaries=binaries, durable=False, options={"max_prepared_transactions": "10"})
    yield server.acquire().set(database="postgres")
    server.release()
    server.wait_ended()


@pytest.fixture(scope="session")
def valkey(home: Path) -> Iterator[URL]:
    """A Valkey of this run's own; yields its URL."""
    server = servers.Valkey(home, binaries=Settings.from_environment().helios_redis_bin, durable=False)
    yield server.acquire()
    server.release()
    server.wait_ended()


@pytest.fixture
def database(cluster: URL) -> Iterator[URL]:
    """A fresh, empty database; yields the superuser's URL of it."""
    with made(cluster) as url:
        yield url


@pytest.fixture(scope="session")
def template(cluster: URL) -> Iterator[str]:
    """The name of an upgraded database, for copies that share its roles: the revisions run once for all of them."""
    with made(cluster) as url:
        upgrade(url, DATABASE_ROLE_PREFIX=COPIED)
        yield str(url.database)


@pytest.fixture
def upgraded(cluster: URL, template: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[URL]:
    """A database of a test's own as an upgrade leaves it, and the settings for it; yields the superuser's URL of it."""
    with made(cluster, template) as url:
        use(monkeypatch, url, DATABASE_ROLE_PREFIX=COPIED)
        yield url


@pytest.fixture
def fresh(upgraded: URL) -> Engine:
    """An engine of a superuser in a database of its own, where every partition is empty."""
    return create_engine(upgraded, poolclass=NullPool)


@pytest.fixture(scope="session")
def roleless(cluster: URL) -> Iterator[str]:
    """The name of a database with all tables, made without roles, for copies that belong to the superuser."""
    with made(cluster) as url:
        upgrade(url, DATABASE_ROLE_PREFIX="off")
        yield str(url.database)


@pytest.fixture(scope="session")
def programs() -> Path:
    """The folder of PostgreSQL's programs: psql and pg_dump are used as users would."""
    return servers.available(Settings.from_environment()).postgres


@pytest.fixture(scope="session")
def migrated(cluster: URL) -> Iterator[URL]:
    """One database with all tables for tests that keep to a symbol of their own; yields the superuser's URL."""
    with made(cluster) as url:
        upgrade(url)
        yield url


@pytest.fixture(scope="session")
def owner(migrated: URL) -> Engine:
    """An engine that may do anything in the database with all tables."""
    return create_engine(migrated, poolclass=NullPool)


@pytest.fixture(scope="session")
def writer(migrated: URL, owner: Engine) -> Iterator[Engine]:
    """An engine of a login that is a writer, and nothing else."""
    login = f"login_{uuid.uuid4().hex[:12]}"
    with owner.begin() as connection:
        connection.execute(text(f'CREATE ROLE {login} LOGIN IN ROLE "{migrated.database}_helios_trading_writer"'))
    yield create_engine(migrated.set(username=login), poolclass=NullPool)
    with owner.begin() as connection:
        connection.execute(text(f"DROP ROLE {login}"))


@pytest.fixture
def symbol() -> str:
    """A symbol that no other test uses."""
    return f"T{uuid.uuid4().hex[:8].upper()}USDT"


@pytest.fixture(scope="session")
def engine(cluster: URL, roleless: str) -> Iterator[Engine]:
    """An engine in one database with all tables and the rows of PARENTS, for tests that leave it as it was."""
    with made(cluster, roleless) as url:
        engine = create_engine(url)
        with engine.begin() as connection:
            for table, values in PARENTS.items():
                insert(connection, table, values)
        yield engine
        engine.dispose()


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    """A transaction in that database, which is rolled back after the test."""
    with engine.connect() as connection:
        connection.begin()
        yield connection


@pytest.fixture
def helios(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """Run the command in this process, from an empty folder; gives exit status, stdout and stderr."""
    folder = tmp_path_factory.mktemp("work")
    monkeypatch.chdir(folder)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["helios", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out, said.err

    return run


@pytest.fixture
def kept_database(seeded_database: URL, valkey: URL) -> URL:
    """A database marked test that holds real rows, beside real keys: what is there has to be there after each test.

    The keys are written anew, because tests of other files empty this Valkey.
    """
    kit.seed_keys(valkey)
    return seeded_database


@pytest.fixture(scope="session")
def seeded_database(cluster: URL) -> Iterator[URL]:
    """A database marked test that holds real rows."""
    with made(cluster) as url:
        upgrade(url)
        with create_engine(url, poolclass=NullPool).begin() as connection:
            environment.mark(connection, "helios_trading", "test")
        kit.seed_rows(url)
        yield url


@pytest.fixture(scope="module")
def mirrored(cluster: URL) -> Iterator[Scene]:
    """Tables with a relay, for all tests of a file, of which each begins with them empty."""
    with scene_of(cluster) as scene:
        yield scene


@pytest.fixture
def scene(mirrored: Scene, valkey: URL) -> Iterator[Scene]:
    """Tables with one instrument and one account, mirrored; afterwards both sides must be alike."""
    mirrored.begin(valkey)
    yield mirrored
    mirrored.end()


@pytest.fixture
def partitions(extension: Extension, monkeypatch: pytest.MonkeyPatch) -> Iterator[URL]:
    """Candles in partitions, for one test, where they can move into the extension that the test's file names."""
    with filled(extension) as url:
        use(monkeypatch, url, DATABASE_ROLE_PREFIX=extension.roles)
        yield url


@pytest.fixture(scope="module")
def converted(extension: Extension) -> Iterator[URL]:
    """Candles that have moved, for all tests of a file that keep to an instrument of their own."""
    with filled(extension) as url, pytest.MonkeyPatch.context() as patch:
        use(patch, url, DATABASE_ROLE_PREFIX=extension.roles)
        convert(url, extension.layout)
        yield url


@pytest.fixture
def moved(converted: URL, extension: Extension, monkeypatch: pytest.MonkeyPatch) -> URL:
    """The same, with the settings for it."""
    use(monkeypatch, converted, DATABASE_ROLE_PREFIX=extension.roles)
    return converted
