"""The embedded servers: one for many, gone with the last, kept up on request."""

import ast
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from own_servers import ask, client, end, postgres, settings_for
from server_user import KINDS, User, alive, until
from sqlalchemy import URL

from helios import servers
from helios.errors import SettingError
from helios.servers import locks, supervisor


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
def test_a_server_ends_with_its_last_user_however_that_died(used_home: Path, kind: str) -> None:
    """SIGKILL of the only user ends the server, soon."""
    with User(used_home, kind) as user:
        answer = user.joined()
    took = until(lambda: not alive(answer["server"]) and not alive(answer["supervisor"]))
    assert 5.0 > took


def test_a_forked_process_is_a_user_too(used_home: Path) -> None:
    """The server stays while a fork of the process that joined it lives."""
    with User(used_home, then="fork") as user:
        answer = user.joined()
        user.process.wait()
        with User(used_home) as other:
            assert answer["server"] == other.joined()["server"]
        assert alive(answer["server"])
        os.kill(answer["fork"], signal.SIGKILL)
    until(lambda: not alive(answer["server"]))


def test_joining_again_costs_no_descriptor_and_leaving_gives_all_back(used_home: Path) -> None:
    """However often a process joins, it holds one descriptor, and none after it left."""
    before = len(os.listdir("/dev/fd"))  # noqa: PTH208 - the count is wanted
    for _ in range(2):
        server = postgres(used_home)
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


def test_up_keeps_the_servers_until_down(used_home: Path) -> None:
    """Servers that were brought up stay when the process that did it ends; down ends them."""
    settings = settings_for(used_home)
    assert [False, False] == [each.running for each in servers.status(settings)]
    with User(used_home, then="up") as user:
        answer = user.joined()
        user.leave()
    found = servers.status(settings)
    assert [(True, True, ())] * 2 == [(each.running, each.kept, each.users) for each in found]
    assert ["postgres", "valkey"] == [each.name.split("-")[0] for each in found]
    assert [1, True] == [ask(found[0].url, "SELECT 1"), client(found[1].url).ping()]
    assert alive(answer["server"])
    assert [(False, False, None)] * 2 == [(each.running, each.kept, each.url) for each in servers.down(settings)]
    assert not alive(answer["server"])


def test_down_tells_who_goes_on_using_a_server(used_home: Path) -> None:
    """Down leaves a server to its users and names them; with `now` it ends it under them."""
    settings = settings_for(used_home)
    with User(used_home) as user:
        answer = user.joined()
        status = servers.down(settings)[0]
        assert (True, False, (user.process.pid,)) == (status.running, status.kept, status.users)
        assert alive(answer["server"])
        assert not servers.down(settings, now=True)[0].running
        assert not alive(answer["server"])
        with User(used_home) as other:
            assert answer["server"] != other.joined()["server"]


def test_keeping_up_ends_with_a_restart_of_the_machine(used_home: Path) -> None:
    """A request to stay up from before a restart binds nobody."""
    server = postgres(used_home)
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
