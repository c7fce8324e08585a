"""The README's table of commands: written from what `--help` says, and current."""

import re
import subprocess
import sys

import command_table
import pytest
from installation import ROOT

README = (ROOT / "README.md").read_text()


def test_the_table_in_the_readme_is_current():
    """Whoever changes a command writes it anew: python scripts/command_table.py --write."""
    assert [command_table.table()] == command_table.BLOCK.findall(README)


@pytest.mark.parametrize(
    "begins",
    [
        "| `helios klines load FILE...` | Load files of klines, or folders of them: ",
        "| `helios quality [SYMBOL] [INTERVAL]` | Score every series",
        "| `helios environment` | Show what this database is for",  # a group that does something by itself
        "| `helios environment set NAME` | ",
        "| `helios doctor` | Check everything and say what is wrong and how to mend it; exit status 1",
    ],
)
def test_a_row_tells_arguments_and_purpose(begins):
    """What is typed, and the first paragraph of its help."""
    assert 1 == sum(line.startswith(begins) for line in command_table.table().splitlines())


def test_options_are_named():
    """By their long names; --help, which every command has, is not."""
    row = next(line for line in command_table.table().splitlines() if "`helios price SYMBOL`" in line)
    assert row.endswith("| `--exchange`, `--market`, `--max-lag`, `--json` |")
    assert "--help" not in command_table.table()


def test_a_group_that_does_nothing_has_no_row():
    """`helios klines` alone is no command."""
    assert "| `helios klines` |" not in command_table.table()


@pytest.mark.parametrize("row", command_table.table().splitlines()[2:], ids=lambda row: row.split("`")[1])
def test_a_test_types_it(row):
    """Each command, and each of its options, stands in a test as it is typed."""
    written = "\n".join(each.read_text() for each in (ROOT / "tests").rglob("test_*.py"))
    called, options = (re.findall(r"`(.*?)`", row.split(" | ")[cell]) for cell in (0, -1))
    words = [each for each in called[0].split()[1:] if each.islower()]
    assert re.search(r"[\"' ]" + r"[\"', ]+".join(words) + r"\b", written)
    assert [] == [each for each in options if not re.search(rf"{each}[\"'= ]", written)]


def test_it_is_written_in_the_place_of_the_old_one(tmp_path, monkeypatch):
    """And of nothing else; a README without one is refused."""
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{command_table.HEAD}| old |\n\nafter\n")
    monkeypatch.setattr(command_table, "README", readme)
    monkeypatch.setattr(sys, "argv", ["command_table.py", "--write"])
    command_table.main()
    assert f"before\n{command_table.table()}\nafter\n" == readme.read_text()
    readme.write_text("before\n")
    with pytest.raises(SystemExit):
        command_table.main()


def test_it_prints_as_a_program(tmp_path):
    """Without an option nothing is written."""
    command = [sys.executable, str(ROOT / "scripts" / "command_table.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert command_table.table() == done.stdout
