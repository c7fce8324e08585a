"""`helios sweep` and `helios orphans`: what a person sees of what tests left."""

import io
import json
import subprocess
import sys

import pytest
from installation import ROOT, ask, engine_of, finish, run_sql, start, use, variables
from kit import client, content, keys

from helios import cli
from helios.schema import environment
from helios.testing import orphans
from helios.testing.subject import subject_of

DIES = """
import os
from helios.models import Instrument
from helios.testing import tracked

with tracked() as run:
    with run.sessions.begin() as session:
        session.add(Instrument(exchange="kit", market="spot", symbol="LEFT"))
    run.redis.set("price:BTCUSDT", "1")
    os._exit(9)
"""


@pytest.fixture
def env(kept_database, valkey):
    """The environment of a process on a database with real data; nothing of it may be different afterwards."""
    before = content(kept_database), keys(valkey)
    of_command = variables(kept_database, REDIS_URL=valkey.render_as_string(hide_password=False))
    yield of_command
    after = content(kept_database), keys(valkey)
    if before != after:  # its test has failed, and those that come after it are not to
        helios("sweep", env=of_command)
    assert before == after


def helios(*arguments: str, env: dict[str, str], expected: int = 0) -> tuple[str, str]:
    return finish(start("helios.cli", *arguments, env=env), expected)


def die(env: dict[str, str]) -> None:
    done = subprocess.run([sys.executable, "-c", DIES], env=env, cwd=ROOT, check=False)
    assert 9 == done.returncode


def test_sweep_undoes_what_a_dead_run_left(env, kept_database):
    """Rows and keys are back, and it says which; a second sweep finds nothing, and says so."""
    die(env)
    assert 1 == ask(kept_database, "SELECT count(*) FROM helios_trading.instruments WHERE exchange = 'kit'")
    found = json.loads(helios("sweep", "--json", env=env)[0])
    assert ("instruments", "deleted", 1) in [(each["table"], each["done"], each["count"]) for each in found]
    assert any(each["table"].startswith("Redis") for each in found)
    said, talk = helios("sweep", env=env)
    assert ("", "no dead run, in schema helios_trading\n") == (said, talk)


def test_a_run_that_was_swept_is_in_no_log_any_more(env, kept_database, valkey):
    """Both stores know it no more: no later run, and no sweep, has to look at it again."""
    die(env)
    run = ask(kept_database, "SELECT id FROM helios_trading_undo._runs")
    with client(valkey) as there:
        assert there.hexists("helios:undo:{log}:runs", run)
        assert [] != there.keys(f"helios:undo:*{run}*")
        helios("sweep", env=env)
        assert 0 == ask(kept_database, "SELECT count(*) FROM helios_trading_undo._runs")
        assert not there.hexists("helios:undo:{log}:runs", run)
        assert [] == there.keys(f"helios:undo:*{run}*")


def test_the_tables_may_be_named(env, kept_database):
    """Of a metadata that the command is told, both commands find what is left; one that is none is refused."""
    die(env)
    named = ("--metadata", "helios.models:metadata", "--json")
    found = json.loads(helios("sweep", *named, env=env)[0])
    assert ("instruments", "deleted", 1) in [(each["table"], each["done"], each["count"]) for each in found]
    listed = json.loads(helios("orphans", *named, env=env, expected=1)[0])
    assert {"instruments", "orders", "trading_sessions"} <= {each["place"] for each in listed}
    for command in ("sweep", "orphans"):
        _, talk = helios(command, "--metadata", "nowhere", env=env, expected=2)
        assert "write package.module:attribute" in talk


@pytest.mark.parametrize("command", ["sweep", "orphans"])
def test_tables_that_are_not_found_are_found_as_it_says(env, tmp_path, command):
    """The option is named as it was written; with the PYTHONPATH that is told, the same command finds the tables."""
    (tmp_path / "tea_shop.py").write_text("from helios.models import metadata\n")
    # -P: the folder itself is no place to import from, as for an installed helios
    run = [sys.executable, "-P", "-m", "helios.cli", command, "--metadata", "tea_shop:metadata"]
    env = env | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(run, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert 2 == done.returncode
    assert "--metadata='tea_shop:metadata' cannot be imported: No module named 'tea_shop'" in done.stderr
    assert "looked for on PYTHONPATH, such as PYTHONPATH=." in done.stderr
    env["PYTHONPATH"] += ":."
    done = subprocess.run(run, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    told = {"sweep": (0, "no dead run, in schema helios_trading\n"), "orphans": (1, "")}  # real rows that look so
    assert told[command] == (done.returncode, done.stderr)


def test_a_run_that_lives_is_not_swept(env, kept_database):
    """Its lease is held, so a sweep beside it leaves it alone, and it undoes what it wrote by itself."""
    program = DIES.replace("os._exit(9)", "print('written', flush=True); input()")
    with subprocess.Popen(
        [sys.executable, "-c", program], env=env, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert "written\n" == process.stdout.readline()
        assert "no dead run, in schema helios_trading\n" == helios("sweep", env=env)[1]
        assert 1 == ask(kept_database, "SELECT count(*) FROM helios_trading.instruments WHERE exchange = 'kit'")
        process.communicate("go on\n", timeout=60)
    assert 0 == process.returncode


def test_orphans_are_listed_and_what_is_real_is_spared(env, kept_database, valkey):
    """Exit status 1 while there are any; what the exchange knows says why it is spared."""
    found = json.loads(helios("orphans", "--json", env=env, expected=1)[0])
    assert {"instruments", "orders", "trading_sessions", "Redis"} == {each["place"] for each in found}
    assert all("known to the exchange" in each["spared"] for each in found if each["place"] == "orders")


def test_orphans_of_a_schema_that_is_not_there(env, kept_database):
    """One sentence with the remedy, as other commands say it; also where its tables are not those of this version."""
    _, talk = helios("orphans", env={**env, "DATABASE_SCHEMA": "nope"}, expected=1)
    assert "helios: schema 'nope' does not exist: run `helios upgrade` first\n" == talk
    run_sql(kept_database, "CREATE SCHEMA nope")
    try:
        _, talk = helios("orphans", env={**env, "DATABASE_SCHEMA": "nope"}, expected=1)
    finally:
        run_sql(kept_database, "DROP SCHEMA nope")
    assert talk.startswith("helios: schema 'nope' lacks the revisions 0001, ")
    assert talk.endswith(": run `helios upgrade` first\n")


@pytest.fixture
def dummies(env, kept_database, valkey):
    """A symbol with its ticker, and a key, that are nobody's."""
    run_sql(
        kept_database,
        "INSERT INTO helios_trading.instruments (exchange, market, symbol) VALUES ('kit', 'spot', 'DUMMYUSDT')",
        """INSERT INTO helios_trading.tickers (instrument_id, last_price, event_at)
           SELECT id, 1, now() FROM helios_trading.instruments WHERE symbol = 'DUMMYUSDT'""",
    )
    with client(valkey) as there:
        there.set("price:DUMMYUSDT", "1")
        yield
        there.delete("price:DUMMYUSDT")
    run_sql(
        kept_database,
        """DELETE FROM helios_trading.tickers USING helios_trading.instruments
           WHERE instrument_id = id AND exchange = 'kit'""",
        "DELETE FROM helios_trading.instruments WHERE exchange = 'kit'",
    )


def test_without_a_terminal_nothing_is_deleted_unless_yes_is_said(dummies, env, kept_database, valkey):
    """The list is shown, and one sentence says what to do; exit status 2."""
    before = content(kept_database), keys(valkey)
    said, talk = helios("orphans", "--delete", env=env, expected=2)
    assert "DUMMYUSDT" in said
    assert "helios: --delete removes rows and keys, and there is no terminal to confirm it on: say --yes\n" == talk
    assert before == (content(kept_database), keys(valkey))


@pytest.mark.parametrize(("answer", "status"), [("n\n", 1), ("", 130)])
def test_what_was_deleted_comes_back_unless_that_is_confirmed(
    dummies, env, kept_database, valkey, monkeypatch, capsys, answer, status
):
    """Somebody is asked and declines, or leaves: it was deleted under the log, and everything is as it was."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    before = content(kept_database), keys(valkey)
    use(monkeypatch, kept_database, REDIS_URL=env["REDIS_URL"])
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    monkeypatch.setattr(sys, "argv", ["helios", "orphans", "--delete"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    talk = capsys.readouterr().err
    assert status == end.value.code
    assert "deleted " in talk
    assert "1 of tickers" in talk
    assert before == (content(kept_database), keys(valkey))


def test_what_is_confirmed_is_gone(dummies, env, kept_database, valkey, monkeypatch):
    """The rows chosen, what hangs on them, and their keys; nothing else."""
    use(monkeypatch, kept_database, REDIS_URL=env["REDIS_URL"])
    before = content(kept_database)
    chosen = [each for each in orphans.find(subject_of()) if "DUMMY" in each.looks]
    with orphans.deleting(subject_of(), chosen) as deletion:
        deletion.confirmed = True
    assert {"instruments": 1, "tickers": 1, "Redis": 1} == deletion.counts
    after = content(kept_database)
    assert {"instruments", "tickers"} == {name.split(".")[1] for name in before if before[name] != after[name]}
    assert b"price:DUMMYUSDT" not in keys(valkey)


def test_orphans_are_not_deleted_in_production(env, kept_database):
    """The marker is asked on the very connection."""
    with engine_of(kept_database).begin() as connection:
        environment.mark(connection, "helios_trading", "production")
    try:
        _, talk = helios("orphans", "--delete", "--yes", env=env, expected=1)
    finally:
        with engine_of(kept_database).begin() as connection:
            environment.mark(connection, "helios_trading", "test")
    assert "is refused in schema 'helios_trading': it is marked production" in talk
