"""What the environment, or a `.env` file, says: each variable read once, checked, and named in `.env.example`."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from io import StringIO
from pathlib import Path
from typing import Any, Literal, Self, cast

import platformdirs
from dotenv import dotenv_values, find_dotenv
from dotenv.parser import parse_stream
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from helios.errors import SettingError

Environment = Literal["development", "test", "production"]
ENVIRONMENTS: tuple[Environment, ...] = ("development", "test", "production")
RESERVED_SCHEMAS = ("public", "information_schema")
SECRET_PARAMETERS = ("password", "sslpassword", "passfile")
SHORTEST_HIDDEN = 4
CLUSTER_URL = "redis+cluster://user:password@host:6379,host:6379"


def masked(url: URL) -> str:
    """Write a URL for people, without the driver: its passwords, also those among the parameters, show as `***`."""
    hidden = {name: "***" for name in url.query if name.lower() in SECRET_PARAMETERS}
    plain = url.set(drivername=url.drivername.partition("+")[0])
    return plain.update_query_dict(hidden).render_as_string(hide_password=True)


def hide(message: str, url: URL) -> str:
    """Take every password of a URL out of a message."""
    secrets = [url.password, *(value for name, value in url.query.items() if name.lower() in SECRET_PARAMETERS)]
    for secret in secrets:
        # a shorter one stands in many a word, and its mask would tell it
        if isinstance(secret, str) and len(secret) >= SHORTEST_HIDDEN:
            message = message.replace(secret, "***")
    return message


def plain_name(value: str) -> str:
    """Check a name that PostgreSQL takes without quotes: lower-case letters, digits, underscores; at most 63 bytes."""
    if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", value):
        raise ValueError("is not a plain PostgreSQL name: use up to 63 lower-case letters, digits and underscores")
    if value.startswith("pg_"):
        raise ValueError("begins with pg_, which PostgreSQL keeps for itself: choose another name")
    return value


def schema_name(value: str) -> str:
    """Check the name of Helios's schema: a plain name that is neither `public` nor PostgreSQL's own."""
    if value in RESERVED_SCHEMAS:
        raise ValueError("is not a schema that Helios may call its own: choose another name")
    return plain_name(value)


def any_url(value: str, example: str) -> URL:
    """Read a URL; what cannot be read is not quoted, because a password may be anywhere in it."""
    try:
        url = make_url(value)
    except (ArgumentError, ValueError):
        raise ValueError(f"is not a URL: write {example}, with @ : / ? in the password percent-encoded") from None
    if any("@" in part for part in (url.host or "", url.database or "")):
        raise ValueError("is not clear: percent-encode @ : / ? in the password (@ is %40)")
    return url


def postgres_url(value: str) -> URL:
    """Read a PostgreSQL URL; however it begins, sessions use psycopg2 and asynchronous ones psycopg 3."""
    url = any_url(value, "postgresql://user:password@host:5432/database")
    if url.drivername not in ("postgres", "postgresql", "postgresql+psycopg2", "postgresql+psycopg"):
        raise ValueError(f"names the driver {url.drivername!r}: write postgresql://")
    return url.set(drivername="postgresql+psycopg2")


def redis_url(value: str) -> URL:
    """Read a Redis URL: `redis://`, `rediss://` (TLS), `unix://`, or a Redis Cluster's."""
    if re.match(r"[a-z]*\+cluster:", value):
        return cluster_url(value)
    url = any_url(value, "redis://user:password@host:6379/0")
    if url.drivername not in ("redis", "rediss", "unix"):
        raise ValueError(f"begins with {url.drivername}://: write redis://, rediss://, unix:// or redis+cluster://")
    return url


def cluster_url(value: str) -> URL:
    """Read the URL of a Redis Cluster, which names some of its nodes; all but the first go to the parameter `host`."""
    found = re.fullmatch(r"(rediss?\+cluster://(?:[^@/?]*@)?)([^@/?,]+)((?:,[^@/?,]+)*)([/?].*)?", value)
    if not found:
        raise ValueError(f"is not a URL of a Redis Cluster: write {CLUSTER_URL}, with @ : / ? in the password "
                         "percent-encoded")  # fmt: skip
    url = any_url(found[1] + found[2] + (found[4] or ""), CLUSTER_URL)
    others = [*cluster_nodes(url), *found[3].split(",")[1:]]
    if url.database not in (None, "", "0") or url.query.get("db", "0") != "0":
        raise ValueError("names a database: a Redis Cluster has only number 0, leave it out")
    if wrong := [each for each in others if not re.fullmatch(r"(\[[^\]]+\]|[^:\s]+)(:\d{1,5})?", each)]:
        raise ValueError(f"names the node {wrong[0]!r}: write host:port")
    return url.update_query_dict({"host": others}) if others else url


def cluster_nodes(url: URL) -> list[str]:
    """Give the nodes of a Redis Cluster's URL but the first, as host:port."""
    others = url.query.get("host", ())
    return [others] if isinstance(others, str) else list(others)


def environment_name(value: str) -> Environment:
    """Check the name of an environment."""
    if value not in ENVIRONMENTS:
        raise ValueError(f"is not an environment: choose {', '.join(ENVIRONMENTS)}")
    return value


def whole(minimum: int) -> Callable[[str], int]:
    """Make a reader of whole numbers from `minimum` up."""

    def read(value: str) -> int:
        if not value.isascii() or not value.isdigit() or int(value) < minimum:
            raise ValueError(f"is not a whole number from {minimum} up")
        return int(value)

    return read


def seconds(value: str) -> float:
    """Read a number of seconds."""
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    # Below a millisecond PostgreSQL would read "no limit"; above three weeks its milliseconds do not fit.
    if not 0.001 <= number <= 2e6:  # noqa: PLR2004
        raise ValueError("is not a number of seconds from 0.001 to 2000000")
    return number


def folder(value: str) -> Path:
    """Read the path of a folder; a relative one would be another folder wherever a program is started."""
    path = Path(value).expanduser()
    if not path.is_absolute():
        raise ValueError("is not an absolute path: begin it with / or ~/")
    return path


def default_home() -> Path:
    """Name the folder of the embedded servers.

    For root it stands outside HOME, because PostgreSQL refuses to run as root and the user it runs as instead
    could not enter a HOME that is closed to others.
    """
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        return Path("/var/lib/helios")
    return platformdirs.user_state_path("helios")


def setting(variable: str, read: Callable[[str], object], default: object = None, *, empty: bool = False) -> Any:  # noqa: ANN401 - a dataclass field stands for a value of its own type
    """Declare a setting; `empty` says that an empty value is handed to `read` instead of meaning the default."""
    metadata = {"variable": variable, "read": read, "empty": empty}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of one process; durations are in seconds. The repr holds no password."""

    database_url: URL | None = setting("DATABASE_URL", postgres_url)
    database_migration_url: URL | None = setting("DATABASE_MIGRATION_URL", postgres_url)
    database_read_url: URL | None = setting("DATABASE_READ_URL", postgres_url)
    database_schema: str = setting("DATABASE_SCHEMA", schema_name, "helios_trading", empty=True)
    database_role_prefix: str | None = setting("DATABASE_ROLE_PREFIX", plain_name)
    database_sslmode: str | None = setting("DATABASE_SSLMODE", str)
    database_sslrootcert: Path | None = setting("DATABASE_SSLROOTCERT", Path)
    database_application_name: str = setting("DATABASE_APPLICATION_NAME", str, "helios")
    database_connect_timeout: int = setting("DATABASE_CONNECT_TIMEOUT", whole(1), 5)
    database_statement_timeout: float | None = setting("DATABASE_STATEMENT_TIMEOUT", seconds)
    database_pool_size: int = setting("DATABASE_POOL_SIZE", whole(1), 5)
    database_pool_overflow: int = setting("DATABASE_POOL_OVERFLOW", whole(0), 10)
    database_pool_timeout: float = setting("DATABASE_POOL_TIMEOUT", seconds, 10.0)
    database_pool_recycle: float = setting("DATABASE_POOL_RECYCLE", seconds, 1800.0)
    database_lock_timeout: float = setting("DATABASE_LOCK_TIMEOUT", seconds, 0.5)
    database_migration_wait: float = setting("DATABASE_MIGRATION_WAIT", seconds, 300.0)
    redis_url: URL | None = setting("REDIS_URL", redis_url)
    redis_timeout: float = setting("REDIS_TIMEOUT", seconds, 5.0)
    helios_environment: Environment = setting("HELIOS_ENVIRONMENT", environment_name, "development")
    helios_home: Path = setting("HELIOS_HOME", folder, default_home)
    helios_undo_patience: float = setting("HELIOS_UNDO_PATIENCE", seconds, 30.0)
    helios_postgres_bin: Path | None = setting("HELIOS_POSTGRES_BIN", Path)
    helios_redis_bin: Path | None = setting("HELIOS_REDIS_BIN", Path)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Read the settings from the environment, and what it leaves out from the nearest `.env` file.

        Raises:
            SettingError: a variable holds what Helios cannot use; the message quotes it, without any password.

        """
        if environ is None:
            environ = {**from_file(find_dotenv(usecwd=True)), **os.environ}
        values: dict[str, object] = {}
        for each in fields(cls):
            variable, given = variable_of(each), environ.get(variable_of(each))
            if given is None or (given.strip() == "" and not each.metadata["empty"]):
                continue
            try:
                values[each.name] = each.metadata["read"](given)
            except ValueError as error:
                shown = "(not shown: it may hold a password)" if variable.endswith("_URL") else repr(given)
                raise SettingError(f"{variable}={shown} {error}") from None
        return cls(**cast("dict[str, Any]", values))

    @property
    def migration_url(self) -> URL | None:
        """The URL that migrations use: DATABASE_MIGRATION_URL, else DATABASE_URL; None means the embedded server."""
        return self.database_migration_url or self.database_url

    def __repr__(self) -> str:
        """Show every setting as `.env` would hold it, passwords masked."""
        shown = []
        for each in fields(self):
            value = getattr(self, each.name)
            shown.append(f"{each.name}={masked(value)!r}" if isinstance(value, URL) else f"{each.name}={value!r}")
        return f"Settings({', '.join(shown)})"


def from_file(path: str) -> dict[str, str]:
    """Read a `.env` file, if there is one; what it says can start programs, so it must be the user's own.

    Raises:
        SettingError: it cannot be read, holds a line that says nothing, or belongs to another user.

    """
    if not path:
        return {}
    try:
        with Path(path).open(encoding="utf-8-sig") as stream:
            owner = os.fstat(stream.fileno()).st_uid
            text = stream.read()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"{path} cannot be read ({error}): mend it, or remove it") from None
    if hasattr(os, "geteuid") and owner not in (0, os.geteuid()):
        raise SettingError(f"{path} belongs to another user: take it over, or work in a folder of your own")
    for binding in parse_stream(StringIO(text)):
        if binding.error or (binding.key is not None and binding.value is None):
            line = binding.original.string.strip()
            named = re.match(r"\w*", line)
            raise SettingError(f"{path} line {binding.original.line} ({named and named[0]} ...) is not NAME=value")
    return {name: value for name, value in dotenv_values(stream=StringIO(text)).items() if value is not None}


def variable_of(each: "Field[Any]") -> str:
    """Name the environment variable behind a field of Settings."""
    return str(each.metadata["variable"])
