"""The verification run: it does the whole pipeline beside real data, and nothing of it is left, however it ends."""

import json
import signal
import subprocess
import sys
import time

import pipeline_folders
import pipeline_steps
import pytest
import test_data_pipeline
from installation import ROOT, engine_of, login, run_sql, upgrade, use, variables
from kit import client, content, keys

from helios.mirrors import Place, Relay, check
from helios.schema import environment

SCRIPT = [sys.executable, str(ROOT / "scripts" / "test_data_pipeline.py")]
PROOFS = ["clean-up", "mirrors", "digest", "orphans", "public"]


@pytest.fixture
def real(kept_database, valkey):
    """A database with real data; nothing of it may be different afterwards, nor a mirror be there that was not."""
    place = Place(str(kept_database.database), "helios_trading")
    before = content(kept_database), keys(valkey)
    yield kept_database
    assert before == (content(kept_database), keys(valkey))
    with client(valkey) as there:
        assert [] == list(there.scan_iter(place.pattern, count=1000))


@pytest.fixture
def env(real, valkey):
    """The environment of a process on that database."""
    return variables(real, REDIS_URL=valkey.render_as_string(hide_password=False))


@pytest.fixture
def here(real, valkey, monkeypatch):
    """This process works on that database."""
    use(monkeypatch, real, REDIS_URL=valkey.render_as_string(hide_password=False))
    return real


@pytest.fixture
def verify(monkeypatch, capsys):
    """Run the script in this process; gives exit status and lines."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["test_data_pipeline.py", "--json", *arguments])
        status = test_data_pipeline.main()
        said = capsys.readouterr()
        assert "" == said.err
        told = json.loads(said.out)
        assert told["ok"] == (status == 0)
        return status, {each["step"]: each for each in told["steps"]}

    return run


def until_line(env: dict[str, str], step: str) -> "subprocess.Popen[str]":
    """Start it, and wait until a step is done."""
    process = subprocess.Popen(SCRIPT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if step in line:
            return process
    raise AssertionError(process.communicate())


def step_of(line: str) -> str:
    """Take the step's name out of a line."""
    return line[7:20].strip()


def test_a_failing_step_is_told_and_cleaned_up(env):
    """Exit status 1, the step's line says why, the steps behind it are not run, clean-up and proofs are."""
    done = subprocess.run([*SCRIPT, "--fail-at", "orders"], env=env, capture_output=True, text=True, check=False)
    assert 1 == done.returncode, done.stdout + done.stderr
    lines = {step_of(line): line.split()[0] for line in done.stdout.splitlines()}
    assert "FAILED" == lines.pop("orders")
    assert ["configuration", "servers", "repair", "undo log", "schema", "klines", "ticker", *PROOFS] == list(lines)
    assert {"ok"} == set(lines.values())
    assert "" == done.stderr


def test_an_interrupted_run_cleans_up(env):
    """Ctrl-C in the middle: the same clean-up and proofs, exit status 130."""
    process = until_line(env, "ticker")
    process.send_signal(signal.SIGINT)
    said, talk = process.communicate(timeout=60)
    assert 130 == process.returncode, said + talk
    assert 1 == sum(line.startswith("FAILED") and "Ctrl-C" in line for line in said.splitlines())
    assert [["ok", each] for each in PROOFS] == [line.split()[:2] for line in said.splitlines()[-len(PROOFS) :]]
    assert "" == talk


def test_a_killed_run_is_repaired_by_the_next(env):
    """Killed with -9 when mirrors were made: the next run undoes it first, does everything, and proves it."""
    process = until_line(env, "orders")
    process.kill()
    process.communicate()
    done = subprocess.run(SCRIPT, env=env, capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stdout + done.stderr
    assert "repaired first: run " in done.stdout
    assert "FAILED" not in done.stdout
    assert "\033" not in done.stdout
    steps = [step_of(line) for line in done.stdout.splitlines()]
    assert ["configuration", "servers", "repair", "undo log", *pipeline_steps.STEPS, *PROOFS] == steps


def test_the_folder_of_a_killed_run_is_removed_by_the_next(env, tmp_path):
    """Killed with -9 while its files lie there: the next run removes them, and nothing that it did not make."""
    here = {**env, "TMPDIR": str(tmp_path)}
    mine = tmp_path / "helios-pipeline-mine"
    mine.mkdir()
    process = until_line(here, "schema")
    while len(list(tmp_path.iterdir())) < 2 and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert 2 == len(list(tmp_path.iterdir()))
    done = subprocess.run([*SCRIPT, "--fail-at", "schema"], env=here, capture_output=True, text=True, check=False)
    assert "folders of killed runs removed: 1" in done.stdout
    assert [mine] == list(tmp_path.iterdir())


@pytest.fixture
def temporary(monkeypatch, tmp_path):
    """An empty folder for temporary ones."""
    monkeypatch.setattr(pipeline_folders.tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_the_folder_of_a_run_that_lives_stays(temporary):
    """Its lock is held; it goes with its run."""
    with pipeline_folders.folder() as folder:
        (folder / "x.csv").touch()
        assert 0 == pipeline_folders.remove_dead()
        assert (folder / "x.csv").exists()
    assert [] == list(temporary.iterdir())


def test_folders_that_no_run_made_stay(temporary):
    """Other names, links and files are left alone; so is a folder with files but without a lock."""
    name = f"{pipeline_folders.PREFIX}{'0' * 31}"
    (temporary / f"{pipeline_folders.PREFIX}abcdefgh").mkdir()
    (temporary / f"{name}1").symlink_to(temporary)
    (temporary / f"{name}2").touch()
    (temporary / f"{name}3").mkdir()
    (temporary / f"{name}3" / "x.csv").touch()
    before = sorted(temporary.rglob("*"))
    assert 0 == pipeline_folders.remove_dead()
    assert before == sorted(temporary.rglob("*"))


@pytest.mark.parametrize("files", [[], ["lock"], ["lock", "x.csv"]])
def test_a_folder_is_removed_whenever_its_run_was_killed(temporary, files):
    """Before its lock, with it, and with files."""
    folder = temporary / f"{pipeline_folders.PREFIX}{'0' * 32}"
    folder.mkdir()
    for name in files:
        (folder / name).touch()
    assert 1 == pipeline_folders.remove_dead()
    assert [] == list(temporary.iterdir())


def test_a_folder_that_was_taken_away_unlocked_is_made_anew(temporary, monkeypatch):
    """Another run finds it empty before its lock is there: the run goes on in another folder."""
    take, taken_away = pipeline_folders.locks.take, []

    def late(path, **told):
        if not taken_away:
            taken_away.append(pipeline_folders.remove_dead())
        return take(path, **told)

    monkeypatch.setattr(pipeline_folders.locks, "take", late)
    with pipeline_folders.folder() as folder:
        assert ([1], [folder]) == (taken_away, list(temporary.iterdir()))


def test_two_runs_at_once_wait_for_each_other(env):
    """Neither takes for left behind what the other writes."""
    command = [*SCRIPT, "--json", "--fail-at", "schema"]
    both = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for each in both:
        steps = json.loads(each.communicate(timeout=60)[0])["steps"]
        assert ["schema"] == [step["step"] for step in steps if not step["ok"]]


def test_mirrors_that_were_there_follow_and_stay(here, verify, valkey):
    """Where a relay has mirrored before, the real mirrors are there afterwards, and none of the run's."""
    place = Place(str(here.database), "helios_trading")
    mine = [place.token, place.heartbeat]
    with client(valkey) as there:
        relay = Relay(engine_of(here), there)
        relay.drain()
        before = {name: there.dump(name) for name in there.scan_iter(place.pattern) if name.decode() not in mine}
        status, lines = verify("--fail-at", "ticker")
        after = {name: there.dump(name) for name in there.scan_iter(place.pattern) if name.decode() not in mine}
        differing = check(relay).differences
        relay.close()
        there.delete(*there.scan_iter(place.pattern))
    assert (1, before, ()) == (status, after, differing)
    assert "equal to PostgreSQL's rows" in lines["mirrors"]["found"]
    assert before


def test_a_mirror_that_differs_is_found(here, verify, valkey, monkeypatch):
    """A key that no longer shows its row fails the proof of the mirrors."""
    place = Place(str(here.database), "helios_trading")

    def broken(_scene):
        with client(valkey) as there:
            there.set(place.key("ticker", "binance", "spot", "BTCUSDT"), "{}")
        return []

    monkeypatch.setitem(pipeline_steps.STEPS, "schema", broken)
    with client(valkey) as there:
        relay = Relay(engine_of(here), there)
        relay.drain()
        relay.close()
        status, lines = verify("--fail-at", "schema")
        there.delete(*there.scan_iter(place.pattern))
    assert (1, ["schema", "mirrors"]) == (status, [name for name, line in lines.items() if not line["ok"]])
    assert "1 mirrors differ" in lines["mirrors"]["found"]


def test_a_clean_up_that_fails_is_told_and_proved_all_the_same(here, verify, monkeypatch):
    """What the kit could not undo is the line of the clean-up; the proofs say what is there."""
    end = test_data_pipeline.Run.end

    def failing(run):
        end(run)
        run.failures.append("a row stayed")

    monkeypatch.setattr(test_data_pipeline.Run, "end", failing)
    status, lines = verify("--fail-at", "schema")
    assert 1 == status
    assert ["schema", "clean-up"] == [name for name, line in lines.items() if not line["ok"]]
    assert PROOFS == list(lines)[-len(PROOFS) :]
    assert "a row stayed" == lines["clean-up"]["found"]


def test_what_is_left_is_found(here, verify, valkey, monkeypatch):
    """What somebody writes past the log, as a broken clean-up would leave it, fails each proof that concerns it."""

    def broken(_scene):
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("PGOPTIONS")  # which labels every connection of this process
            run_sql(
                here,
                """INSERT INTO helios_trading.instruments (exchange, market, symbol)
                   VALUES ('kit', 'spot', 'TESTLEFTUSDT')""",
                "CREATE TABLE public.left_behind (id integer)",
                "INSERT INTO public.older VALUES (1)",
            )
        with client(valkey) as there:
            there.set("test:left", "1")
        return []

    run_sql(here, "CREATE TABLE public.older (id integer)")
    monkeypatch.setitem(pipeline_steps.STEPS, "schema", broken)
    try:
        status, lines = verify("--fail-at", "schema")
    finally:
        run_sql(
            here,
            "DELETE FROM helios_trading.instruments WHERE exchange = 'kit'",
            "DROP TABLE public.left_behind, public.older",
        )
        with client(valkey) as there:
            there.delete("test:left")
    assert 1 == status
    assert {"schema", "digest", "orphans", "public"} == {name for name, line in lines.items() if not line["ok"]}
    assert "helios_trading.instruments" in lines["digest"]["found"]
    assert "0:test:left" in lines["digest"]["found"]
    assert "TESTLEFTUSDT" in lines["orphans"]["found"]
    assert {"public.older", "table public.left_behind"} <= set(
        lines["public"]["found"].split(": ")[1].split("; ")[0].split(", ")
    )


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("DROP INDEX helios_trading.ix_orders_open", "ix_orders_open"),
        ("REVOKE SELECT ON helios_trading.orders FROM copied_reader", "GRANT SELECT"),
    ],
)
def test_a_schema_that_lacks_something_is_refused(statement, named, upgraded, valkey, verify, monkeypatch):
    """An index or a right that is missing fails the step of the schema, which names it."""
    monkeypatch.setenv("REDIS_URL", valkey.render_as_string(hide_password=False))
    with engine_of(upgraded).begin() as connection:
        environment.mark(connection, "helios_trading", "test")
    run_sql(upgraded, statement)
    status, lines = verify()
    assert (1, ["schema"]) == (status, [name for name, line in lines.items() if not line["ok"]])
    assert named in lines["schema"]["found"]


def test_an_error_between_the_steps_is_a_line_too(here, verify, monkeypatch):
    """It is cleaned up and told like any other, never a traceback."""

    def broken(_run, _made):
        raise RuntimeError("broken")

    monkeypatch.setattr(test_data_pipeline, "Scene", broken)
    status, lines = verify()
    assert (1, ["between steps"]) == (status, [name for name, line in lines.items() if not line["ok"]])
    assert "broken" == lines["between steps"]["found"]


def test_ctrl_c_between_the_steps_is_told(here, verify, monkeypatch):
    """Wherever it comes, what is printed for programs says that not all of it held."""

    def interrupted(_run, _made):
        raise KeyboardInterrupt

    monkeypatch.setattr(test_data_pipeline, "Scene", interrupted)
    status, lines = verify()
    assert (130, "Ctrl-C") == (status, lines["between steps"]["found"])
    assert ["between steps", *PROOFS] == list(lines)[-6:]


def test_no_superuser_is_needed(database, valkey, verify, monkeypatch):
    """A login that may make roles and a schema migrates and undoes, one that only writes does the pipeline."""
    may = (f"GRANT CREATE ON DATABASE {database.database} TO {{login}}",)
    deploy = login(database, "deploy", *may, options="CREATEROLE")
    upgrade(deploy)
    bot = login(database, "bot", f"GRANT {database.database}_helios_trading_writer TO {{login}}")
    with engine_of(deploy).begin() as connection:
        environment.mark(connection, "helios_trading", "test")
    use(monkeypatch, bot, REDIS_URL=valkey.render_as_string(hide_password=False))
    monkeypatch.setenv("DATABASE_MIGRATION_URL", deploy.render_as_string(hide_password=False))
    before = content(database)
    status, lines = verify("--fail-at", "orders")
    assert (1, ["orders"]) == (status, [name for name, line in lines.items() if not line["ok"]])
    assert f"migrated through postgresql://{deploy.username}@" in lines["configuration"]["found"]
    assert before == content(database)


def test_production_is_refused(upgraded, valkey, verify, monkeypatch):
    """An unmarked database counts as production: one line says so, and nothing is written."""
    monkeypatch.setenv("REDIS_URL", valkey.render_as_string(hide_password=False))
    before = content(upgraded)
    status, lines = verify()
    assert (1, ["configuration", "servers", "repair"]) == (status, list(lines))
    assert "production" in lines["repair"]["found"]
    assert before == content(upgraded)


def test_nothing_secret_is_shown(verify, monkeypatch):
    """Servers that do not answer are a line with their addresses, without any password."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://bot:s3cret-one@127.0.0.1:1/trading")
    monkeypatch.setenv("REDIS_URL", "redis://:s3cret-two@127.0.0.1:1/0")
    status, lines = verify()
    assert (1, ["configuration", "servers"]) == (status, list(lines))
    assert "bot:***@127.0.0.1:1/trading" in lines["configuration"]["found"]
    assert "s3cret" not in json.dumps(lines)


def test_with_nothing_configured_the_schema_is_made(tmp_path, used_home):
    """As in a fresh clone: on the embedded servers it makes the schema, which is marked as after `helios upgrade`."""
    env = {**variables(engine_of("postgresql://").url), "HELIOS_HOME": str(used_home), "DATABASE_URL": ""}
    command = [*SCRIPT, "--json", "--fail-at", "schema"]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    lines = {each["step"]: each for each in json.loads(done.stdout)["steps"]}
    assert ["schema"] == [name for name, line in lines.items() if not line["ok"]], done.stdout
    assert "it is marked development" in lines["repair"]["found"]


def test_without_helios_it_says_how_to_get_it(tmp_path):
    """In a Python that lacks what it needs: one sentence with the remedy, exit status 1."""
    command = [sys.executable, "-S", *SCRIPT[1:]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (1, "") == (done.returncode, done.stdout)
    assert 1 == len(done.stderr.strip().splitlines())
    assert "`make verify`" in done.stderr
