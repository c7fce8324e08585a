"""The helios command: every command has help with an example, tables and JSON on stdout, one sentence for a failure."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import make_klines
import pytest
from installation import (
    COPIED,
    HEAD,
    REVISIONS,
    ROOT,
    Run,
    engine_of,
    login,
    made,
    run_sql,
    start,
    upgrade,
    use,
    variables,
)
from mirroring import beating
from sqlalchemy import URL

from helios import cli, db, mirrors
from helios.cli import doctor
from helios.cli.output import readable
from helios.settings import Settings
from helios.testing.run import Run as TrialRun
from helios.testing.subject import subject_of

MONTH = make_klines.datetime(2025, 1, 1, tzinfo=make_klines.UTC)


@pytest.fixture
def installed(upgraded: URL, monkeypatch: pytest.MonkeyPatch) -> URL:
    """An upgraded database, and what this process believes it to be."""
    monkeypatch.setenv("HELIOS_ENVIRONMENT", "development")
    return upgraded


@pytest.fixture
def month(tmp_path: Path) -> make_klines.Made:
    """Three hundred hourly candles with a gap and three bad rows."""
    return make_klines.make_file(
        tmp_path / "spot", "BTCUSDT", "1h", start=MONTH, rows=300, defects=("gap", "zero-price")
    )


def commands(group: click.Command = cli.helios, *above: str) -> list[tuple[tuple[str, ...], click.Command]]:
    """List every command with its path."""
    if not isinstance(group, click.Group):
        return [(above, group)]
    context = click.Context(group)
    found = [(above, group)] if above else []
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        found += commands(command, *above, name)
    return found


@pytest.mark.parametrize("path", [" ".join(path) for path, _ in commands()])
def test_every_command_has_help_with_an_example(path, helios):
    """`--help` tells what it does, every option has a help text, and an example ends it."""
    status, said, _ = helios(*path.split(), "--help")
    command = dict(commands())[tuple(path.split())]
    assert 0 == status
    assert said.strip().splitlines()[-1].strip().startswith(f"Example: helios {path}")
    assert (command.help or "").strip()
    assert all(each.help for each in command.params if isinstance(each, click.Option))


@pytest.mark.parametrize(
    "path", [" ".join(path) for path, command in commands() if not isinstance(command, click.Group)]
)
def test_the_readme_names_every_command(path):
    """A command that the README does not name will not be found."""
    assert f"helios {path}" in (ROOT / "README.md").read_text()


def test_an_unknown_command_is_refused(helios):
    """Exit status 2 and the word that was not understood."""
    status, said, talk = helios("fly")
    assert (2, "") == (status, said)
    assert "fly" in talk


def test_a_wrong_setting_is_one_sentence(helios, monkeypatch):
    """Exit status 2, nothing on stdout, no traceback."""
    monkeypatch.setenv("DATABASE_SCHEMA", "Helios-1")
    status, said, talk = helios("doctor")
    assert (2, "") == (status, said)
    assert talk.startswith("helios: DATABASE_SCHEMA='Helios-1' is not a plain PostgreSQL name")
    assert 1 == len(talk.strip().splitlines())


# --- klines --------------------------------------------------------------------------------------------------------


def test_load_list_and_show(helios, installed, month, tmp_path):
    """A file is loaded once; the list tells rows and gaps; show prints the newest candles."""
    rejects = str(tmp_path / "rejects")
    status, said, _ = helios("klines", "load", "--rejects", rejects, "--json", str(month.path))
    [loaded] = json.loads(said)
    assert (0, month.good, month.rejected) == (status, loaded["written"], loaded["rejected"])
    status, said, _ = helios("klines", "load", "--rejects", rejects, "--again", "--json", str(month.path))
    assert (0, "compared") == (json.loads(said)[0]["written"], json.loads(said)[0]["mode"])
    status, said, _ = helios("klines", "list", "--json")
    [series] = json.loads(said)
    assert (month.good, month.missing) == (series["rows"], series["missing"])
    status, said, _ = helios("klines", "show", "BTCUSDT", "1h", "--last", "3")
    assert 4 == len(said.strip().splitlines())
    assert "2025-01-13 11:00" in said


def test_initial_and_jobs(helios, installed, month, tmp_path):
    """An initial load by the command fills the partition; a second one is refused in one sentence."""
    rejects = ("--rejects", str(tmp_path / "rejects"))
    status, said, _ = helios(
        "klines", "load", "--initial", *rejects, "--jobs", "2", "--tier", "fast", "--json", str(month.path)
    )
    assert (0, "initial") == (status, json.loads(said)[0]["mode"])
    status, _, talk = helios("klines", "load", "--initial", "--again", *rejects, str(month.path))
    assert 2 == status
    assert "holds rows, and --initial fills only empty ones: load without --initial" in talk.replace("\n", " ")


def test_a_load_tells_what_is_wrong_with_a_file(helios, installed, month, tmp_path):
    """Reasons and the place of the rejected rows go to stderr; the rows are in the file."""
    _, said, talk = helios("klines", "load", "--rejects", str(tmp_path / "rejects"), str(month.path))
    assert "BTCUSDT-1h-2025-01.csv" in said
    assert "rows rejected: price not positive" in talk
    [rejects] = (tmp_path / "rejects").iterdir()
    assert month.rejected == len(rejects.read_text().strip().splitlines()) - 1


def test_a_folder_is_loaded_and_its_other_files_passed_by(helios, installed, month):
    """A folder's klines are found; what is something else is named, and does not stop the rest."""
    (month.path.parent / "notes.json").write_text("{}")
    (month.path.parent / "readme.txt").write_text("hello")
    status, said, talk = helios("klines", "load", "--json", str(month.path.parent))
    assert (0, 1) == (status, len(json.loads(said)))
    assert "notes.json does not tell its symbol" in talk


def test_an_empty_folder_is_refused(helios, installed, tmp_path):
    """Nothing to load is said, not passed over."""
    status, _, talk = helios("klines", "load", str(tmp_path))
    assert 2 == status
    assert "holds no files that end in" in talk


def test_a_file_that_cannot_be_used_does_not_stop_the_others(helios, installed, month, tmp_path):
    """The good file is loaded, the bad one is one sentence, and the exit status says that something failed."""
    bad = tmp_path / "ETHUSDT-1h-2025-01.csv"
    bad.write_bytes(bytes(range(256)) * 50)
    status, said, talk = helios("klines", "load", "--market", "spot", "--json", str(bad), str(month.path))
    assert (2, ["BTCUSDT-1h-2025-01.csv"]) == (status, [each["file"] for each in json.loads(said)])
    assert "ETHUSDT-1h-2025-01.csv" in talk


def test_strict_refuses_a_file_with_a_bad_row(helios, installed, month):
    """Nothing of the file is written."""
    status, _, talk = helios("klines", "load", "--strict", str(month.path))
    assert 2 == status
    assert "line" in talk
    assert "[]" == helios("klines", "list", "--json")[1].strip()


def test_names_that_do_not_tell_are_told_by_options(helios, installed, month, tmp_path):
    """Symbol, interval, market and exchange come from options where the name says nothing."""
    plain = tmp_path / "candles.csv"
    plain.write_bytes(month.path.read_bytes())
    told = ("--symbol", "XRPUSDT", "--interval", "1h", "--market", "um", "--exchange", "other")
    assert 0 == helios("klines", "load", *told, str(plain))[0]
    [series] = json.loads(helios("klines", "list", "--json")[1])
    assert ("other", "um", "XRPUSDT", "1h") == tuple(
        series[each] for each in ("exchange", "market", "symbol", "interval")
    )
    status, _, talk = helios("klines", "load", str(plain))
    assert 2 == status
    assert "--symbol" in talk


def test_show_asks_which_instrument_is_meant(helios, installed, month):
    """A symbol on two markets needs --market; one that is nowhere is said to be."""
    for market in ("spot", "um"):
        assert 0 == helios("klines", "load", "--market", market, str(month.path))[0]
    status, _, talk = helios("klines", "show", "BTCUSDT", "1h")
    assert 2 == status
    assert "binance spot, binance um: choose with --exchange and --market" in talk
    assert 0 == helios("klines", "show", "BTCUSDT", "1h", "--market", "um")[0]
    assert 2 == helios("klines", "show", "DOGEUSDT", "1h")[0]
    assert "has no klines at 1m" in helios("klines", "show", "BTCUSDT", "1m", "--market", "um")[2]


def test_before_the_first_upgrade_each_command_says_so(helios, database, month, monkeypatch):
    """One sentence with the remedy, no traceback."""
    use(monkeypatch, database)
    for arguments in (("klines", "list"), ("klines", "load", str(month.path)), ("klines", "show", "BTCUSDT", "1h")):
        status, _, talk = helios(*arguments)
        assert 1 == status
        assert "helios upgrade" in talk
        assert "Traceback" not in talk


def test_a_reader_that_leaves_early_is_told_nothing(installed):
    """`helios klines list | head -0` ends with status 1 and without a word."""
    process = start("helios.cli", "klines", "list", "--json", env=variables(installed))
    assert process.stdout is not None
    process.stdout.close()
    assert 1 == process.wait(60)
    assert "" == process.stderr.read()
    process.stderr.close()


def test_cells_are_readable():
    """Moments to the minute, whole numbers grouped, nothing as nothing."""
    assert ["2025-01-01 00:00", "1,234", "yes", "", "1, 2", "x"] == [
        readable(each) for each in (MONTH, 1234, True, None, [1, 2], "x")
    ]


# --- database ------------------------------------------------------------------------------------------------------


def test_upgrade_and_downgrade(helios, database, monkeypatch):
    """The commands do what Alembic's do; a downgrade of an unmarked database is refused with one sentence."""
    use(monkeypatch, database)
    assert 0 == helios("upgrade")[0]
    status, _, talk = helios("downgrade", "base")
    assert 1 == status
    assert "counts as production" in talk
    helios("environment", "set", "development")
    assert 0 == helios("downgrade", "base")[0]


def test_printed_sql_goes_to_stdout(helios, database, monkeypatch):
    """`helios upgrade --sql` can be piped."""
    use(monkeypatch, database)
    status, said, _ = helios("upgrade", "--sql")
    assert 0 == status
    assert "CREATE TABLE instruments" in said


def test_grants_are_complete_after_an_upgrade(helios, installed):
    """Nothing is missing, and where something is, it is named with whether this login may add it."""
    assert "[]" == helios("grants", "--json")[1].strip()
    run_sql(installed, f'REVOKE SELECT ON helios_trading.orders FROM "{COPIED}_reader"')
    [row] = json.loads(helios("grants", "--json")[1])
    assert ("GRANT SELECT ON TABLE helios_trading.orders" in row["missing"], True) == (True, row["this_login_may"])
    assert helios("grants", "--sql")[1].strip().endswith(";")


# --- doctor --------------------------------------------------------------------------------------------------------


@pytest.fixture
def healthy(cluster: URL, roleless: str, valkey: URL, monkeypatch: pytest.MonkeyPatch, helios: Run) -> Iterator[URL]:
    """An installation that lacks nothing, and shares no role with another database."""
    with made(cluster, roleless) as url:
        redis = valkey.render_as_string(hide_password=False)
        use(monkeypatch, url, HELIOS_ENVIRONMENT="development", REDIS_URL=redis)
        upgrade(url)
        helios("environment", "set", "development")
        yield url


def test_a_healthy_installation_is_told_so(helios, healthy):
    """Every check is well, and the exit status is 0."""
    status, said, _ = helios("doctor", "--json")
    findings = json.loads(said)
    assert [] == [each for each in findings if not each["ok"]]
    assert 0 == status
    assert {"PostgreSQL", "revision", "grants", "roles", "environment", "partitions", "mirrors", "Redis"} <= {
        each["check"] for each in findings
    }


BROKEN = {  # what breaks a check, and what it says then
    "revision": (
        "UPDATE helios_trading.alembic_version SET version_num = '9999'",
        "'9999', which this version of Helios",
    ),
    "grants": ("GRANT SELECT ON helios_trading.orders TO PUBLIC", "REVOKE"),
    "grants lacking": ('REVOKE SELECT ON helios_trading.orders FROM "DATABASE_helios_trading_reader"', "GRANT SELECT"),
    "environment": ("COMMENT ON SCHEMA helios_trading IS NULL", "production"),
    "instruments": (
        """INSERT INTO helios_trading.klines (instrument_id, interval, open_time, open, high, low, close, volume)
           VALUES (7, '1h', '2025-01-01T00:00Z', 1, 1, 1, 1, 0)""",
        "no instrument for 1h of instrument 7",
    ),
    "positions": (
        """INSERT INTO helios_trading.instruments (exchange, market, symbol) VALUES ('binance', 'spot', 'BTCUSDT');
        INSERT INTO helios_trading.accounts (exchange, name, market) VALUES ('binance', 'main', 'spot');
        INSERT INTO helios_trading.positions (account_id, instrument_id, position_side, quantity, event_at)
        SELECT a.id, i.id, 'BOTH', 1, now() FROM helios_trading.accounts AS a, helios_trading.instruments AS i""",
        "BOTH: 1 against 0",
    ),
    "mirrors": ("TRUNCATE helios_trading.mirror_state", "run `helios mirror buckets 1`"),
    "roles": (
        """CREATE SCHEMA other; GRANT USAGE ON SCHEMA other TO "DATABASE_helios_trading_writer" """,
        "helios_trading_writer has rights in schema other",
    ),
}


@pytest.mark.parametrize("check", BROKEN)
def test_each_check_finds_what_is_broken(check, helios, healthy):
    """What is wrong is found by its check, with a remedy, and the exit status is 1."""
    statements, told = BROKEN[check]
    run_sql(healthy, *statements.replace("DATABASE", str(healthy.database)).replace(":00Z", r"\:00Z").split(";"))
    status, said, _ = helios("doctor", "--json")
    [wrong] = [each for each in json.loads(said) if not each["ok"]]
    assert (1, check.split()[0]) == (status, wrong["check"])
    assert told in wrong["found"]
    assert wrong["remedy"]


def test_a_revision_that_is_behind_is_named(helios, healthy):
    """One step back: the revision that is lacking, and the command that applies it."""
    assert 0 == helios("downgrade", REVISIONS[-2].revision)[0]
    status, said, _ = helios("doctor", "--json")
    revision = next(each for each in json.loads(said) if each["check"] == "revision")
    assert (1, False, "helios upgrade") == (status, revision["ok"], revision["remedy"])
    assert f"stands at {REVISIONS[-2].revision}; lacks {HEAD}" in revision["found"]


def test_a_database_without_a_schema_is_told_what_it_lacks(helios, database, valkey, monkeypatch):
    """Before the first upgrade only the servers and the revision can be judged."""
    use(monkeypatch, database, REDIS_URL=valkey.render_as_string(hide_password=False))
    status, said, _ = helios("doctor", "--json")
    assert [1, ("PostgreSQL", True), ("revision", False), ("Redis", True)] == [
        status,
        *((each["check"], each["ok"]) for each in json.loads(said)),
    ]


def test_what_a_dead_test_run_left_is_a_finding(helios, healthy):
    """A run that ended without its undo is told until it is swept; then all is well."""
    run = TrialRun.begin(subject_of())
    run.keep()
    run.end()
    status, said, _ = helios("doctor", "--json")
    [wrong] = [each for each in json.loads(said) if not each["ok"]]
    assert (1, "leftovers", "helios sweep") == (status, wrong["check"], wrong["remedy"])
    assert "1 test run died and left what it wrote; " in wrong["found"]
    helios("sweep")
    assert 0 == helios("doctor")[0]


def test_runs_that_came_with_a_copy_are_a_finding(helios, healthy):
    """They cannot be swept: doctor says so, and sweep says the same."""
    run = TrialRun.begin(subject_of())
    run.keep()
    run.end()
    run_sql(healthy, "COMMENT ON SCHEMA helios_trading_undo IS 'helios undo log 0123 of database 1/2'")
    findings = json.loads(helios("doctor", "--json")[1])
    assert ["leftovers"] == [each["check"] for each in findings if not each["ok"]]
    status, _, talk = helios("sweep")
    assert (1, True) == (status, "copied from another database" in talk)


def test_what_looks_like_test_data_is_counted_and_no_fault(helios, healthy):
    """A name proves nothing: the number is told, and the exit status stays 0."""
    run_sql(
        healthy, "INSERT INTO helios_trading.instruments (exchange, market, symbol) VALUES ('a', 'spot', 'TESTUSDT')"
    )
    status, said, _ = helios("doctor", "--json")
    found = next(each for each in json.loads(said) if each["check"] == "leftovers")
    assert (0, True) == (status, found["ok"])
    assert "1 row looks like test data (helios orphans)" in found["found"]


def test_sizes_are_those_of_the_catalog(helios, healthy):
    """Tables are counted as they are, and a partition more is one more."""

    def counted():
        found = next(each for each in json.loads(helios("doctor", "--json")[1]) if each["check"] == "size")
        return [int(each) for each in re.search(r"in (\d+) tables, (\d+) of them", found["found"]).groups()]

    [tables, partitions] = counted()
    assert partitions > 16
    run_sql(healthy, "SELECT helios_trading.make_kline_partition('1m', 2040)")
    assert [tables + 1, partitions + 1] == counted()


def test_the_partitions_of_next_year_are_missed(helios, healthy, month, monkeypatch):
    """An interval in use needs the partitions of this year and the next."""
    helios("klines", "load", str(month.path))

    class LaterYear(doctor.datetime):
        @classmethod
        def now(cls, tz=None):
            return super().now(tz).replace(year=2052)  # a leap year, as today may be

    monkeypatch.setattr(doctor, "datetime", LaterYear)
    status, said, _ = helios("doctor", "--json")
    [wrong] = [each for each in json.loads(said) if not each["ok"]]
    assert (1, "partitions") == (status, wrong["check"])
    assert "klines_1h_2052" in wrong["found"]


def test_a_process_that_believes_otherwise_is_told(helios, healthy, monkeypatch):
    """HELIOS_ENVIRONMENT and the marker have to agree."""
    monkeypatch.setenv("HELIOS_ENVIRONMENT", "production")
    _, said, _ = helios("doctor", "--json")
    assert ["environment"] == [each["check"] for each in json.loads(said) if not each["ok"]]


def test_servers_that_do_not_answer_are_findings(helios, monkeypatch):
    """Doctor does not stop at the first server, and shows no password."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://bot:s3cret@127.0.0.1:1/trading")
    monkeypatch.setenv("REDIS_URL", "redis://:s3cret@127.0.0.1:1/0")
    status, said, talk = helios("doctor", "--json")
    assert 1 == status
    assert {"PostgreSQL": False, "Redis": False} == {each["check"]: each["ok"] for each in json.loads(said)}
    assert "s3cret" not in said + talk


def test_an_evicting_redis_is_named(helios, healthy, monkeypatch):
    """Keys that vanish by themselves would make a mirror lie."""
    with db.create_redis(Settings.from_environment()) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            status, said, _ = helios("doctor", "--json")
        finally:
            client.config_set("maxmemory-policy", "noeviction")
    [wrong] = [each for each in json.loads(said) if not each["ok"]]
    assert (1, "Redis", "CONFIG SET maxmemory-policy noeviction") == (status, wrong["check"], wrong["remedy"])


@pytest.fixture
def relay(healthy: URL) -> Iterator[mirrors.Relay]:
    """A relay that runs no longer than a test lets it."""
    with db.create_redis(Settings.from_environment()) as client:
        relay = mirrors.Relay(engine_of(healthy), client)
        yield relay
        relay.close()


CHANGED = "INSERT INTO helios_trading.instruments (exchange, market, symbol) VALUES ('binance', 'spot', 'A')"


def told_of_mirrors(helios: Run) -> tuple[int, dict[str, str]]:
    status, said, _ = helios("doctor", "--json")
    [told] = [each for each in json.loads(said) if each["check"] == "mirrors"]
    return status, told


def test_changes_that_nobody_relays_are_a_finding(helios, healthy, relay):
    """Once mirrors are used, what waits without a relay is told, with its remedy; a relay that leads is well."""
    relay.step()
    run_sql(healthy, CHANGED)
    relay.client.delete(relay.sides()[1].place.heartbeat)
    status, told = told_of_mirrors(helios)
    assert (1, False, "helios mirror run") == (status, told["ok"], told["remedy"][:17])
    assert "1 change waits" in told["found"]
    relay.step()
    with beating(relay.client, relay.sides()[1].place.heartbeat):
        status, told = told_of_mirrors(helios)
    assert (0, True) == (status, told["ok"])
    assert "a relay leads" in told["found"]
    assert "0 changes wait" in told["found"]


def test_a_relay_that_stopped_with_nothing_left_to_do_is_no_finding(helios, relay):
    """Readers ask PostgreSQL, and lose nothing but time."""
    relay.step()
    relay.client.delete(relay.sides()[1].place.heartbeat)
    status, told = told_of_mirrors(helios)
    assert (0, True) == (status, told["ok"])
    assert "no relay runs, and nothing waits" in told["found"]


def test_mirrors_that_were_never_used_alarm_only_by_the_room_they_take(helios, healthy, monkeypatch):
    """The outbox fills whoever reads it: a little is nothing to tell, much is."""
    run_sql(healthy, CHANGED)
    status, told = told_of_mirrors(helios)
    assert (0, True, "not used") == (status, told["ok"], told["found"])
    monkeypatch.setattr(doctor, "MOST_UNUSED", 0)
    status, told = told_of_mirrors(helios)
    assert (1, False) == (status, told["ok"])
    assert "nobody has relayed ever: 1 change waits" in told["found"]


# --- servers -------------------------------------------------------------------------------------------------------


def test_up_status_and_down(helios, used_home, monkeypatch):
    """Servers that were brought up stay until `down`, and status tells what is there."""
    monkeypatch.setenv("HELIOS_HOME", str(used_home))
    status, said, _ = helios("up", "--json")
    assert 0 == status
    assert {True} == {each["running"] and each["kept_up"] for each in json.loads(said)}
    status, said, _ = helios("status")
    assert re.search(r"postgres-\d+ +yes +yes", said)
    status, said, _ = helios("down", "--now", "--json")
    assert {False} == {each["running"] for each in json.loads(said)}


def test_with_nothing_configured_the_embedded_server_serves(own_home, tmp_path):
    """`alembic upgrade head` and a command start the server, use it and leave none; the database marks itself."""
    env = {name: value for name, value in variables(URL.create("x")).items() if not name.startswith("DATABASE")}
    env["HELIOS_HOME"] = str(own_home)
    done = subprocess.run(
        [sys.executable, "-m", "alembic", "upgrade", "head"],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert 0 == done.returncode, done.stderr
    done = subprocess.run(
        [sys.executable, "-m", "helios.cli", "environment"],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "it is marked development" in done.stdout


# --- what must never be a traceback --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("downgrade", "base", "--sql"),
        ("upgrade", "nope"),
        ("upgrade", ""),
    ],
)
def test_what_alembic_refuses_is_one_sentence(arguments, helios, installed):
    """An error of a library's own ends in one line on stderr and exit status 1."""
    helios("environment", "set", "test")
    status, _, talk = helios(*arguments)
    assert 1 == status
    assert "Traceback" not in talk
    assert 1 == len(talk.strip().splitlines())


@pytest.mark.parametrize("arguments", [("upgrade",), ("downgrade", "-1")])
def test_a_database_of_a_newer_version_is_not_changed(arguments, helios, installed):
    """An older install says what doctor says: at which revision the schema stands, and what to install."""
    helios("environment", "set", "test")
    run_sql(installed, "UPDATE helios_trading.alembic_version SET version_num = '9999'")
    status, _, talk = helios(*arguments)
    assert (1, 1) == (status, len(talk.strip().splitlines()))
    assert talk.startswith("helios: schema 'helios_trading' stands at revision '9999', which this version of Helios")
    assert "install the version that migrated it, or a newer one" in talk


def test_a_step_back_is_written_like_an_option(helios, installed):
    """`helios downgrade -1` is a revision, not an unknown option."""
    helios("environment", "set", "test")
    assert 0 == helios("downgrade", "-1")[0]


def test_a_statement_that_takes_too_long_is_one_sentence(helios, installed, monkeypatch):
    """What PostgreSQL says, without the statement."""
    monkeypatch.setenv("DATABASE_STATEMENT_TIMEOUT", "0.001")
    status, _, talk = helios("klines", "list")
    assert (1, 1) == (status, len(talk.strip().splitlines()))
    assert "statement timeout" in talk


@pytest.mark.parametrize("url", ["redis://h/0?nonsense=3", "redis://h/0?db=x"])
def test_a_redis_url_that_redis_refuses_is_a_finding(url, helios, healthy, monkeypatch):
    """redis-py reads the parameters late; doctor names it and goes on."""
    monkeypatch.setenv("REDIS_URL", url)
    status, said, _ = helios("doctor", "--json")
    assert (1, ["Redis"]) == (status, [each["check"] for each in json.loads(said) if not each["ok"]])


def test_names_are_not_read_as_markup(helios, installed):
    """Brackets in a symbol are letters like others in tables; a load's messages have their own tests."""
    run_sql(
        installed,
        "INSERT INTO helios_trading.instruments (exchange, market, symbol) VALUES ('binance', 'spot', '[red]X[/y]')",
        """INSERT INTO helios_trading.klines (instrument_id, interval, open_time, open, high, low, close, volume)
           SELECT id, '1h', timestamptz '2025-01-01 00\\:00+00', 1, 1, 1, 1, 0 FROM helios_trading.instruments""",
    )
    status, said, _ = helios("klines", "list")
    assert 0 == status
    assert "[red]X[/y]" in said


# --- who is advised what -------------------------------------------------------------------------------------------


@pytest.fixture
def monitor(healthy: URL) -> URL:
    """A login of the monitor role."""
    return login(healthy, "monitor", f'GRANT "{healthy.database}_helios_trading_monitor" TO {{login}}')


def test_no_advice_makes_a_monitor_the_owner(helios, monitor, monkeypatch):
    """What a lesser login may not do is answered by the role to join, never by the owner's membership."""
    monkeypatch.setenv("DATABASE_URL", monitor.render_as_string(hide_password=False))
    assert "" == helios("grants", "--sql")[1]
    status, _, talk = helios("klines", "list")
    assert 1 == status
    assert "group role that may" in talk
    status, _, talk = helios("upgrade")
    assert 1 == status
    assert f"use a login that is a member of '{monitor.database}_helios_trading_owner'" in talk


def test_doctor_goes_on_where_a_login_may_not_look(helios, monitor, monkeypatch):
    """A monitor sees every check that it may see; the others say that they were not made."""
    monkeypatch.setenv("DATABASE_URL", monitor.render_as_string(hide_password=False))
    status, said, _ = helios("doctor", "--json")
    findings = {each["check"]: each for each in json.loads(said)}
    assert 1 == status
    assert findings["revision"]["ok"]
    assert findings["Redis"]["ok"]
    assert "not checked: permission denied" in findings["positions are sums"]["found"]
