"""The undo log in Redis: what labelled clients write is taken back, exactly, and nobody else's."""

import pytest
from own_servers import client

from helios import label
from helios.label.clients import RecordedRedis
from helios.testing import redis_log


@pytest.fixture
def plain(valkey):
    """A neighbour: a plain client; nothing may be left when the test ends."""
    neighbour = client(valkey)
    neighbour.flushall()
    yield neighbour
    for run in redis_log.runs(neighbour, "here"):
        redis_log.undo(neighbour, run)
        redis_log.close(neighbour, run)
    assert [] == neighbour.keys("helios:undo:*")
    neighbour.close()


@pytest.fixture
def run(plain, monkeypatch):
    """A run that has begun, and whose label this process carries."""
    redis_log.begin(plain, 7, "here")
    monkeypatch.setenv(label.VARIABLE, "7")
    return 7


@pytest.fixture
def recorded(valkey):
    """A labelled client."""
    made = RecordedRedis.from_url(valkey.render_as_string(hide_password=False))
    yield made
    made.close()


def test_a_key_that_was_there_comes_back(plain, run, recorded):
    """Changed keys get their value back, new ones go."""
    plain.set("old", "1")
    recorded.set("old", "2")
    recorded.lpush("new", "x")
    assert {b"old", b"new"} <= set(plain.keys())
    redis_log.undo(plain, run)
    assert b"1" == plain.get("old")
    assert 0 == plain.exists("new")
