"""Services through restarts and failovers: two rounds here, a hundred by `make chaos`; and how the chaos can tell."""

import json
import os
import subprocess
import sys
import time
from threading import Thread

import pytest
from chaos_failover import Scene, longest_silence
from installation import ROOT
from replicas import Pair, pair
from server_user import until
from sqlalchemy import text

from helios import db
from helios.errors import UncertainError
from helios.settings import Settings

ROUNDS = os.environ.get("HELIOS_ROUNDS", "2")


def test_services_survive_restarts_and_failovers():
    """No order is lost or doubled, nothing staler than the limit is read, and the mirrors end equal."""
    seed = str(time.time_ns() % 10**6)
    command = [sys.executable, str(ROOT / "tests" / "chaos_failover.py"), ROUNDS, "--seed", seed]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stderr[-3000:] + done.stdout[:3000]
    told = json.loads(done.stdout)
    assert (int(ROUNDS), []) == (told["rounds"], told["wrong"])
    assert told["done"]["orders"] >= 40


class Told:
    """Servers that answer what the chaos asks."""

    def __init__(self, names: list[str], unspent: int) -> None:
        self.answers = [names, unspent, None]
        self.primary = self

    def ask(self, _statement: str) -> object:
        """Answer the next question."""
        return self.answers.pop(0)


@pytest.mark.parametrize(
    ("there", "unspent", "wrong"),
    [
        (["a", "b"], 0, []),
        (["a"], 0, ["1 orders lost"]),
        (["a", "b", "c"], 0, ["1 orders that nobody was told of"]),
        (["a", "b"], -1, ["1 too many spent"]),
    ],
)
def test_the_chaos_finds_lost_and_doubled_orders(there, unspent, wrong, tmp_path):
    """What was acknowledged, what is there and what was spent have to agree."""
    scene = Scene(Told(there, unspent), None, tmp_path)
    assert wrong == scene.lost_or_doubled([(1.0, ["placed", "1", "a"]), (2.0, ["placed", "1", "b"])])


def test_the_chaos_finds_stale_reads(tmp_path):
    """An order that was acknowledged before the limit has to be read; a later one need not."""
    scene = Scene(None, None, tmp_path)
    placed = [(1.0, ["placed", "1", "a"]), (2.0, ["placed", "1", "b"])]
    scene.done["orders"] = 2
    assert [] == scene.stale([*placed, (2.5, ["read", "1.5", "1", "True"])])
    assert ["1 orders unread beyond the limit"] == scene.stale([*placed, (3.5, ["read", "2.5", "1", "True"])])
    assert 4.0 == longest_silence([*placed, (6.0, ["placed", "1", "c"])], 0.0)


@pytest.fixture(scope="module")
def servers():
    """A primary whose commits wait for a standby that never comes, until it is told otherwise."""
    with pair() as made:
        made.primary.ask("CREATE TABLE placed (id integer PRIMARY KEY)")
        yield made


@pytest.fixture
def waiting(servers: Pair):
    """Commits wait; whoever waits has its connection ended once, and then they wait no longer."""
    servers.primary.ask("TRUNCATE placed", "ALTER SYSTEM SET synchronous_standby_names TO 'nobody'")
    servers.primary.ask("SELECT pg_reload_conf()")
    until(lambda: servers.primary.answers("SELECT current_setting('synchronous_standby_names') = 'nobody'"))

    def end_one() -> None:
        ended = "SELECT bool_or(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        until(lambda: servers.primary.answers(ended))
        servers.primary.ask("ALTER SYSTEM SET synchronous_standby_names TO ''", "SELECT pg_reload_conf()")

    thread = Thread(target=end_one)
    thread.start()
    yield servers
    thread.join()


@pytest.fixture
def factory(waiting):
    """A service's sessions."""
    engine = db.create_engine(Settings.from_environment({"DATABASE_URL": waiting.primary.url}))
    yield db.create_session_factory(engine)
    engine.dispose()


def test_a_commit_that_counts_and_whose_answer_was_lost(factory, waiting):
    """The server committed, and could not say so: the service is told that it cannot know, and nothing is repeated."""
    with pytest.raises(UncertainError):
        db.with_retries(factory, lambda session: session.execute(text("INSERT INTO placed VALUES (1)")))
    assert 1 == waiting.primary.ask("SELECT count(*) FROM placed")


def test_idempotent_work_is_repeated_and_counts_once(factory, waiting):
    """The same, repeated: the row is there already, and nothing is doubled."""
    tries = []

    def work(session):
        tries.append(1)
        session.execute(text("INSERT INTO placed VALUES (1) ON CONFLICT DO NOTHING"))

    db.with_retries(factory, work, idempotent=True)
    assert (2, 1) == (len(tries), waiting.primary.ask("SELECT count(*) FROM placed"))
