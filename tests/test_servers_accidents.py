"""The embedded servers in trouble: kills, stale files, odd names, programs that fail."""

import os
import signal
import stat
import subprocess
from pathlib import Path

import pytest
from chaos_servers import chaos
from own_servers import ask, client, end, postgres, valkey
from server_user import KINDS, User, alive, until

from helios.errors import ServerError
from helios.servers import binaries, locks
from helios.servers.account import server_account


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("victim", ["supervisor", "server"])
def test_after_a_kill_the_next_start_works(used_home: Path, kind: str, victim: str) -> None:
    """Whether supervisor or server is killed, both are gone then, and the next user gets new ones at once."""
    with User(used_home, kind) as user:
        first = user.joined()
        os.kill(first[victim], signal.SIGKILL)
        with User(used_home, kind) as other:
            second = other.joined()
            assert first["server"] != second["server"]
            assert not alive(first["server"])
            until(lambda: not alive(first["supervisor"]))


def test_a_process_joins_again_after_its_server_was_killed(used_home: Path) -> None:
    """Who asks for the URL again gets a server that answers."""
    server = postgres(used_home)
    try:
        server.acquire()
        state = server.place.state()
        assert state is not None
        os.kill(state.supervisor, signal.SIGKILL)
        until(lambda: not alive(state.supervisor))
        assert 1 == ask(server.acquire(), "SELECT 1")
    finally:
        end(server)


def test_a_number_in_a_stale_pid_file_is_never_signalled(used_home: Path) -> None:
    """A pid file that names an unrelated process neither harms that process nor hinders the start."""
    server = postgres(used_home)
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


def test_a_server_that_somebody_else_started_is_left_alone(used_home: Path) -> None:
    """A postmaster started by hand on our cluster is named, not stopped, and no second one is started."""
    server = postgres(used_home)
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


@pytest.mark.parametrize("name", ["blank, comma, per%cent #? Größe", "long-" * 30])
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


def test_a_home_that_was_removed_under_a_user_is_made_again(used_home: Path) -> None:
    """Whoever moves the folder of a running server away costs its data, not the next start."""
    server = postgres(used_home)
    try:
        server.acquire()
        state = server.place.state()
        assert state is not None
        used_home.rename(used_home.with_name("elsewhere"))
        assert 1 == ask(server.acquire(), "SELECT 1")
        until(lambda: not alive(state.server))
    finally:
        end(server)


def test_a_process_that_closed_all_its_files_joins_anew(own_home: Path) -> None:
    """A descriptor that is somebody else's by now is left alone."""
    server = valkey(own_home)
    try:
        server.acquire()
        lease = server.membership.lease
        assert lease is not None
        os.close(lease)
        with (own_home / "other").open("w") as other:
            assert lease == other.fileno()
            assert client(server.acquire()).ping() is True
            assert lease != server.membership.lease
    finally:
        end(server)


def test_kills_at_random_moments_leave_nothing_and_hinder_nobody() -> None:
    """Users and supervisors are killed whenever; the long form of this is the program chaos_servers.py."""
    tally = chaos(3, seed=1)
    assert (0, 0) == (tally["refused"], tally["left"])
    assert 3 == tally["users killed"] + tally["supervisors killed"]
