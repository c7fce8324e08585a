"""The benchmark of the queries runs, compares what it says it compares, and leaves nothing behind."""

import json

from installation import ask, finish, start, variables


def test_a_small_run(cluster, tmp_path):
    """Every contestant has a median; each anchor's ratio is 1; the database it used is gone."""
    result = tmp_path / "queries.json"
    url = cluster.render_as_string(hide_password=False)
    size = ("--rows", "4800", "--instruments", "4", "--samples", "3")
    said, _ = finish(start("benchmarks.queries", "--url", url, *size, "--json", str(result), env=variables(cluster)))
    results = json.loads(result.read_text())["results"]
    assert "queries.klines().rows" in said
    assert [1.0, 1.0, 1.0] == [each["ratio"] for each in results if each["how"].startswith(("hand", "queries.gaps"))]
    assert all(each["p50_ms"] > 0 for each in results)
    assert 0 == ask(cluster, "SELECT count(*) FROM pg_database WHERE starts_with(datname, 'helios_bench_')")
