"""The settings: what each variable takes and refuses, the example file, and that no password is ever shown."""

import os
import re
from dataclasses import fields
from pathlib import Path

import pytest
from redis.connection import parse_url
from sqlalchemy import URL

from helios.errors import SettingError
from helios.settings import Settings, cluster_nodes, default_home, masked, variable_of

ROOT = Path(__file__).parent.parent

VALUES = {
    "DATABASE_URL": ("postgres://u@h/d", URL.create("postgresql+psycopg2", "u", host="h", database="d")),
    "DATABASE_MIGRATION_URL": ("postgresql://o@h/d", URL.create("postgresql+psycopg2", "o", host="h", database="d")),
    "DATABASE_READ_URL": ("postgresql://r@s/d", URL.create("postgresql+psycopg2", "r", host="s", database="d")),
    "DATABASE_SCHEMA": ("trading_2", "trading_2"),
    "DATABASE_ROLE_PREFIX": ("desk", "desk"),
    "DATABASE_SSLMODE": ("verify-full", "verify-full"),
    "DATABASE_SSLROOTCERT": ("/etc/ca.pem", Path("/etc/ca.pem")),
    "DATABASE_APPLICATION_NAME": ("grid-bot", "grid-bot"),
    "DATABASE_CONNECT_TIMEOUT": ("3", 3),
    "DATABASE_STATEMENT_TIMEOUT": ("2.5", 2.5),
    "DATABASE_POOL_SIZE": ("7", 7),
    "DATABASE_POOL_OVERFLOW": ("0", 0),
    "DATABASE_POOL_TIMEOUT": ("4", 4.0),
    "DATABASE_POOL_RECYCLE": ("60", 60.0),
    "DATABASE_LOCK_TIMEOUT": ("0.2", 0.2),
    "DATABASE_MIGRATION_WAIT": ("9", 9.0),
    "REDIS_URL": ("rediss://h:6380/1", URL.create("rediss", host="h", port=6380, database="1")),
    "REDIS_TIMEOUT": ("1.5", 1.5),
    "HELIOS_ENVIRONMENT": ("test", "test"),
    "HELIOS_HOME": ("/srv/helios", Path("/srv/helios")),
    "HELIOS_UNDO_PATIENCE": ("1.5", 1.5),
    "HELIOS_POSTGRES_BIN": ("/opt/pg/bin", Path("/opt/pg/bin")),
    "HELIOS_REDIS_BIN": ("/opt/valkey-server", Path("/opt/valkey-server")),
}
HOSTILE_SCHEMAS = [
    'x"; DROP SCHEMA public; --',
    "a" * 64,
    "é" * 40,
    "pg_foo",
    "information_schema",
    "public",
    "",
    " ",
    "with blank",
    " helios",
    "Helios",
    "1st",
    "héllo",
    "a\n",
    "a\x00b",
]


def test_every_setting_has_a_case_here():
    """A setting without a test of its own would go unnoticed."""
    assert {variable_of(each) for each in fields(Settings)} == set(VALUES)


@pytest.mark.parametrize(("variable", "value", "expected"), [(name, *pair) for name, pair in VALUES.items()])
def test_a_variable_is_read(variable, value, expected):
    """Each variable reaches its setting, in the setting's type."""
    name = next(each.name for each in fields(Settings) if variable_of(each) == variable)
    assert expected == getattr(Settings.from_environment({variable: value}), name)


def test_the_example_file_lists_every_setting_with_its_default():
    """The defaults that `.env.example` shows are those of the code, none missing and none extra."""
    lines = (ROOT / ".env.example").read_text().splitlines()
    shown = dict(line.lstrip("#").split("=", 1) for line in lines if re.match(r"#[A-Z_]+=", line))
    examples = ("DATABASE_URL", "REDIS_URL")  # shown with a URL to imitate: their default is the embedded server
    assert {variable_of(each) for each in fields(Settings)} == set(shown)
    given = {name: value for name, value in shown.items() if value and name not in examples}
    assert Settings.from_environment(given) == Settings.from_environment({})


@pytest.mark.parametrize("name", HOSTILE_SCHEMAS)
def test_a_hostile_schema_name_is_refused(name):
    """What is not a plain name of one's own is refused before anything connects, and quoted in the message."""
    with pytest.raises(SettingError, match=re.escape(f"DATABASE_SCHEMA={name!r}")):
        Settings.from_environment({"DATABASE_SCHEMA": name})


@pytest.mark.parametrize("name", ["a", "_", "helios_trading", "a" * 63, "x9"])
def test_a_plain_schema_name_is_taken(name):
    """Letters, digits and underscores up to 63 bytes are fine."""
    assert name == Settings.from_environment({"DATABASE_SCHEMA": name}).database_schema


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("DATABASE_URL", "mysql://h/d"),
        ("DATABASE_URL", "not a url"),
        ("DATABASE_MIGRATION_URL", "postgresql+asyncpg://h/d"),
        ("DATABASE_ROLE_PREFIX", "Desk"),
        ("DATABASE_CONNECT_TIMEOUT", "0"),
        ("DATABASE_CONNECT_TIMEOUT", "1.5"),
        ("DATABASE_POOL_SIZE", "-1"),
        ("DATABASE_POOL_SIZE", "٣"),
        ("DATABASE_LOCK_TIMEOUT", "nan"),
        ("DATABASE_LOCK_TIMEOUT", "0"),
        ("DATABASE_LOCK_TIMEOUT", "0.0001"),
        ("DATABASE_STATEMENT_TIMEOUT", "1e8"),
        ("HELIOS_HOME", "data"),
        ("DATABASE_URL", "postgresql://h:abc/d"),
        ("DATABASE_URL", "postgresql://h1:1,h2:2/d"),
        ("DATABASE_MIGRATION_WAIT", "inf"),
        ("DATABASE_STATEMENT_TIMEOUT", "soon"),
        ("REDIS_URL", "http://h"),
        ("REDIS_URL", "nonsense"),
        ("REDIS_URL", "redis+cluster://"),
        ("REDIS_URL", "redis+cluster://h:1/2"),
        ("REDIS_URL", "redis+cluster://h:1,b:x"),
        ("HELIOS_ENVIRONMENT", "staging"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_by_name(variable, value):
    """The message begins with the variable, and the exit status is that of wrong input."""
    with pytest.raises(SettingError, match=rf"^{variable}=") as caught:
        Settings.from_environment({variable: value})
    assert 2 == caught.value.exit_status


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:s3cret@h/d",
        "postgresql://u@h/d?password=s3cret",
        "postgresql://u@h/d?sslpassword=s3cret",
    ],
)
def test_no_password_is_shown(url):
    """Neither the repr of the settings nor a masked URL nor the message of a refusal holds a password."""
    settings = Settings.from_environment({"DATABASE_URL": url, "REDIS_URL": "redis://:s3cret@h"})
    assert "s3cret" not in repr(settings)
    assert "s3cret" not in str(settings)
    assert masked(settings.database_url).startswith("postgresql://")  # as it may be written in DATABASE_URL
    assert "s3cret" not in masked(settings.database_url)
    with pytest.raises(SettingError) as caught:
        Settings.from_environment({"DATABASE_URL": url.replace("postgresql", "oracle")})
    assert "s3cret" not in str(caught.value)


def test_a_redis_url_survives_reading():
    """What redis-py is handed is what was configured, password and path included."""
    for url in (
        "redis://:p%40ss@h:6379/2",
        "unix:///run/my%20dir/redis.sock?db=3",
        "rediss://u:p@h/0?ssl_cert_reqs=none",
    ):
        read = Settings.from_environment({"REDIS_URL": url}).redis_url
        assert parse_url(url) == parse_url(read.render_as_string(hide_password=False))


def test_a_redis_clusters_url_names_several_nodes():
    """All nodes are kept, also when the URL that was read is written and read again; the password is not shown."""
    settings = Settings.from_environment({"REDIS_URL": "rediss+cluster://u:s3cret@h:1,[::1]:2,k?ssl_cert_reqs=none"})
    again = settings.redis_url.render_as_string(hide_password=False)
    assert ["[::1]:2", "k"] == cluster_nodes(settings.redis_url)
    assert settings == Settings.from_environment({"REDIS_URL": again})
    assert "s3cret" not in repr(settings)


def test_an_empty_variable_means_the_default():
    """`DATABASE_URL=` in a .env file is not a URL of nothing; only a schema is never empty."""
    assert Settings.from_environment({"DATABASE_URL": "", "REDIS_URL": " "}) == Settings.from_environment({})


def test_the_environment_wins_over_the_file(monkeypatch, tmp_path):
    """A `.env` file of the current folder is read, and what the environment says wins."""
    (tmp_path / ".env").write_text("DATABASE_SCHEMA=from_file\nDATABASE_POOL_SIZE=9\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_SCHEMA", "from_environment")
    monkeypatch.delenv("DATABASE_POOL_SIZE", raising=False)
    settings = Settings.from_environment()
    assert "from_environment" == settings.database_schema
    assert 9 == settings.database_pool_size
    assert "DATABASE_POOL_SIZE" not in os.environ


def test_the_migration_url_falls_back_to_the_database():
    """Where no separate owner connection is configured, migrations use DATABASE_URL."""
    one = Settings.from_environment({"DATABASE_URL": "postgresql://a@h/d"})
    both = Settings.from_environment(
        {"DATABASE_URL": "postgresql://a@h/d", "DATABASE_MIGRATION_URL": "postgres://o@h/d"}
    )
    assert ("a", "o") == (one.migration_url.username, both.migration_url.username)


def test_root_keeps_its_servers_outside_home():
    """The unprivileged server of root could not enter a closed HOME."""
    home = default_home()
    assert (home == Path("/var/lib/helios")) == (os.geteuid() == 0)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://bot:se@cret:55@localhost/x",
        "postgresql://bot:p@se@cret@127.0.0.1:25999/trading",
        "postgresql://bot:Top%se@cret@/x@127.0.0.1/d",
        "redis://:se@cret:77@127.0.0.1/0",
        "redis+cluster://:se@cret:77@127.0.0.1:1,h:2",
    ],
)
def test_a_password_that_was_not_encoded_is_not_shown(url):
    """Where it ends nobody can tell, so nothing of the URL is quoted, and the remedy is."""
    variable = "REDIS_URL" if url.startswith("redis") else "DATABASE_URL"
    with pytest.raises(SettingError, match="percent-encode") as caught:
        Settings.from_environment({variable: url})
    assert "cret" not in str(caught.value)


def test_passwords_among_parameters_are_masked_however_written():
    """Libpq's names are lower-case, but a slip must not show."""
    settings = Settings.from_environment({"DATABASE_URL": "postgresql://u@h/d?PASSWORD=s3cret"})
    assert "s3cret" not in repr(settings)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"DATABASE_SCHEMA plain1\n", r"line 1 \(DATABASE_SCHEMA \.\.\.\) is not NAME=value"),
        (b"HELIOS_ENVIRONMENT=test\nnonsense here s3cret\n", r"line 2 \(nonsense \.\.\.\) is not NAME=value"),
        (b"DATABASE_SCHEMA=\xff\xfe\n", "cannot be read"),
    ],
)
def test_a_broken_file_is_refused(content, match, monkeypatch, tmp_path):
    """Going on with the defaults might write to another database than the one that was meant."""
    (tmp_path / ".env").write_bytes(content)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingError, match=match) as caught:
        Settings.from_environment()
    assert "s3cret" not in str(caught.value)


def test_a_well_formed_file_is_read_in_all_its_forms(monkeypatch, tmp_path):
    """export, quotes, comments, Windows line ends and a byte order mark are fine."""
    (tmp_path / ".env").write_bytes(
        b"\xef\xbb\xbfexport DATABASE_SCHEMA='desk'\r\n# a comment\r\n\r\nDATABASE_POOL_SIZE=\"7\"\r\n"
    )
    monkeypatch.chdir(tmp_path)
    for name in ("DATABASE_SCHEMA", "DATABASE_POOL_SIZE"):
        monkeypatch.delenv(name, raising=False)
    settings = Settings.from_environment()
    assert ("desk", 7) == (settings.database_schema, settings.database_pool_size)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_file_of_another_user_is_refused(monkeypatch, tmp_path):
    """It could name programs that would then run as whoever started Helios."""
    (tmp_path / ".env").write_text("HELIOS_POSTGRES_BIN=/tmp/evil\n")
    os.chown(tmp_path / ".env", 65534, 65534)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingError, match="belongs to another user"):
        Settings.from_environment()
