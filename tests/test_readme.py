"""The README: what it shows runs, and what it names is there."""

import ast
import inspect
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest
from installation import ROOT, admin, ask, engine_of, libpq, rows, run_sql, upgrade, variables
from kit import Inner, client
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from helios.mirrors import Place
from helios.models import Market
from helios.schema.roles import Roles
from helios.settings import Settings, variable_of

pytest_plugins = "pytester"
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """Take the README's blocks of code in one language."""
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_lines_for_a_service_run(upgraded, tmp_path):
    """The first block of Python, as it stands, prints the price that is there."""
    run_sql(
        upgraded,
        "INSERT INTO helios_trading.instruments (exchange, market, symbol) VALUES ('binance', 'spot', 'BTCUSDT')",
        """INSERT INTO helios_trading.tickers (instrument_id, last_price, event_at)
           SELECT id, 96340.61, now() FROM helios_trading.instruments""",
    )
    block = blocks("python")[0]
    command = [sys.executable, "-c", block]
    done = subprocess.run(command, env=variables(upgraded), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stderr
    assert "96340.61" == done.stdout.strip()
    assert len([line for line in block.splitlines() if line.strip()]) <= 8


def test_the_lines_for_a_test_run(pytester, kept_database, valkey):
    """The second block of Python, as it stands, passes beside a real BTCUSDT of each market; all is as before."""
    inner = Inner(pytester, kept_database, valkey)
    block = blocks("python")[1]
    inner.pytester.makepyfile(block)
    real = "helios_trading.instruments WHERE exchange = 'binance' AND market <> 'spot' AND symbol = 'BTCUSDT'"
    listed = "SELECT 'binance', market, 'BTCUSDT' FROM unnest(ARRAY['um', 'cm']) AS market"
    run_sql(kept_database, f"INSERT INTO helios_trading.instruments (exchange, market, symbol) {listed}")
    try:
        before = inner.state()
        inner.run().assert_outcomes(passed=1)
        assert before == inner.state()
    finally:
        run_sql(kept_database, f"DELETE FROM {real}")
    assert len([line for line in block.splitlines() if line.strip()]) <= 6


@pytest.fixture
def trading(cluster):
    """The database that the README tells of; with it go the roles it tells of."""
    admin(cluster, "CREATE DATABASE trading")
    yield cluster.set(database="trading")
    admin(cluster, "DROP DATABASE trading WITH (FORCE)")
    with engine_of(cluster).begin() as connection:
        groups = connection.scalars(text("SELECT rolname FROM pg_roles WHERE rolname LIKE 'trading\\_helios%'")).all()
        for role in (*groups, "bot", "relay", "grafana", "deploy"):
            connection.execute(text(f"DROP ROLE {role}"))


def test_the_logins_it_tells_of_can_be_made(trading):
    """From an empty database to a bot that writes, a relay and a monitor, each statement by whom it names."""
    statements = [each.strip() for each in re.sub(r"--.*", "", blocks("sql")[0]).split(";") if each.strip()]
    run_sql(trading, *statements[:2])
    deploy = trading.set(username="deploy")
    upgrade(deploy)
    run_sql(deploy, *statements[2:])
    listed = "INSERT INTO helios_trading.instruments (exchange, market, symbol) VALUES ('binance', 'spot', 'BTCUSDT')"
    run_sql(trading.set(username="bot"), listed)
    assert 1 == ask(trading.set(username="grafana"), "SELECT count(*) FROM helios_trading.instruments")
    for lesser in ("grafana", "relay"):
        with pytest.raises(ProgrammingError, match="permission denied"):
            run_sql(trading.set(username=lesser), listed)


def test_a_dump_is_restored_as_it_tells(upgraded, database, valkey, programs, tmp_path):
    """Its commands, as they stand, make a copy with the same rows and mirrors of its own; doctor finds no fault."""
    run_sql(
        upgraded, "INSERT INTO helios_trading.instruments (exchange, market, symbol) VALUES ('binance', 'spot', 'A')"
    )
    env = variables(database, REDIS_URL=valkey.render_as_string(hide_password=False), HELIOS_ENVIRONMENT="production")
    env |= {"OLD": libpq(upgraded), "NEW": libpq(database)}
    env["PATH"] = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.defpath])
    command = ["/bin/sh", "-e", "-c", blocks("sh")[0]]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stdout + done.stderr
    everything = "SELECT exchange, symbol FROM helios_trading.instruments"
    assert rows(upgraded, everything) == rows(database, everything) == [("binance", "A")]
    with client(valkey) as there:
        names = list(there.scan_iter(Place(str(database.database), "helios_trading").pattern))
        assert names
        there.delete(*names)


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_what_its_python_names_is_there(number):
    """Every block is Python; what it imports of Helios can be imported, what it calls takes the options it is given."""
    tree = compile(blocks("python")[number], "README.md", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    known = {}
    for each in ast.walk(tree):
        if isinstance(each, ast.ImportFrom) and str(each.module).startswith("helios"):
            exec(compile(ast.Module([each], []), "README.md", "exec"), known)  # noqa: S102 - an import of the README's
    for each in ast.walk(tree):
        if isinstance(each, ast.Assign) and isinstance(each.value, ast.Call) and isinstance(each.targets[0], ast.Name):
            called = resolved(each.value.func, known)
            known[each.targets[0].id] = called if inspect.isclass(called) else returned(called)
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and (called := resolved(call.func, known)) is not None:
            names = [each.arg for each in call.keywords if each.arg]
            inspect.signature(called).bind_partial(*call.args, **dict.fromkeys(names))


def returned(called: object) -> object | None:
    """Find the class of what a function gives."""
    return get_type_hints(called).get("return") if inspect.isfunction(called) else None


def resolved(node: ast.expr, known: dict[str, object]) -> object | None:
    """Find what a name stands for; None where the block made it itself."""
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.Attribute) and (owner := resolved(node.value, known)) is not None:
        return getattr(owner, node.attr)
    return None


def test_every_proof_it_names_is_a_test():
    """A promise is proved by tests that exist."""
    named = set(re.findall(r"`(test_\w+)`", README))
    written = "\n".join(each.read_text() for each in (ROOT / "tests").rglob("test_*.py"))
    assert len(named) >= 9
    assert set() == {each for each in named if not re.search(rf"def {each}\(", written)}


def test_a_service_can_ask_what_its_tables_lack(upgraded, tmp_path):
    """The block stands for itself: it says where its connection and its settings come from."""
    (block,) = [each for each in blocks("python") if "schema.pending" in each]
    command = [sys.executable, "-c", f"{block}\nprint(lacking)"]
    done = subprocess.run(command, env=variables(upgraded), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ("[]\n", "") == (done.stdout, done.stderr)


def test_every_member_of_market_is_named():
    """Beside the example of one: nobody has to guess the others."""
    assert {f"`Market.{each.name}`" for each in Market} <= set(re.findall(r"`Market\.\w+`", README))


def test_the_example_of_settings_names_every_role():
    """What is made under the prefix is listed where the prefix is explained."""
    (line,) = [each for each in (ROOT / ".env.example").read_text().splitlines() if "<prefix>_" in each]
    assert {each.name for each in fields(Roles)} == set(re.findall(r"_([a-z]+)\b", line.partition("Empty")[0]))


def test_every_setting_it_names_is_one():
    """No variable is documented that nothing reads."""
    named = set(re.findall(r"`((?:DATABASE|REDIS|HELIOS)_[A-Z_]+)`", README))
    assert set() == named - {variable_of(each) for each in fields(Settings)}
