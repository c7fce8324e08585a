"""The servers that serve where no URL is set: joined for as long as a process lives, or kept up until `down`."""

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sqlalchemy.engine import URL

from helios.errors import HeliosError, ServerError, SettingError
from helios.servers import locks
from helios.servers.binaries import find_postgres, find_valkey, version_of
from helios.servers.place import Place
from helios.servers.postgres import Postgres, postgres_address
from helios.servers.valkey import Valkey, valkey_address
from helios.settings import Settings

SURE = 3  # looks
KINDS = ("postgres", "valkey", "redis")

Joined = TypeVar("Joined", Postgres, Valkey)
_joined: dict[Path, Postgres | Valkey] = {}


@dataclass(frozen=True)
class Available:
    """The programs that would serve."""

    postgres: Path
    postgres_version: str
    valkey: Path
    valkey_version: str


@dataclass(frozen=True)
class Status:
    """What is known of one server."""

    name: str
    running: bool
    kept: bool
    version: str | None
    url: URL | None
    data: Path
    users: tuple[int, ...] | None
    """The processes that use it, as far as this user may see them; None where the system does not tell."""


def available(settings: Settings) -> Available:
    """Find the programs that would serve.

    Raises:
        SettingError: HELIOS_POSTGRES_BIN or HELIOS_REDIS_BIN names something else.
        ServerError: there are none; the message says where they were sought and what to do.

    """
    _refuse_windows()
    postgres, valkey = find_postgres(settings.helios_postgres_bin), find_valkey(settings.helios_redis_bin)
    return Available(postgres, version_of(postgres / "postgres"), valkey, version_of(valkey))


def database_url(settings: Settings) -> URL:
    """Join the embedded PostgreSQL until this process ends, start it if need be, and give the superuser's URL.

    Raises:
        SettingError: this is production, or a setting names what cannot be used.
        ServerError: it cannot be found, started or joined.

    """
    _refuse_production(settings, "DATABASE_URL")
    return _join(_postgres(settings)).acquire()


def redis_url(settings: Settings) -> URL:
    """Join the embedded Valkey until this process ends, start it if need be, and give its URL.

    Raises:
        SettingError: this is production, or a setting names what cannot be used.
        ServerError: it cannot be found, started or joined.

    """
    _refuse_production(settings, "REDIS_URL")
    return _join(_valkey(settings)).acquire()


def up(settings: Settings) -> tuple[Status, ...]:
    """Start the servers and keep them up, without users too, until `down` or a restart of the machine."""
    _refuse_production(settings, "DATABASE_URL")
    with _told(settings):
        for server in (_postgres(settings), _valkey(settings)):
            server.acquire()
            try:
                server.place.keep(wanted=True)
            finally:
                server.release()
    return status(settings)


def down(settings: Settings, *, now: bool = False) -> tuple[Status, ...]:
    """Let the servers end when their last user is gone, or `now`; wait for those without users.

    A server that is still running afterwards has users, which its status names as far as they can be seen.
    """
    _refuse_windows()
    with _told(settings):
        places = [place for place in _places(settings) if place.folder.exists()]
        for place in places:
            place.check()
            place.keep(wanted=False)
            if now and locks.taken(place.alive):
                (place.folder / "stop").touch()
        for place in places:
            _await_end(place, now=now)
    return status(settings)


def status(settings: Settings) -> tuple[Status, ...]:
    """Tell what is known of the servers, without joining or starting any."""
    _refuse_windows()
    with _told(settings):
        return tuple(_status(place) for place in _places(settings))


@contextlib.contextmanager
def _told(settings: Settings) -> Iterator[None]:
    """Turn what the system refuses into a sentence."""
    try:
        yield
    except OSError as error:
        raise ServerError(
            f"HELIOS_HOME={str(settings.helios_home)!r} cannot be used ({error.strerror}): name a folder of your own"
        ) from None


def _status(place: Place) -> Status:
    if not place.folder.exists():
        return Status(place.name, running=False, kept=False, version=None, url=None, data=place.data, users=())
    place.check()
    state = place.state()
    url = None
    if state is not None:
        url = postgres_address(state) if place.name.startswith("postgres") else valkey_address(state)
    users = locks.holders(place.lease)
    if users is not None and state is not None:
        users = tuple(pid for pid in users if pid != state.supervisor)
    version = state.version if state else None
    return Status(place.name, state is not None, place.kept(), version, url, place.data, users)


def _await_end(place: Place, *, now: bool) -> None:
    """Wait until a server is gone, unless it has users: those decide."""
    seen = 0
    while not now and locks.taken(place.alive) and seen < SURE:
        # in use is what others share; one moment's look may have met another's look
        in_use = not locks.unused(place.lease) and not locks.taken(place.lease)
        seen = seen + 1 if in_use else 0
        time.sleep(locks.STEP)
    if seen < SURE:
        place.wait_ended()


def _places(settings: Settings) -> list[Place]:
    """List the servers that have a folder, and those that would be started."""
    names = []
    for make in (_postgres, _valkey):
        try:
            names.append(make(settings).place.name)
        except HeliosError:
            continue
    home = settings.helios_home
    for kind in KINDS:
        names += sorted(each.name for each in home.glob(f"{kind}-*") if each.name not in names)
    return [Place(home, name) for name in names]


def _postgres(settings: Settings) -> Postgres:
    _refuse_windows()
    return Postgres(settings.helios_home, binaries=settings.helios_postgres_bin)


def _valkey(settings: Settings) -> Valkey:
    _refuse_windows()
    return Valkey(settings.helios_home, binaries=settings.helios_redis_bin)


def _join(server: Joined) -> Joined:
    """Give the server that this process joined before, if it did."""
    return _joined.setdefault(server.place.folder, server)  # type: ignore[return-value]  # a folder is of one kind


def _refuse_production(settings: Settings, variable: str) -> None:
    if settings.helios_environment == "production":
        raise SettingError(
            f"HELIOS_ENVIRONMENT='production' and {variable} is not set: embedded servers are for development, "
            f"set {variable}"
        )


def _refuse_windows() -> None:
    if sys.platform == "win32":
        raise ServerError("embedded servers need Linux or macOS: set DATABASE_URL and REDIS_URL")
