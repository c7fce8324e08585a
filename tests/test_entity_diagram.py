"""The diagram of the tables: drawn from the models, and the one in the README is current."""

import subprocess
import sys

import entity_diagram
import pytest
from installation import ROOT

from helios.models import metadata

README = (ROOT / "README.md").read_text()


def test_the_diagram_in_the_readme_is_current():
    """Whoever changes a key draws it anew: python scripts/entity_diagram.py --write."""
    assert [entity_diagram.diagram()] == entity_diagram.BLOCK.findall(README)


def test_every_table_and_every_reference_is_drawn():
    """A line for each foreign key, and a dotted one for the candles, which have none."""
    lines = entity_diagram.diagram().splitlines()
    keys = [key for table in metadata.tables.values() for key in table.foreign_keys]
    assert len(keys) == sum("--" in line for line in lines)
    assert ["    instruments ||..o{ klines : instrument_id"] == [line for line in lines if ".." in line]
    drawn = {line.split()[0] for line in lines if line.endswith("{")}
    assert {table.name for table in metadata.tables.values() if not table.info.get("bookkeeping")} == drawn


@pytest.mark.parametrize(
    "line",
    [
        "instruments ||--o| tickers : instrument_id",  # at most one of each
        "orders |o--o| grid_levels : order_id",  # unique, and may be NULL
        "trading_sessions |o--o{ orders : session_id",
        "accounts ||--o{ balances : account_id",
    ],
)
def test_a_line_tells_how_many(line):
    """One or many, and whether there must be one."""
    assert f"    {line}" in entity_diagram.diagram().splitlines()


def test_it_is_written_in_the_place_of_the_old_one(tmp_path, monkeypatch):
    """And of nothing else; a README without one is refused."""
    readme = tmp_path / "README.md"
    readme.write_text("before\n```mermaid\nerDiagram\n    old\n```\nafter\n")
    monkeypatch.setattr(entity_diagram, "README", readme)
    monkeypatch.setattr(sys, "argv", ["entity_diagram.py", "--write"])
    entity_diagram.main()
    assert f"before\n{entity_diagram.diagram()}\nafter\n" == readme.read_text()
    readme.write_text("before\n")
    with pytest.raises(SystemExit):
        entity_diagram.main()


def test_it_prints_as_a_program(tmp_path):
    """Without an option nothing is written."""
    command = [sys.executable, str(ROOT / "scripts" / "entity_diagram.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert entity_diagram.diagram() == done.stdout.strip()
