"""The wheel: it carries the migrations, and works in an environment that holds nothing of this checkout."""

import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from installation import HEAD, REVISIONS, ROOT, ask, rows, run_sql, variables
from sqlalchemy import URL

README = (ROOT / "README.md").read_text()


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
    assert {f"helios/migrations/versions/{Path(each.path).name}" for each in REVISIONS} <= set(names)
    assert "helios/testing/plugin.py" in names
    assert not [each for each in names if "test" in each.removeprefix("helios/testing/")]


class Installed:
    """An environment that holds the wheel and its libraries, and nothing of this checkout; HOME is empty."""

    def __init__(self, wheel: Path, folder: Path) -> None:
        self.home = folder / "home"
        self.home.mkdir()
        venv.create(folder / "env", with_pip=False)
        self.python = folder / "env" / "bin" / "python"
        paths = {"base": str(folder / "env"), "platbase": str(folder / "env")}
        self.packages = Path(sysconfig.get_path("purelib", "venv", vars=paths))
        # The libraries come from this environment; its own path files, and with them the checkout, do not.
        (self.packages / "libraries.pth").write_text(sysconfig.get_path("purelib"))
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(self.packages)
        where = subprocess.run(
            [self.python, "-c", "import helios; print(helios.__file__)"],
            cwd=self.home,
            capture_output=True,
            text=True,
            check=True,
        )
        assert where.stdout.startswith(str(self.packages))

    def run(self, database: URL, *arguments: str, cwd: Path | None = None, expected: int = 0) -> str:
        """Run a module of it, and give what it says."""
        env = {**variables(database), "HOME": str(self.home), "PATH": os.defpath}
        command = [self.python, "-m", *arguments]
        done = subprocess.run(command, env=env, cwd=cwd or self.home, capture_output=True, text=True, check=False)
        assert expected == done.returncode, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Install the wheel."""
    return Installed(wheel, tmp_path_factory.mktemp("installed"))


def test_helios_upgrade_in_an_empty_environment(installed, database):
    """Installed from the wheel, with an empty HOME and in an empty folder, `helios upgrade` makes the schema."""
    installed.run(database, "helios.cli", "upgrade")
    assert HEAD == ask(database, "SELECT version_num FROM helios_trading.alembic_version")
    assert [] == list(installed.home.iterdir())


SHOP = """
from sqlalchemy import ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class Customer(Base):
    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
"""
TESTS = """
from pathlib import Path

import helios
import pytest
from shop.models import Customer
from sqlalchemy import func, select


@pytest.mark.parametrize("again", range(2))
def test_a_customer_comes(again, helios_session):
    assert 1 == helios_session.scalar(select(func.count()).select_from(Customer))
    helios_session.add(Customer(name="Ada"))
    helios_session.commit()
    assert helios.__file__.startswith(PACKAGES)
"""
REVISION = """
import sqlalchemy as sa
from alembic import op

revision, down_revision = "1", None


def upgrade():
    identity = sa.Column("id", sa.Integer, primary_key=True)
    op.create_table("customers", identity, sa.Column("name", sa.Text, nullable=False))
"""


@pytest.fixture
def shop(tmp_path: Path, installed: Installed, upgraded: URL) -> Path:
    """A project that is not Helios, set up as the README tells, its own Alembic beside Helios's."""
    ini, migrating, env = re.findall(
        r"```(?:ini|python)\n(.*?)```", README.partition("## The kit in another project")[2], flags=re.DOTALL
    )[:3]
    installed.run(upgraded, "alembic", "init", "migrations", cwd=tmp_path)
    (tmp_path / "pytest.ini").write_text(ini)
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "models.py").write_text(SHOP)
    (tmp_path / "shop" / "migrating.py").write_text(migrating)
    written = (tmp_path / "migrations" / "env.py").read_text()
    (tmp_path / "migrations" / "env.py").write_text(written.partition("if context.is_offline_mode")[0] + env)
    (tmp_path / "migrations" / "versions" / "one.py").write_text(REVISION)
    (tmp_path / "test_shop.py").write_text(TESTS.replace("PACKAGES", repr(str(installed.packages))))
    return tmp_path


def test_the_plugin_in_a_project_that_is_not_helios(installed, upgraded, shop):
    """Its rows are there and stay, a test's are undone, its migrations and Helios's do not see each other."""
    installed.run(upgraded, "helios.cli", "environment", "set", "test", "--schema", "public")
    url = upgraded.render_as_string(hide_password=False)
    ini = (shop / "alembic.ini").read_text()
    (shop / "alembic.ini").write_text(
        re.sub(r"(?m)^sqlalchemy.url = .*$", f"sqlalchemy.url = {url}".replace("%", "%%"), ini)
    )
    installed.run(upgraded, "alembic", "upgrade", "head", cwd=shop)
    run_sql(upgraded, "INSERT INTO public.customers (name) VALUES ('Grace')")
    said = installed.run(upgraded, "pytest", "-p", "no:cacheprovider", cwd=shop)
    assert "2 passed" in said
    assert "undone: removed 2 (customers 2)" in said
    assert [("Grace",)] == rows(upgraded, "SELECT name FROM public.customers")
    assert ("1", HEAD) == tuple(
        ask(upgraded, f"SELECT version_num FROM {schema}.alembic_version") for schema in ("public", "helios_trading")
    )
