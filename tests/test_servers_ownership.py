"""Whose the embedded servers are: root's, a normal user's, and nobody else's."""

import os
import shutil
import socket
import stat
import threading
from pathlib import Path

import pytest
from own_servers import end, postgres, settings_for, valkey
from server_user import KINDS, NOBODY, OUTSIDER, User

from helios import servers
from helios.errors import ServerError
from helios.servers.account import server_account
from helios.servers.place import Place

REFUSED = 13
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


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


def test_a_home_that_is_not_writable_is_told_in_one_sentence(own_home: Path) -> None:
    """A user who may not write to HELIOS_HOME hears that, and what to do."""
    own_home.mkdir(mode=0o755)
    with User(own_home, uid=NOBODY) as user:
        error = user.answer()["error"]
    assert f"HELIOS_HOME='{own_home}' cannot be used (Permission denied): name a folder that you may write to" == error


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


def test_a_home_closed_to_the_unprivileged_user_is_refused(own_home: Path) -> None:
    """Root's servers cannot live below a closed folder; nothing is opened up for them."""
    own_home.mkdir(mode=0o700)
    with pytest.raises(ServerError, match=r"cannot be entered by the user .*: name a folder outside closed ones"):
        postgres(own_home / "below").acquire()
    assert 0o700 == stat.S_IMODE(own_home.stat().st_mode)


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


def test_a_home_that_cannot_be_entered_is_told_in_one_sentence(own_home: Path) -> None:
    """A user asking about servers below a folder closed to him hears that."""
    own_home.mkdir(mode=0o700)
    with User(own_home / "below", uid=NOBODY, then="status") as user:
        error = user.answer()["error"]
    assert f"HELIOS_HOME='{own_home}/below' cannot be used (Permission denied): name a folder of your own" == error


def test_copies_of_programs_are_not_taken_from_others(own_home: Path) -> None:
    """Who makes the folder of the copies before root does not get root to run his programs."""
    (own_home / "binaries").mkdir(parents=True)
    os.chown(own_home / "binaries", OUTSIDER, OUTSIDER)
    closed = own_home.parent / "closed"
    closed.mkdir(mode=0o700)
    server = servers.Valkey(own_home, binaries=copy_programs(valkey(own_home), closed))
    with pytest.raises(ServerError, match=f"binaries' belongs to the user number {OUTSIDER}"):
        server.acquire()


def connects_as(uid: int, sockets: str) -> bool:
    """Tell whether a user can connect to the socket in a folder; its name is no secret."""
    (path,) = (each for each in Path(sockets).iterdir() if each.is_socket())
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            socket.socket(socket.AF_UNIX).connect(str(path))
            status = 0
        except PermissionError:
            status = REFUSED
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in {0, REFUSED}
    return status == 0


def copy_programs(server: servers.Postgres | servers.Valkey, target: Path) -> Path:
    """Copy a server's programs with all they need; gives what chooses them there."""
    if isinstance(server, servers.Valkey):
        return Path(shutil.copy2(server.program, target))
    top, parts = server.parts()
    for part in parts:
        (target / part).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (top / part).is_dir() else shutil.copy2)(top / part, target / part)
    return target / server.programs.resolve().relative_to(top)


def test_a_folder_that_another_starter_is_just_making_is_waited_for(own_home):
    """Between making a folder and opening it to the server's user there is a moment; who meets it does not refuse."""
    own_home.mkdir(mode=0o700)
    opening = threading.Timer(0.2, own_home.chmod, (0o755,))
    opening.start()
    Place(own_home, "postgres-18").make(server_account(own_home / "data"))
    opening.join()


def test_a_folder_that_stays_closed_is_refused(own_home):
    """The wait has an end."""
    own_home.mkdir(mode=0o700)
    with pytest.raises(ServerError, match="cannot be entered by the user"):
        Place(own_home, "postgres-18").make(server_account(own_home / "data"))
