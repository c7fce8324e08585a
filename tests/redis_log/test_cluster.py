"""The testing kit on a Redis Cluster of six nodes: its promises are those of one Redis, and most scenes the same."""

# ruff: noqa: F401, F811 - fixtures and scenes of other files are called in, to run here on a cluster
import threading

import pytest
from chaos_mirror_servers import until
from cluster import redis_cluster
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from own_servers import address, client, recording_client
from redis.crc import key_slot
from redis.exceptions import (
    CrossSlotTransactionError,
    NoPermissionError,
    RedisClusterException,
    ResponseError,
    WatchError,
)
from redis_keys import furnish
from redis_log.test_accidents import test_a_server_that_evicts_or_is_old_is_refused
from redis_log.test_commands import WRITES, comparable, outcome
from redis_log.test_digest import test_equal_contents_have_equal_digests
from redis_log.test_overlap import STEPS
from redis_log.test_overlap import test_whoever_ends_first_all_is_as_it_was as whoever_ends_first
from redis_log.test_undo import (
    test_a_process_that_outlives_its_run_writes_nothing,
    test_of_two_overlapping_runs_either_may_end_first,
    test_reading_is_no_change,
    test_what_a_neighbour_wrote_in_between_comes_back,
)
from test_audit import keys
from test_leftovers import (
    dummies,
    env,
    test_sweep_undoes_what_a_dead_run_left,
    test_what_is_confirmed_is_gone,
)
from test_runs import (
    here,
    test_mirrors_go_with_the_rows_that_they_show,
    test_tracked_undoes_what_is_written_inside,
    test_what_a_run_took_back_is_not_told_as_somebody_elses,
)

from helios import label
from helios.errors import RecordingError, UnreachableError
from helios.label.async_cluster_clients import AsyncRecordedCluster
from helios.label.slots import SLOTS, opening, tag
from helios.testing import redis_log
from helios.testing.halves import reaching_redis


@pytest.fixture(scope="module")
def nodes():
    """Three masters with a replica each."""
    with redis_cluster() as made:
        yield made


@pytest.fixture(scope="module")
def valkey(nodes):
    """The cluster's URL, in the place of one server's."""
    return nodes.url


NAMES = {
    "string", "string2", "number", "expiring", "list", "long list", "numbers", "small set", "set", "small sorted",
    "sorted", "small hash", "hash", "lapsing", "stream", "counter", "places", "new", "nothing", b"\xff\x00 bytes",
}  # fmt: skip


def tagged(words):
    """Let a command name keys of one slot."""
    name, *rest = words
    return (name, *(prefixed(word) if word in NAMES else word for word in rest))


def prefixed(name):
    return b"{t}" + name if isinstance(name, bytes) else f"{{t}}{name}"


@pytest.fixture(scope="module")
def ordinary(nodes):
    """A client that records nothing, and speaks as the one that does."""
    made = client(nodes.url, protocol=3)
    yield made
    made.close()


@pytest.fixture(scope="module")
def furniture(ordinary):
    """What `furnish` writes, as DUMP tells it, for one slot."""
    ordinary.flushall()
    furnish(ordinary)
    return [(b"{t}" + each, max(0, ordinary.pexpiretime(each)), ordinary.dump(each)) for each in ordinary.scan_iter()]


@pytest.fixture
def in_one_slot(ordinary, furniture):
    """Let the cluster hold one key of every kind, all in one slot, and again when it is called."""

    def again():
        ordinary.flushall()
        with ordinary.pipeline(transaction=True) as pipe:
            for name, expiry, dump in furniture:
                pipe.restore(name, expiry, dump, absttl=True)
            pipe.execute()

    again()
    yield again
    ordinary.flushall()


@pytest.mark.parametrize("words", [tagged(each) for each in WRITES.values()], ids=WRITES)
def test_each_kind_of_write_comes_back(words, in_one_slot, ordinary, recorded, monkeypatch):
    """The reply is redis-py's own, the write is there, and what was there before comes back with type and expiry."""
    before = redis_log.digest(ordinary)
    expected = outcome(ordinary, words)
    written = redis_log.digest(ordinary)
    in_one_slot()
    redis_log.begin(ordinary, 7, "here")
    monkeypatch.setenv(label.VARIABLE, "7")
    assert comparable(words, expected) == comparable(words, outcome(recorded, words))
    assert changes(before, written) == changes(before, redis_log.digest(ordinary))
    redis_log.undo(ordinary, 7)
    assert before == redis_log.digest(ordinary)
    assert (0, []) == (redis_log.close(ordinary, 7), ordinary.keys("helios:undo:*"))


def changes(one, other):
    return {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}


def test_every_slot_has_a_tag_of_its_own():
    """Of four letters, so none is that of the log which holds a run's own state."""
    assert list(range(SLOTS)) == [key_slot(f"helios:undo:{tag(slot)}:runs".encode()) for slot in range(SLOTS)]
    assert {len("{abcd}")} == {len(tag(slot)) for slot in range(SLOTS)}


def test_what_is_written_in_many_slots_comes_back(run, recorded, plain, nodes):
    """Pipelines that redis-py splits, deletes and writes over slots, scripts, a pop that waits; on three masters."""
    assert (2, [True, True]) == (recorded.delete("hash", "set", "nothing"), recorded.mset_nonatomic({"a": 1, "b": 2}))
    pipe = recorded.pipeline()
    for each in range(300):
        pipe.set(f"new {each}", each)
    pipe.get("new 7").incr("new 8").lpush("string", 1).zpopmin("sorted").hgetall("small hash").append("number", "x")
    value, added, refused, popped, fields, length = pipe.execute(raise_on_error=False)[300:]
    assert (b"7", 9, [b"member 0", 0.0]) == (value, added, popped)
    assert ({b"a": b"1", b"b": b"2"}, 3, ResponseError) == (fields, length, type(refused))
    with pytest.raises(ResponseError, match="Command # 2"):
        recorded.pipeline().set("a", 1).lpush("string", 1).execute()
    pushed = threading.Timer(0.05, lambda: plain.rpush("{q}2", "job"))
    pushed.start()
    assert (b"{q}2", b"job") == tuple(recorded.blpop(["{q}1", "{q}2"], timeout=10))
    pushed.join()
    assert 3 == recorded.register_script("return redis.call('APPEND', KEYS[1], ARGV[1])")(keys=["string"], args=["x"])
    assert all(each.ask("KEYS", "helios:undo:*:7") for each in nodes.masters)
    redis_log.undo(plain, run)
    assert [b"job"] == plain.lrange("{q}2", 0, -1)
    plain.delete("{q}2")


def test_a_transaction_is_of_one_slot_and_comes_back(run, recorded, plain):
    """With a watch, in which a write is recorded too, or none; a touched key ends it as ever, another slot too."""
    with recorded.pipeline(transaction=True) as pipe:
        pipe.watch("{t}a")
        pipe.set("{t}new", 1)
        with pytest.raises(RecordingError, match="between WATCH and MULTI"):
            pipe.zpopmin("{t}sorted")
        pipe.multi()
        pipe.set("{t}a", 1).zadd("{t}z", {"a": 1})
        assert [b"OK", 1] == pipe.execute()  # redis-py makes nothing of them either
        pipe.watch("{t}a")
        pipe.multi()
        pipe.incr("{t}a")
        plain.set("{t}a", 5)
        with pytest.raises(WatchError):
            pipe.execute()
        assert [6] == pipe.incr("{t}a").execute()
        with pytest.raises(CrossSlotTransactionError):
            pipe.set("{t}a", 1).set("{u}a", 1).execute()
    redis_log.undo(plain, run)
    assert b"5" == plain.get("{t}a")
    plain.delete("{t}a")


def test_what_cannot_be_undone_is_refused(run, recorded):
    """One sentence, alone or in a pipeline, of which then nothing runs; what spans slots is redis-py's to refuse."""
    with pytest.raises(RecordingError, match="FLUSHALL empties databases that others use too"):
        recorded.flushall()
    pipe = recorded.pipeline().set("new", 1)
    pipe.execute_command("FUNCTION LOAD", "#!lua name=x\n")
    with pytest.raises(RecordingError, match="a test run refuses what it cannot undo"):
        pipe.execute()
    with pytest.raises(RedisClusterException, match="same key slot"):
        recorded.rename("string", "number")


async def test_asynchronous_clients_record_too(run, valkey, plain):
    """Single commands, pipelines and writes over slots, transactions, scripts and pops that wait."""
    there = AsyncRecordedCluster.from_url(address(valkey))
    assert (True, 2, 1) == (await there.set("string", 1), await there.incr("string"), await there.delete("hash"))
    pipe = there.pipeline()
    for each in range(50):
        pipe.set(f"new {each}", each)
    pipe.get("new 7").zpopmin("sorted").mset_nonatomic({"a": 1, "b": 2}).lpush("string", 1)
    value, popped, *_, refused = (await pipe.execute(raise_on_error=False))[50:]
    assert (b"7", b"member 0", ResponseError) == (value, popped[0][0], type(refused))
    with pytest.raises(ResponseError, match="Command # 1"):
        await there.pipeline().lpush("string", 1).execute()
    async with there.pipeline(transaction=True) as pipe:
        await pipe.watch("{t}a")
        await pipe.set("{t}new", 1)
        pipe.multi()
        pipe.set("{t}a", 1)
        pipe.zadd("{t}z", {"a": 1})
        assert [True, 1] == await pipe.execute()
    assert await there.eval("return redis.call('DEL', KEYS[1])", 1, "set")
    plain.rpush("{q}", "job")
    assert (b"{q}", b"job") == tuple(await there.blpop(["{q}"], timeout=10))
    await there.aclose()
    redis_log.undo(plain, run)
    assert [b"job"] == plain.lrange("{q}", 0, -1)
    plain.delete("{q}")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEPS, max_size=14), backwards=st.booleans())
def test_whoever_ends_first_all_is_as_it_was(plain, recorded, steps, backwards):
    """Three runs that overlap end in any order, with tests in the middle of each other's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(label.VARIABLE, "0")
        whoever_ends_first.hypothesis.inner_test(plain, recorded, steps, backwards)


def test_a_test_looks_only_where_it_wrote(run, recorded, plain):
    """What is undone of a test closes its slots again; those of the run itself stay open, until its end."""
    recorded.set("of the run", 1)
    for number in range(3):
        since = redis_log.mark(plain, run)
        recorded.mset_nonatomic({f"new {each}": number for each in range(20)})
        recorded.incr("of the run")
        assert 21 == plain.hlen("helios:undo:{log}:7:slots")
        redis_log.undo(plain, run, since)
        assert (1, b"1", 0) == (plain.hlen("helios:undo:{log}:7:slots"), plain.get("of the run"), plain.exists("new 1"))


def test_a_process_that_opens_a_slot_while_its_run_ends_writes_nothing(run, recorded, plain, monkeypatch):
    """Between the registering of a slot and its opening the run is closed: no log is left there."""
    monkeypatch.setenv(label.VARIABLE, "8")
    redis_log.begin(plain, 8, "here")
    steps = opening(8, [key_slot(b"string")])
    registered = plain.execute_command(*next(steps))
    redis_log.undo(plain, 8)
    assert 0 == redis_log.close(plain, 8)
    plain.execute_command(*steps.send(registered))
    again = plain.execute_command(*steps.send(0))
    plain.execute_command(*steps.send(again))
    with pytest.raises(StopIteration, match="False"):
        steps.send(0)
    assert [] == [each for each in plain.keys("helios:undo:*") if b":8" in each]


def test_a_slot_that_is_closed_as_soon_as_it_is_open(run, recorded, plain, monkeypatch):
    """An undo between the opening and the write costs another opening; the write is there, and recorded."""
    opened, undone = recorded.open_logs, []

    def open_and_close(run, slots):
        going_on = opened(run, slots)
        undone.append(redis_log.undo(plain, run))
        return going_on if len(undone) < 3 else opened(run, slots)

    monkeypatch.setattr(recorded, "open_logs", open_and_close)
    assert recorded.set("new", 1)
    assert (3, b"1") == (len(undone), plain.get("new"))


def test_a_slot_that_moves_takes_its_log_along(run, recorded, plain, nodes):
    """On its way a key that is not there yet is refused in words; arrived, everything is undone where it is then."""
    slot = key_slot(b"string")
    recorded.set("string", 1)
    old = nodes.master_of(slot)
    to = next(each for each in nodes.masters if each is not old)
    for _ in nodes.move_slot(slot, to):
        for words in (("SET", "{string}new", 1), ("ZPOPMIN", "{string}new")):
            with pytest.raises(RecordingError, match="slot 383 is just being moved"):
                recorded.execute_command(*words)
        refused, fine = recorded.pipeline().set("{string}new", 1).set("new", 1).execute(raise_on_error=False)
        assert (RecordingError, True) == (type(refused), fine)
        assert 0 == plain.exists("{string}new")
    assert recorded.append("string", "x")
    redis_log.undo(plain, run)
    assert b"\x00\xff" == plain.get("string")
    for _ in nodes.move_slot(slot, old):
        pass


def test_a_neighbours_keys_are_told(run, recorded, keys, plain):
    """On every master, by name; what labelled clients write is not, nor mirrors."""
    names = {f"key {each}" for each in range(12)}
    for name in names:
        recorded.set(f"own {name}", 1)
        plain.set(name, 1)
    plain.set("helios:trading.helios_trading:{0}:tickers:1", 1)
    recorded.zadd("z", {"a": 1})
    recorded.zpopmin("z")
    assert names == keys.report().what.keys()
    keys.begin()
    assert keys.report() is None
    plain.delete(*names, "helios:trading.helios_trading:{0}:tickers:1")


def test_a_user_who_may_not_write_the_log_writes_nothing(free_run, valkey, plain, nodes):
    """The sentence says what the user needs; with it, the user's own limits hold as ever."""
    may = ["~app:*", "~helios:undo:*", "+@read", "+@connection", "+@scripting", "+@transaction", "+command", "+cluster"]
    may += ["+set", "+dump", "+hset", "+incr", "+select"]
    made = None
    for more in ([], ["+hdel", "+hincrby", "+hsetnx", "+unlink"]):
        for each in nodes.nodes:
            each.ask("ACL", "SETUSER", "bot", "reset", "on", "nopass", *may, *more)
        made = recording_client(valkey, username="bot", password="any")  # noqa: S106 - the user has none
        if not more:
            with pytest.raises(RecordingError, match=r"may not record .* on a Redis Cluster also \+hdel"):
                made.set("app:1", 1)
    assert made.set("app:1", 1)
    with pytest.raises(NoPermissionError):
        made.set("string", 1)
    made.close()
    redis_log.undo(plain, free_run)
    assert (0, b"\x00\xff", 0) == (plain.exists("app:1"), plain.get("string"), redis_log.close(plain, free_run))
    for each in nodes.nodes:
        each.ask("ACL", "DELUSER", "bot")


@pytest.fixture
def mended(nodes):
    """Afterwards all six nodes serve again."""
    yield nodes
    nodes.settle()


def test_a_lost_master_of_which_nothing_was_lost(mended, free_run, recorded, plain, keys):
    """Its replica has the images too: all comes back, and the audit says what it could not hear."""
    before = redis_log.digest(plain)
    since = redis_log.mark(plain, free_run)
    for each in range(60):
        recorded.set(f"new {each}", each)
    recorded.delete("string", "hash")
    wait_for_replicas(mended)
    mended.fail_over(key_slot(b"string"))
    assert recorded.set("string", "after")
    assert "was lost" in keys.report().blind
    redis_log.undo(plain, free_run, since)
    assert before == redis_log.digest(plain)
    assert ([], 0) == (redis_log.undo(plain, free_run), redis_log.close(plain, free_run))
    keys.begin()
    assert keys.report() is None


def wait_for_replicas(nodes):
    """Have every replica hold what its master holds."""
    for each in nodes.masters:
        each.ask("SET", f"helios:undo:{tag(own_slot(each))}:waited", 1)
        assert each.ask("WAIT", 1, 5000)
        each.ask("DEL", f"helios:undo:{tag(own_slot(each))}:waited")
        assert each.ask("WAIT", 1, 5000)


def own_slot(node):
    own = next(line for line in node.nodes() if "myself" in line[2])
    return int(own[8].split("-")[0])


either_master = pytest.mark.parametrize(
    "key", [b"string", b"helios:undo:{log}:runs"], ids=["of what was written", "of the run's state"]
)


@either_master
def test_a_lost_master_whose_last_moments_are_lost(key, mended, free_run, recorded, plain):
    """What an undo had taken back is there again, with its images: the next look finds and undoes it."""
    before = redis_log.digest(plain)
    recorded.set("number", "of the run")
    recorded.set("string", "of the run")
    wait_for_replicas(mended)
    slot = key_slot(key)
    replica = replica_of(mended, slot)
    replica.ask("CONFIG", "SET", "masterauth", "refused")
    mended.master_of(slot).ask("CLIENT", "KILL", "TYPE", "REPLICA")
    recorded.set("{log} new", 1)
    recorded.set("a", 1)
    if key == b"string":
        redis_log.undo(plain, free_run)
        redis_log.close(plain, free_run)
    mended.kill_master(slot)
    until(lambda: replica.slots and replica.well(len(mended.nodes)), "a failover")
    replica.ask("CONFIG", "SET", "masterauth", "")
    assert [free_run] == redis_log.runs(plain, "here")
    redis_log.undo(plain, free_run)
    assert 0 == redis_log.close(plain, free_run)
    assert (before, []) == (redis_log.digest(plain), plain.keys("helios:undo:*"))


@either_master
@pytest.mark.parametrize("ask", [redis_log.undo, redis_log.runs, redis_log.digest], ids=["undo", "runs", "digest"])
def test_a_failover_is_waited_for(ask, key, mended, free_run, recorded, plain):
    """Its first question finds the master dead and no other in its place."""
    recorded.set("string", "of the run")
    wait_for_replicas(mended)
    mended.kill_master(key_slot(key))
    ask(plain, *{redis_log.undo: (free_run,), redis_log.runs: ("here",), redis_log.digest: ()}[ask])
    redis_log.undo(plain, free_run)
    assert (0, None) == (redis_log.close(plain, free_run), plain.get("new"))


def test_slots_that_nobody_serves_are_said(mended, free_run, recorded, plain, monkeypatch):
    """Neither undo nor digest passes over them; when they are served again, the undo can be run again."""
    monkeypatch.setattr("helios.testing.redis_log.places.PATIENCE", 0.5)
    recorded.set("string", "of the run")
    slot = key_slot(b"string")
    replica_of(mended, slot).kill()
    mended.kill_master(slot)
    for ask in (lambda: redis_log.undo(plain, free_run), lambda: redis_log.digest(plain)):
        with pytest.raises(UnreachableError, match="Redis said"), reaching_redis():
            ask()
    mended.settle()
    redis_log.undo(plain, free_run)
    assert 0 == redis_log.close(plain, free_run)


def replica_of(nodes, slot):
    master = nodes.master_of(slot).id
    return next(each for each in nodes.nodes if any("myself" in line[2] and line[3] == master for line in each.nodes()))
