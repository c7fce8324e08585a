"""The benchmark of the Redis log runs, and leaves nothing behind."""

import json

from installation import finish, start, variables
from own_servers import client


def test_a_small_run(cluster, valkey, tmp_path):
    """Every kind of write has its ratio; the Redis it used is as it was."""
    neighbour = client(valkey)
    neighbour.flushall()
    result = tmp_path / "redis_log.json"
    size = ("--url", valkey.render_as_string(hide_password=False), "--rounds", "2", "--keys", "500")
    said, _ = finish(start("benchmarks.redis_log", *size, "--json", str(result), env=variables(cluster)))
    results = json.loads(result.read_text())["results"]
    assert "SET of a new key" in said
    assert all(each["ratio"] > 0 for name, each in results.items() if name != "undo")
    assert results["undo"]["keys_per_second"] > 0
    assert [] == neighbour.keys()
    neighbour.close()
