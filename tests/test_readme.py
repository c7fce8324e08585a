"""The README: what it shows runs, and what it names is there."""

import re
import subprocess
import sys
from dataclasses import fields

from installation import ROOT, run_sql, variables

from helios.settings import Settings, variable_of

README = (ROOT / "README.md").read_text()


def test_the_lines_for_a_service_run(upgraded, tmp_path):
    """The first block of Python, as it stands, prints the price that is there."""
    run_sql(
        upgraded,
        "INSERT INTO helios_trading.instruments (exchange, market, symbol) VALUES ('binance', 'spot', 'BTCUSDT')",
        """INSERT INTO helios_trading.tickers (instrument_id, last_price, event_at)
           SELECT id, 96340.61, now() FROM helios_trading.instruments""",
    )
    block = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)[0]
    command = [sys.executable, "-c", block]
    done = subprocess.run(command, env=variables(upgraded), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stderr
    assert "96340.61" == done.stdout.strip()
    assert len([line for line in block.splitlines() if line.strip()]) <= 8


def test_every_proof_it_names_is_a_test():
    """A promise is proved by tests that exist."""
    named = set(re.findall(r"`(test_\w+)`", README))
    written = "\n".join(each.read_text() for each in (ROOT / "tests").glob("test_*.py"))
    assert len(named) >= 9
    assert set() == {each for each in named if not re.search(rf"def {each}\(", written)}


def test_every_setting_it_names_is_one():
    """No variable is documented that nothing reads."""
    named = set(re.findall(r"`((?:DATABASE|REDIS|HELIOS)_[A-Z_]+)`", README))
    assert set() == named - {variable_of(each) for each in fields(Settings)}
