"""What an undo takes back, from which moment on, and what it leaves because it is somebody else's."""

import pytest
from own_servers import recording_client
from server_user import until

from helios import label
from helios.errors import RecordingError
from helios.testing import redis_log
from helios.testing.redis_log import log

LONG = 5000  # bytes: more than a fingerprint reads


def test_undone_back_to_a_mark(run, recorded, plain):
    """Each scope alone: what was written before the mark stays, also of a key that was written on both sides."""
    recorded.set("string", "first")
    recorded.set("earlier", 1)
    mark = redis_log.mark(plain, run)
    recorded.set("string", "second")
    recorded.set("later", 1)
    inner = redis_log.mark(plain, run)
    recorded.set("string", "third")
    recorded.delete("earlier")
    redis_log.undo(plain, run, inner)
    assert (b"second", b"1", b"1") == (plain.get("string"), plain.get("earlier"), plain.get("later"))
    recorded.set("string", "fourth")
    redis_log.undo(plain, run, mark)
    assert (b"first", b"1", None) == (plain.get("string"), plain.get("earlier"), plain.get("later"))
    redis_log.undo(plain, run)
    assert (b"\x00\xff", None) == (plain.get("string"), plain.get("earlier"))


def test_what_was_done_is_told(run, recorded, plain):
    """How many keys went and came back."""
    recorded.pipeline().set("new", 1).set("string", 2).delete("hash").execute()
    found = {(each.what, each.count) for each in redis_log.undo(plain, run)}
    assert {("deleted", 1), ("restored", 2)} == found
    assert [] == redis_log.undo(plain, run)


@pytest.mark.parametrize("size", [1, LONG])
def test_what_a_neighbour_changed_since_stays(size, free_run, recorded, plain):
    """A value written, deleted or given an expiry by somebody else after the run's own write is kept, and reported."""
    for name in ("string", "number", "expiring", "new"):
        recorded.set(name, "run" * size)
    plain.set("string", "neighbour")
    plain.delete("number")
    plain.expire("expiring", 1000)
    plain.append("new", "!")
    changes = redis_log.undo(plain, free_run)
    assert {"string", "number", "expiring", "new"} == {each.key for each in changes if each.what == "kept"}
    assert {"changed since by somebody else"} == {each.why for each in changes if each.what == "kept"}
    assert (b"neighbour", None) == (plain.get("string"), plain.get("number"))
    assert 0 < plain.ttl("expiring") <= 1000
    assert (b"run" * size + b"!") == plain.get("new")
    assert 0 == redis_log.close(plain, free_run)


def test_what_a_neighbour_wrote_in_between_comes_back(free_run, recorded, plain):
    """The state to go back to is the last one that is not the run's own, in one scope or over several."""
    recorded.set("string", "run")
    plain.set("string", "neighbour")
    recorded.set("string", "run again")
    recorded.set("number", "run")
    redis_log.mark(plain, free_run)
    plain.set("number", "neighbour")
    recorded.set("number", "run again")
    recorded.rpush("long list", "run")
    plain.rpush("long list", "neighbour")
    recorded.rpush("long list", "run again")
    redis_log.undo(plain, free_run)
    assert (b"neighbour", b"neighbour") == (plain.get("string"), plain.get("number"))
    assert b"neighbour" == plain.lindex("long list", -1)
    assert 0 == redis_log.close(plain, free_run)


@pytest.mark.parametrize("size", [1, LONG])
@pytest.mark.parametrize("deletes", [False, True])
def test_a_neighbour_between_two_tests(deletes, size, free_run, recorded, plain):
    """What a test found and put back is the neighbour's: the undo of the whole run does not go behind it."""
    recorded.set("string", "run" * size)
    theirs = None if deletes else b"neighbour" * size
    plain.delete("string") if deletes else plain.set("string", theirs)
    mark = redis_log.mark(plain, free_run)
    for value in ("run again", "and again"):
        recorded.set("string", value * size)
        redis_log.undo(plain, free_run, mark)
        assert theirs == plain.get("string")
    redis_log.undo(plain, free_run)
    assert theirs == plain.get("string")
    assert 0 == redis_log.close(plain, free_run)


def test_reading_is_no_change(run, recorded, plain):
    """A neighbour who counts a HyperLogLog, or reads, changes nothing that matters."""
    recorded.pfadd("counter", "x")
    plain.pfcount("counter")
    recorded.sadd("set", "x")
    assert 301 == len(plain.smembers("set"))
    assert "kept" not in {each.what for each in redis_log.undo(plain, run)}


def test_an_expiry_that_passed_during_the_test(free_run, recorded, plain):
    """A key whose time was up meanwhile ends absent, not immortal; one the test let lapse comes back."""
    plain.set("brief", "v", px=60)
    recorded.persist("brief")
    recorded.set("string", "x", px=1)
    recorded.hset("small hash", "a", 3)
    recorded.execute_command("HPEXPIRE", "small hash", 1, "FIELDS", 2, "a", "b")
    until(lambda: not plain.exists("string") and not plain.exists("small hash"))
    until(lambda: plain.time() > brief_over(plain))
    assert plain.exists("brief")
    assert "kept" not in {each.what for each in redis_log.undo(plain, free_run)}
    assert 0 == plain.exists("brief")
    assert (b"\x00\xff", b"1") == (plain.get("string"), plain.hget("small hash", "a"))
    redis_log.close(plain, free_run)


def brief_over(plain):
    image = plain.hget("helios:undo:{log}:7:0", "0:brief")
    at = int(image.split(b" ")[3])
    return at // 1000, at % 1000 * 1000


@pytest.mark.parametrize("first", [7, 8])
def test_of_two_overlapping_runs_either_may_end_first(first, plain, valkey, monkeypatch):
    """The later run takes over what the earlier one found, so that in the end both are gone."""
    before = redis_log.digest(plain)
    redis_log.begin(plain, 7, "here")
    redis_log.begin(plain, 8, "there")
    made = recording_client(valkey)
    for run, name, value in [
        (7, "string", 1),
        (8, "string", 2),
        (8, "hash", 0),
        (7, "hash", 0),
        (7, "string", 3),
        (8, "number", 1),
        (7, "number", 2),
        (8, "number", 3),
        (7, "new", 1),
        (8, "new", 2),
    ]:
        monkeypatch.setenv(label.VARIABLE, str(run))
        made.set(name, value)
    assert ([7], [8], []) == tuple(redis_log.runs(plain, owner) for owner in ("here", "there", "elsewhere"))
    last = 15 - first
    kept = [each for each in redis_log.undo(plain, first) if each.what == "kept"]
    assert ([], 0) == (kept, redis_log.close(plain, first))
    monkeypatch.setenv(label.VARIABLE, str(last))
    made.append("string", "still at work")
    kept = [each for each in redis_log.undo(plain, last) if each.what == "kept"]
    assert ([], 0) == (kept, redis_log.close(plain, last))
    assert before == redis_log.digest(plain)
    made.close()


def test_a_process_that_outlives_its_run_writes_nothing(plain, valkey, monkeypatch):
    """After the end of the run, or where it never began, each write is refused with a sentence."""
    made = recording_client(valkey)
    redis_log.begin(plain, 7, "here")
    monkeypatch.setenv(label.VARIABLE, "7")
    made.set("string", 1)
    assert 1 == redis_log.close(plain, 7)
    redis_log.undo(plain, 7)
    assert 0 == redis_log.close(plain, 7)
    for write in (
        lambda: made.set("string", 1),
        lambda: made.zpopmin("sorted"),
        lambda: made.pipeline().set("string", 1).execute(),
        lambda: made.pipeline().set("string", 1).zpopmin("sorted").execute(),
    ):
        with pytest.raises(RecordingError, match="test run 7 has not begun in this Redis, or is over"):
            write()
    with pytest.raises(RecordingError, match="begin it first"):
        redis_log.mark(plain, 7)
    assert (b"\x00\xff", b"\x00\xff") == (made.get("string"), plain.get("string"))
    made.close()


def test_many_keys_are_undone_in_batches(run, recorded, plain):
    """More than one batch, and more than Lua takes at once."""
    pipe = recorded.pipeline()
    for each in range(5000):
        pipe.set(f"new {each}", each)
    pipe.delete(*[f"new {each}" for each in range(3000)], "string")
    assert 3001 == pipe.execute()[-1]
    assert 2000 == sum(each.count for each in redis_log.undo(plain, run) if each.what == "deleted")


def test_what_is_written_while_an_undo_goes_on_is_undone_before_the_rest(free_run, recorded, plain, monkeypatch):
    """A test that begins between two batches: what it found, a neighbour's, is what its keys go back to."""
    names = [f"many {each}" for each in range(1000)]
    plain.mset(dict.fromkeys(names, "before"))
    recorded.mset(dict.fromkeys(names, "run"))
    batch, batches = log.UNDO.run, []

    def interrupted(*arguments, **options):
        batches.append(batch(*arguments, **options))
        if len(batches) == 1:
            plain.mset(dict.fromkeys(names, "neighbour"))
            redis_log.mark(plain, free_run)
            recorded.mset(dict.fromkeys(names, "run again"))
        return batches[-1]

    monkeypatch.setattr(log.UNDO, "run", interrupted)
    redis_log.undo(plain, free_run)
    assert {b"neighbour"} == set(plain.mget(names))
    assert 0 == redis_log.close(plain, free_run)
