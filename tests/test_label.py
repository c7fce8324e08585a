"""The label: what a process of a test run connects carries it, and nothing else does."""

import subprocess
import sys

import pytest
from installation import use
from sqlalchemy import NullPool, create_engine, text

from helios import db, label
from helios.errors import LabelError, RecordingError, SettingError
from helios.settings import Settings

SHOW = text("SELECT current_setting('helios.test_run', true)")


@pytest.fixture
def settings(migrated, monkeypatch):
    """The settings of the database with all tables, one connection in its pool."""
    use(monkeypatch, migrated, DATABASE_POOL_SIZE="1", DATABASE_POOL_OVERFLOW="0")
    for name in (label.VARIABLE, "PGOPTIONS"):
        monkeypatch.delenv(name, raising=False)
    return Settings.from_environment()


def put_on(monkeypatch, run):
    for name, value in label.variables(run).items():
        monkeypatch.setenv(name, value)


def shown(engine):
    with engine.connect() as connection:
        return connection.scalar(SHOW)


def test_without_a_label_nothing_is_shown(settings):
    """A process that belongs to no run connects as ever."""
    engine = db.create_engine(settings)
    assert shown(engine) is None
    engine.dispose()


def test_connections_of_the_pool_follow_the_label(settings, monkeypatch):
    """One opened before the run, or under another, is replaced when it is taken out; so is a labelled one after it."""
    engine = db.create_engine(settings)
    assert shown(engine) is None
    put_on(monkeypatch, 17)
    assert "17" == shown(engine)
    put_on(monkeypatch, 18)
    assert "18" == shown(engine)
    monkeypatch.delenv(label.VARIABLE)
    monkeypatch.delenv("PGOPTIONS")
    assert shown(engine) in (None, "")
    engine.dispose()


def test_a_connection_with_the_right_label_is_kept(settings, monkeypatch):
    """Nothing is opened anew while the run goes on."""
    put_on(monkeypatch, 17)
    engine = db.create_engine(settings)
    with engine.connect() as connection:
        first = connection.scalar(text("SELECT pg_backend_pid()"))
    with engine.connect() as connection:
        assert first == connection.scalar(text("SELECT pg_backend_pid()"))
    engine.dispose()


async def test_asynchronous_connections_carry_it(settings, monkeypatch):
    """The extra `helios[async]`: psycopg 3, the pool follows too."""
    engine = db.create_async_engine(settings)
    async with engine.connect() as connection:
        assert await connection.scalar(SHOW) is None
    put_on(monkeypatch, 17)
    async with engine.connect() as connection:
        assert "17" == await connection.scalar(SHOW)
    await engine.dispose()


def test_migrations_and_unlabelled_engines_do_not_carry_it(settings, monkeypatch):
    """Not even through PGOPTIONS, which libpq inherits; the rest of that stays."""
    monkeypatch.setenv("PGOPTIONS", "-c helios.actor=desk")
    put_on(monkeypatch, 17)
    for engine in (db.create_migration_engine(settings), db.create_engine(settings, labelled=False)):
        assert shown(engine) in (None, "")
        with engine.connect() as connection:
            assert "desk" == connection.scalar(text("SELECT current_setting('helios.actor')"))
        engine.dispose()


def test_production_refuses_the_label(settings, monkeypatch):
    """An engine or a client of a process that believes to be production says so, and connects nothing."""
    production = Settings.from_environment(
        {"DATABASE_URL": "postgresql://127.0.0.1:1/d", "REDIS_URL": "redis://h", "HELIOS_ENVIRONMENT": "production"}
    )
    engine = db.create_engine(production)
    put_on(monkeypatch, 17)
    with pytest.raises(LabelError, match="HELIOS_TEST_RUN=17 in a process with HELIOS_ENVIRONMENT=production"):
        engine.connect()
    for make in (db.create_engine, db.create_async_engine, db.create_redis, db.create_async_redis):
        with pytest.raises(LabelError, match="may not work on production"):
            make(production)


@pytest.mark.parametrize("value", ["abc", "0", "-3", str(2**63)])
def test_a_label_that_is_no_id_is_refused(value, monkeypatch):
    """The sentence quotes it."""
    monkeypatch.setenv(label.VARIABLE, value)
    with pytest.raises(SettingError, match=f"HELIOS_TEST_RUN='{value}' is not the id of a test run"):
        label.run()


@pytest.mark.parametrize("driver", ["postgresql+psycopg2", "postgresql+psycopg"])
def test_engines_of_the_users_own_get_it_from_libpq(driver, migrated, monkeypatch):
    """Both drivers read PGOPTIONS; a process that never heard of Helios is labelled so."""
    put_on(monkeypatch, 17)
    engine = create_engine(migrated.set(drivername=driver), poolclass=NullPool)
    assert "17" == shown(engine)


def test_child_processes_are_labelled(settings, monkeypatch):
    """The environment is all that it takes."""
    put_on(monkeypatch, 17)
    script = (
        "from helios import db; from sqlalchemy import text\n"
        "with db.create_engine().connect() as each: print(each.scalar(text('SHOW helios.test_run')))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "17" == done.stdout.strip()


def test_a_label_in_the_url_of_an_engine_gives_way(migrated, monkeypatch):
    """Options of the URL and of the caller stay, but for another run's label."""
    url = migrated.update_query_dict({"options": "-c helios.actor=desk -c helios.test_run=3"})
    use(monkeypatch, url)
    put_on(monkeypatch, 17)
    engine = db.create_engine()
    assert "17" == shown(engine)
    with engine.connect() as connection:
        assert "desk" == connection.scalar(text("SELECT current_setting('helios.actor')"))
    engine.dispose()
    engine = db.create_engine(labelled=False)
    assert shown(engine) in (None, "")
    engine.dispose()


def test_labels_replace_each_other():
    """In libpq's options, whatever stands around."""
    assert "-c a=1 -c helios.test_run=5" == label.labelled("-c helios.test_run=3 -c a=1", 5)
    assert "-c a=1" == label.unlabelled("-c a=1 -chelios.test_run=3")
    assert "" == label.unlabelled("-c helios.test_run=3")


def test_redis_is_imported_by_those_who_use_it():
    """Neither the label nor the engines cost that tenth of a second."""
    script = "import sys, helios.db, helios.label; print('redis' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "False" == done.stdout.strip()


def test_clients_record_from_the_moment_the_run_begins(valkey, monkeypatch):
    """Also those that were made before it, synchronous or not; without a label they are as ever."""
    url = valkey.render_as_string(hide_password=False)
    made = db.create_redis(Settings.from_environment({"REDIS_URL": url}))
    assert made.ping()
    monkeypatch.setenv(label.VARIABLE, "12345")
    with pytest.raises(RecordingError, match="test run 12345 has not begun in this Redis"):
        made.set("label:1", 1)
    monkeypatch.delenv(label.VARIABLE)
    assert 0 == made.delete("label:1")
    made.close()


async def test_asynchronous_clients_record_too(valkey, monkeypatch):
    """`create_async_redis` follows the label as `create_redis` does."""
    url = valkey.render_as_string(hide_password=False)
    made = db.create_async_redis(Settings.from_environment({"REDIS_URL": url}))
    monkeypatch.setenv(label.VARIABLE, "12345")
    with pytest.raises(RecordingError, match="test run 12345 has not begun in this Redis"):
        await made.set("label:1", 1)
    monkeypatch.delenv(label.VARIABLE)
    assert 0 == await made.delete("label:1")
    await made.aclose()
