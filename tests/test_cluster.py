"""A Redis Cluster of real servers: what Helios's clients and mirrors do there."""

import pytest
from cluster import Cluster, redis_cluster

from helios import db
from helios.errors import RecordingError, UnreachableError
from helios.settings import Settings


@pytest.fixture(scope="module")
def nodes():
    with redis_cluster() as made:
        yield made


def test_any_node_leads_to_all(nodes: Cluster):
    """Values are written through one node that lives and read through another, which hold them on three masters."""
    first, *_, last = nodes.nodes
    with db.create_redis(settings_of(f"redis+cluster://127.0.0.1:1,127.0.0.1:{first.port}")) as client:
        for number in range(30):
            client.set(f"key {number}", number)
    with db.create_redis(settings_of(f"redis+cluster://127.0.0.1:{last.port}")) as client:
        assert [b"%d" % number for number in range(30)] == [client.get(f"key {number}") for number in range(30)]
    assert all(each.ask("DBSIZE") for each in nodes.masters)


def test_a_cluster_that_does_not_answer_is_a_sentence():
    """The sentence names the nodes and the remedy, and not the password."""
    with pytest.raises(UnreachableError, match=r"check REDIS_URL") as caught:
        db.create_redis(settings_of("redis+cluster://:s3cret@127.0.0.1:1,127.0.0.1:2"))
    assert "s3cret" not in str(caught.value)


def test_a_test_run_does_not_write_to_a_cluster(monkeypatch):
    """What it wrote could not be undone, so it is refused before anything is connected."""
    monkeypatch.setenv("HELIOS_TEST_RUN", "7")
    for make in (db.create_redis, db.create_async_redis):
        with pytest.raises(RecordingError, match="cannot be undone"):
            make(settings_of("redis+cluster://127.0.0.1:1"))


def settings_of(url: str) -> Settings:
    return Settings.from_environment({"REDIS_URL": url})
