"""`helios mirror` as a person or systemd runs it."""

import json
import re
import signal
import socket
import urllib.request

import pytest
from installation import ROOT, finish, start, variables
from mirroring import SCHEMA, Scene
from server_user import until
from sqlalchemy import URL

from helios import mirrors


@pytest.fixture
def scene(scene: Scene, valkey: URL) -> Scene:
    """Tables and their mirrors, with a ticker; and the environment of the command."""
    scene.run(f"INSERT INTO {SCHEMA}.tickers (instrument_id, last_price, event_at) VALUES (1, 1, now())")
    scene.step()
    scene.env = variables(scene.url, REDIS_URL=valkey.render_as_string(hide_password=False))
    return scene


def test_check_compares_and_exits_with_1_on_a_difference(scene):
    """A key that was altered by hand is named, rebuild sets it right, and status shows why."""
    key = scene.key("ticker", "binance", "spot", "BTC:USDT")
    said, talk = finish(start("helios.cli", "mirror", "check", "--json", env=scene.env))
    assert [] == json.loads(said)
    assert "3 keys compared" in talk
    scene.client.set(key, "nonsense")
    said, _ = finish(start("helios.cli", "mirror", "check", "--json", env=scene.env), expected=1)
    assert [(key, "stale")] == [(each["key"], each["kind"]) for each in json.loads(said)]
    finish(start("helios.cli", "mirror", "rebuild", env=scene.env))
    said, _ = finish(start("helios.cli", "mirror", "status", "--json", env=scene.env))
    [told] = json.loads(said)
    assert ("asked for", 0, True, True) == tuple(
        told[name] for name in ("rebuild_reason", "backlog", "together", "relayed")
    )


def test_status_says_where_no_relay_ever_ran(upgraded, valkey):
    """No date of 1970: `never`, for programs null; and a sentence says why the exit status is 1."""
    env = variables(upgraded, REDIS_URL=valkey.render_as_string(hide_password=False))
    said, talk = finish(start("helios.cli", "mirror", "status", env=env), expected=1)
    assert "never" in said
    assert "1970" not in said
    assert "no relay has ever run here, so readers ask PostgreSQL: start one, `helios mirror run`\n" == talk
    [told] = json.loads(finish(start("helios.cli", "mirror", "status", "--json", env=env), expected=1)[0])
    assert told["last_batch_at"] is None


@pytest.mark.parametrize(
    ("key", "sentence"),
    [("heartbeat", "no relay runs, so readers ask PostgreSQL"), ("token", "stand at different batches")],
)
def test_status_says_why_its_exit_status_is_1(scene, key, sentence):
    """A relay that ran once and is gone, and a Redis that stands elsewhere, are told apart."""
    finish(start("helios.cli", "mirror", "rebuild", env=scene.env))
    scene.client.delete(getattr(scene.place, key))
    assert sentence in finish(start("helios.cli", "mirror", "status", env=scene.env), expected=1)[1]


def test_check_says_so_where_no_relay_runs(scene):
    """What was not relayed is neither a difference nor all is well."""
    scene.run(f"UPDATE {SCHEMA}.tickers SET last_price = 2")
    _, talk = finish(start("helios.cli", "mirror", "check", "--wait", "0.2", env=scene.env), expected=1)
    assert "see that `helios mirror run` is running" in talk


@pytest.mark.parametrize(
    ("command", "tables"),
    [("status", ["mirror_state"]), ("check", ["mirror_points"]), ("rebuild", ["mirror_state", "mirror_points"])],
)
def test_rows_that_were_lost_are_put_back_as_it_says(command, tables, scene):
    """A dump without them was restored: one sentence, whose command brings the mirrors back."""
    scene.relay.close()
    scene.run(*(f"TRUNCATE {SCHEMA}.{each}" for each in tables))
    _, talk = finish(start("helios.cli", "mirror", command, env=scene.env), expected=1)
    assert 1 == len(talk.splitlines())
    said = re.search("has lost a row: run `helios (.*?)`", talk)
    finish(start("helios.cli", *said.group(1).split(), env=scene.env))
    finish(start("helios.cli", "mirror", "rebuild", env=scene.env))
    assert "0 differences" in finish(start("helios.cli", "mirror", "check", env=scene.env))[1]


@pytest.mark.parametrize("listen", [[], ["--listen"]], ids=["looks", "listens"])
def test_a_relay_runs_serves_metrics_and_stops_on_sigterm(scene, listen):
    """It ends cleanly, with exit status 0 and without a word."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    process = start("helios.cli", "mirror", "run", "--metrics-port", str(port), *listen, env=scene.env)
    try:
        scene.run(f"UPDATE {SCHEMA}.tickers SET last_price = 2")
        until(lambda: "2" == scene.ticker()["last_price"])
        until(lambda: "helios_mirror_batches_total 1\n" in metrics(port))  # counted once PostgreSQL knows of it too
        process.send_signal(signal.SIGTERM)
        assert ("", "") == finish(process)
    finally:
        process.kill()
        process.wait()


def metrics(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        return answer.read().decode()


def test_a_redis_that_is_not_there_is_one_sentence(scene):
    """Without traceback and without its password."""
    env = {**scene.env, "REDIS_URL": "redis://:geheim@127.0.0.1:1/0"}
    _, talk = finish(start("helios.cli", "mirror", "status", env=env), expected=1)
    assert 1 == len(talk.splitlines())
    assert "check DATABASE_URL and REDIS_URL" in talk
    assert "geheim" not in talk


def test_the_acl_in_the_readme_is_what_the_code_needs():
    """The commands that are listed are those that the relay and readers send."""
    readme = (ROOT / "README.md").read_text()
    for commands in (mirrors.RELAY_COMMANDS, mirrors.READER_COMMANDS):
        assert " ".join(f"+{each}" for each in commands.split()) in readme
