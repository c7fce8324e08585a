"""Fixtures for the undo log in Redis: a neighbour, a run that has begun, and clients that carry its label."""

import pytest
from own_servers import client, recording_client
from redis_keys import furnish

from helios import label
from helios.label.async_clients import AsyncRecordedRedis
from helios.testing import redis_log


@pytest.fixture
def plain(valkey):
    """A neighbour: a plain client of a Redis that holds one key of every kind."""
    neighbour = client(valkey)
    neighbour.flushall()
    furnish(neighbour)
    yield neighbour
    neighbour.flushall()
    neighbour.close()


@pytest.fixture
def run(plain, monkeypatch):
    """A run that has begun, and whose label this process carries; it must end with everything as it was."""
    before = redis_log.digest(plain)
    redis_log.begin(plain, 7, "here")
    monkeypatch.setenv(label.VARIABLE, "7")
    yield 7
    redis_log.undo(plain, 7)
    assert 0 == redis_log.close(plain, 7)
    assert before == redis_log.digest(plain)
    assert [] == plain.keys("helios:undo:*")


@pytest.fixture
def free_run(plain, monkeypatch):
    """A run that has begun, and whose test says itself what is left."""
    redis_log.begin(plain, 7, "here")
    monkeypatch.setenv(label.VARIABLE, "7")
    return 7


@pytest.fixture
def protocol():
    """The protocol that clients speak."""
    return 3


@pytest.fixture
def recorded(valkey, protocol):
    """A labelled client."""
    made = recording_client(valkey, protocol=protocol)
    yield made
    made.close()


@pytest.fixture
def asynchronous(valkey):
    """A labelled asynchronous client."""
    return AsyncRecordedRedis.from_url(valkey.render_as_string(hide_password=False))
