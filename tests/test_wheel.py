"""The wheel: it carries the migrations, and works in an environment that holds nothing of this checkout."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from installation import ROOT, ask, variables


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_carries_migrations_and_types(wheel):
    """What `helios upgrade` needs is inside, and nothing of the tests."""
    names = zipfile.ZipFile(wheel).namelist()
    for each in (
        "helios/migrations/env.py",
        "helios/migrations/script.py.mako",
        "helios/schema/grants.sql",
        "helios/py.typed",
    ):
        assert each in names
    assert any(each.startswith("helios/migrations/versions/0001") for each in names)
    assert not [each for each in names if "test" in each]


def test_helios_upgrade_in_an_empty_environment(wheel, database, tmp_path):
    """Installed from the wheel, with an empty HOME and in an empty folder, `helios upgrade` makes the schema."""
    home = tmp_path / "home"
    home.mkdir()
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    paths = {"base": str(tmp_path / "env"), "platbase": str(tmp_path / "env")}
    packages = Path(sysconfig.get_path("purelib", "venv", vars=paths))
    # The libraries come from this environment; its own path files, and with them the checkout, do not.
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    env = {**variables(database), "HOME": str(home), "PATH": os.defpath}
    where = subprocess.run(
        [python, "-c", "import helios; print(helios.__file__)"],
        env=env,
        cwd=home,
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.startswith(str(packages))
    done = subprocess.run(
        [python, "-m", "helios.cli", "upgrade"], env=env, cwd=home, capture_output=True, text=True, check=False
    )
    assert 0 == done.returncode, done.stderr
    assert "0002" == ask(database, "SELECT version_num FROM helios_trading.alembic_version")
    assert [] == list(home.iterdir())
