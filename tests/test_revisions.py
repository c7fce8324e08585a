"""The revisions themselves: what they may import and name, and what a linter of migrations says of their SQL."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory
from installation import ROOT, alembic, variables
from sqlalchemy import URL

from helios.schema.migrations import configuration

SCRIPTS = ScriptDirectory.from_config(configuration())
REVISIONS = list(SCRIPTS.walk_revisions())
SQUAWK = Path(sys.executable).parent / "squawk"
# What the house does otherwise, and why.
EXCLUDED = (
    "prefer-bigint-over-int",  # small numbers stay small: klines are counted in bytes
    "prefer-robust-stmts",  # each revision is one transaction: nothing is left to be repeated
    "require-lock-timeout",  # env.py sets it for every connection
    "require-statement-timeout",  # a revision ends when it ends; only its locks are short
    "prefer-text-field",  # Alembic's own table of versions
    "transaction-nesting",  # Alembic writes BEGIN and COMMIT
)
NOWHERE = URL.create("postgresql", host="127.0.0.1", port=1, database="trading")


def lint(sql: str) -> subprocess.CompletedProcess[str]:
    """Let squawk read SQL as PostgreSQL 15, the oldest version that Helios works with."""
    command = [SQUAWK, "--pg-version", "15", "--exclude", ",".join(EXCLUDED)]
    return subprocess.run(command, input=sql, capture_output=True, text=True, check=False, env={"PATH": os.defpath})


def foreign(source: str) -> set[str]:
    """Name the packages that a revision imports beside Alembic, SQLAlchemy and the standard library."""
    tree = ast.parse(source)
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return {each.split(".")[0] for each in names} - {"alembic", "sqlalchemy"} - set(sys.stdlib_module_names)


def schemas(source: str) -> list[str]:
    """List what a revision passes or writes by which a schema is named."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    passed = [str(each.arg) for call in calls for each in call.keywords]
    given = [each for each in passed if each in ("schema", "referent_schema", "source_schema")]
    return given + [each for each in ("helios_trading", "public.") if each in source]


@pytest.mark.parametrize("revision", REVISIONS, ids=lambda each: each.revision)
def test_a_revision_imports_only_alembic_and_sqlalchemy(revision):
    """A revision of today must run in ten years, whatever has become of the models; its standard library stays."""
    assert set() == foreign(Path(revision.path).read_text())


@pytest.mark.parametrize("revision", REVISIONS, ids=lambda each: each.revision)
def test_a_revision_names_no_schema(revision):
    """The same revision runs in any schema: it passes none, and its SQL names none but the catalog."""
    assert [] == schemas(Path(revision.path).read_text())


@pytest.mark.parametrize("revision", REVISIONS, ids=lambda each: each.revision)
def test_a_revision_is_safe_beside_trading(revision):
    """A linter of migrations finds nothing in its SQL that would stop writers or break running services."""
    span = f"{revision.down_revision or 'base'}:{revision.revision}"
    sql, _ = alembic("upgrade", span, "--sql", env=variables(NOWHERE))
    said = lint(sql)
    assert 0 == said.returncode, said.stdout


@pytest.mark.parametrize(
    ("rule", "sql"),
    [
        ("adding-required-field", "ALTER TABLE orders ADD COLUMN note text NOT NULL;"),
        ("require-concurrent-index-creation", "CREATE INDEX ix_orders_price ON orders (price);"),
        ("constraint-missing-not-valid", "ALTER TABLE orders ADD CONSTRAINT ck_x CHECK (price > 0);"),
        ("changing-column-type", "ALTER TABLE orders ALTER COLUMN price TYPE text;"),
    ],
)
def test_the_linter_finds_what_is_dangerous(rule, sql):
    """The check can fail: each of these would stop a live writer."""
    said = lint(sql)
    assert 1 == said.returncode
    assert rule in said.stdout + said.stderr


def test_there_is_one_line_of_revisions():
    """Two heads would leave it to chance which one a database gets."""
    assert 1 == len(SCRIPTS.get_heads())


def test_a_new_revision_comes_from_the_template_with_its_advice(tmp_path):
    """`alembic revision` writes a file that passes the rules above, and repeats what matters beside live trading."""
    ini = tmp_path / "alembic.ini"
    ini.write_text(
        (ROOT / "alembic.ini")
        .read_text()
        .replace(
            "%(here)s/migrations", f"{ROOT}/migrations\nversion_locations = {tmp_path}/versions\npath_separator = os"
        )
    )
    (tmp_path / "versions").mkdir()
    alembic("-c", str(ini), "revision", "-m", "a note on orders", env=variables(NOWHERE))
    [written] = (tmp_path / "versions").glob("*.py")
    source = written.read_text()
    assert "op.create_index_concurrently" in source
    assert (set(), []) == (foreign(source), schemas(source))
    compile(source, str(written), "exec")
