"""The undo log in Redis: what labelled clients write is taken back, exactly, and nobody else's."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
import uuid

import pytest
import redis as redis_py
from installation import ROOT
from own_servers import CHOSEN, client, end
from redis.exceptions import NoPermissionError, OutOfMemoryError, ResponseError, WatchError

from helios import label, servers
from helios.errors import RecordingError
from helios.label import commands, recording
from helios.label.async_clients import AsyncRecordedRedis
from helios.label.clients import RecordedRedis
from helios.testing import redis_log
from helios.testing.redis_log import log

LONG = 5000  # bytes: more than a fingerprint reads


@pytest.fixture
def plain(valkey):
    """A neighbour: a plain client of a Redis that holds one key of every kind."""
    neighbour = client(valkey)
    neighbour.flushall()
    furnish(neighbour)
    yield neighbour
    neighbour.flushall()
    neighbour.close()


def furnish(neighbour):
    neighbour.set("string", b"\x00\xff")
    neighbour.set("number", 41)
    neighbour.set("expiring", "v", pxat=4102444800000)
    neighbour.rpush("list", *range(5))
    neighbour.rpush("long list", *["x" * 100] * 200)
    neighbour.sadd("numbers", 1, 2, 3)
    neighbour.sadd("small set", "a", "b")
    neighbour.sadd("set", *[f"member {each}" for each in range(300)])
    neighbour.zadd("small sorted", {"a": 1.5, "b": 2})
    neighbour.zadd("sorted", {f"member {each}": each / 7 for each in range(300)})
    neighbour.hset("small hash", mapping={"a": 1, "b": 2})
    neighbour.hset("hash", mapping={f"field {each}": "x" * 70 for each in range(300)})
    neighbour.hset("lapsing", mapping={"a": 1, "b": 2})
    neighbour.execute_command("HPEXPIREAT", "lapsing", 4102444800000, "FIELDS", 1, "a")
    neighbour.xadd("stream", {"a": 1}, id="1-1")
    neighbour.xgroup_create("stream", "group", 0)
    neighbour.pfadd("counter", *range(100))
    neighbour.geoadd("places", (13.4, 52.5, "Berlin"))
    neighbour.set(b"\xff\x00 bytes", "v")


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
    made = RecordedRedis.from_url(valkey.render_as_string(hide_password=False), protocol=protocol)
    yield made
    made.close()


@pytest.fixture
def asynchronous(valkey):
    """A labelled asynchronous client."""
    return AsyncRecordedRedis.from_url(valkey.render_as_string(hide_password=False))


WRITES = {
    "SET": ("SET", "string", "new"),
    "SET that expires": ("SET", "number", "new", "EX", 100),
    "SET where the expiry is lost": ("SET", "expiring", "new"),
    "GETEX": ("GETEX", "string", "EX", 100),
    "PERSIST": ("PERSIST", "expiring"),
    "EXPIRE": ("EXPIRE", "sorted", 100),
    "PEXPIREAT in the past": ("PEXPIREAT", "hash", 1),
    "APPEND": ("APPEND", "string", "x"),
    "SETRANGE": ("SETRANGE", "string", 10, "x"),
    "SETBIT": ("SETBIT", "string", 77, 1),
    "BITFIELD": ("BITFIELD", "string", "SET", "u8", 0, 7),
    "BITOP": ("BITOP", "NOT", "number", "string"),
    "INCRBYFLOAT": ("INCRBYFLOAT", "number", "0.5"),
    "DEL": ("DEL", "list", "set", "nothing"),
    "UNLINK": ("UNLINK", "hash"),
    "GETDEL": ("GETDEL", "string"),
    "RENAME": ("RENAME", "stream", "string"),
    "COPY": ("COPY", "hash", "string", "REPLACE"),
    "MSET": ("MSET", "string", 1, "new", 2),
    "RESTORE": ("RESTORE", "string", 0, b"\x00\xc0\x01P\x00O\x0c\xed\x9b\xa2\x8b\xb2\xbf", "REPLACE"),
    "LPOP of several": ("LPOP", "list", 2),
    "LTRIM": ("LTRIM", "long list", 0, 3),
    "LMOVE": ("LMOVE", "list", "long list", "LEFT", "RIGHT"),
    "LMPOP": ("LMPOP", 2, "nothing", "list", "LEFT"),
    "BLPOP": ("BLPOP", "nothing", "list", 1),
    "BRPOP that waits in vain": ("BRPOP", "nothing", "0.02"),
    "BLMOVE": ("BLMOVE", "list", "new", "LEFT", "LEFT", 1),
    "BLMPOP": ("BLMPOP", 1, 1, "list", "LEFT"),
    "BZPOPMIN": ("BZPOPMIN", "sorted", 1),
    "BZMPOP": ("BZMPOP", 1, 1, "sorted", "MAX"),
    "SORT ... STORE": ("SORT", "numbers", "BY", "weight_*", "STORE", "string"),
    "SPOP": ("SPOP", "set"),
    "SMOVE": ("SMOVE", "small set", "set", "a"),
    "SUNIONSTORE": ("SUNIONSTORE", "new", "set", "small set"),
    "ZADD": ("ZADD", "sorted", "GT", 400, "member 1"),
    "ZADD INCR": ("ZADD", "sorted", "INCR", 400, "member 1"),
    "ZINCRBY": ("ZINCRBY", "small sorted", 1, "a"),
    "ZPOPMAX": ("ZPOPMAX", "sorted", 2),
    "ZUNIONSTORE": ("ZUNIONSTORE", "string", 2, "sorted", "small sorted"),
    "ZRANGESTORE": ("ZRANGESTORE", "string", "sorted", 0, 1),
    "HSET": ("HSET", "hash", "field 1", "y"),
    "HDEL": ("HDEL", "small hash", "a", "b"),
    "HINCRBYFLOAT": ("HINCRBYFLOAT", "small hash", "a", "0.5"),
    "HEXPIRE": ("HEXPIRE", "hash", 100, "FIELDS", 1, "field 1"),
    "HPERSIST": ("HPERSIST", "lapsing", "FIELDS", 1, "a"),
    "HGETEX": ("HGETEX", "lapsing", "EX", 100, "FIELDS", 2, "a", "nothing"),
    "HSETEX": ("HSETEX", "lapsing", "EX", 100, "FIELDS", 1, "b", "c"),
    "XADD": ("XADD", "stream", "*", "a", 2),
    "XTRIM": ("XTRIM", "stream", "MAXLEN", 0),
    "XGROUP CREATE": ("XGROUP", "CREATE", "stream", "other", "$"),
    "XGROUP CREATE in one word": ("XGROUP CREATE", "stream", "other", "$"),
    "XREADGROUP": ("XREADGROUP", "GROUP", "group", "me", "COUNT", 1, "STREAMS", "stream", ">"),
    "XREADGROUP BLOCK": ("XREADGROUP", "GROUP", "group", "me", "BLOCK", 20, "STREAMS", "stream", ">"),
    "XCLAIM": ("XCLAIM", "stream", "group", "me", 0, "1-1", "FORCE"),
    "XAUTOCLAIM": ("XAUTOCLAIM", "stream", "group", "me", 0, "0"),
    "PFADD": ("PFADD", "counter", "x", "y", "z"),
    "PFMERGE": ("PFMERGE", "string2", "counter"),
    "GEOADD": ("GEOADD", "places", 2.3, 48.8, "Paris"),
    "GEORADIUS ... STORE": ("GEORADIUS", "places", 13, 52, 100, "km", "STORE", "string"),
    "GEOSEARCHSTORE": ("GEOSEARCHSTORE", "string", "places", "FROMLONLAT", 13, 52, "BYRADIUS", 100, "km"),
    "EVAL": ("EVAL", "redis.call('SET', KEYS[1], ARGV[1]) return {1, 'two'}", 1, "string", "x"),
    "bytes": ("SET", b"\xff\x00 bytes", b"\x00"),
    "a command in small letters": ("set", "string", "x"),
}


@pytest.mark.parametrize("words", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("protocol", [2, 3])
def test_each_kind_of_write_comes_back(words, protocol, valkey, plain, run, recorded, monkeypatch):
    """The reply is redis-py's own, the write is there, and what was there before comes back with type and expiry."""
    monkeypatch.delenv(label.VARIABLE)
    ordinary = redis_py.Redis.from_url(
        valkey.render_as_string(hide_password=False),
        protocol=recorded.connection_pool.connection_kwargs.get("protocol"),
    )
    before = redis_log.digest(plain)
    expected = outcome(ordinary, words)
    written = redis_log.digest(plain)
    plain.flushall()
    furnish(plain)
    redis_log.begin(plain, 7, "here")
    monkeypatch.setenv(label.VARIABLE, "7")
    assert comparable(words, expected) == comparable(words, outcome(recorded, words))
    now = redis_log.digest(plain)
    changed = {name for name in before.keys() | written.keys() if before.get(name) != written.get(name)}
    assert changed == {name for name in before.keys() | now.keys() if before.get(name) != now.get(name)}
    redis_log.undo(plain, run)
    assert before == redis_log.digest(plain)
    ordinary.close()


def outcome(made, words):
    try:
        return made.execute_command(*words)
    except (ResponseError, ValueError) as error:  # redis-py itself stumbles over ZADD INCR
        return type(error), str(error)


def comparable(words, answer):
    """What of an answer does not depend on chance or on the clock."""
    if words[0] in {"XADD", "SPOP"}:
        return type(answer)
    if words[0] in {"XGROUP CREATE", "XGROUP"}:
        return bool(answer)
    return answer


def test_errors_are_the_servers_own(run, recorded):
    """A write that fails says what it says without a label."""
    with pytest.raises(ResponseError, match=r"^WRONGTYPE Operation against a key holding the wrong kind of value$"):
        recorded.lpush("string", 1)
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        recorded.zpopmin("string")
    with pytest.raises(ResponseError, match="not an integer"):
        recorded.incr("string")
    with pytest.raises(ResponseError, match="unknown command"):
        recorded.execute_command("NOSUCH", "string")


def test_a_pipeline_comes_back(run, recorded, plain):
    """A transaction or not, quick commands or any, reads in between; replies and errors as redis-py gives them."""
    for transaction in (True, False):
        for more in (False, True):
            pipe = recorded.pipeline(transaction=transaction)
            pipe.set("string", "1").incr("string").get("string").hset("new", mapping={"a": 1}).lpush("string", 1)
            if more:
                pipe.hgetall("new").zpopmin("small sorted")
            *replies, error = pipe.execute(raise_on_error=False)[:5]
            assert [True, 2, b"2", 1] == replies
            assert isinstance(error, ResponseError)
            assert not pipe.command_stack
            redis_log.undo(plain, run)
    with pytest.raises(ResponseError, match="Command # 2"):
        recorded.pipeline().set("string", 1).lpush("string", 1).execute()


def test_a_long_pipeline_that_is_no_transaction_runs_in_parts(run, recorded):
    """Neighbours get their turn in between; the replies come in order."""
    pipe = recorded.pipeline(transaction=False)
    for each in range(1234):
        pipe.set(f"new {each}", each)
        pipe.get(f"new {each}")
    assert [True, b"0", True, b"1"] == (replies := pipe.execute())[:4]
    assert (2468, b"1233") == (len(replies), replies[-1])


def test_watch_works_as_ever(run, recorded, plain):
    """A transaction whose watched key was touched does not run; one that was not, does, and is undone."""
    for write in (lambda pipe: pipe.set("number", 1), lambda pipe: pipe.zpopmin("small sorted")):
        with recorded.pipeline() as pipe:
            pipe.watch("string")
            assert b"\x00\xff" == pipe.get("string")
            pipe.multi()
            write(pipe)
            plain.set("string", b"\x00\xff")
            with pytest.raises(WatchError):
                pipe.execute()
            assert b"41" == plain.get("number")
            pipe.watch("string")
            pipe.set("new", 1)  # between WATCH and MULTI
            pipe.multi()
            write(pipe)
            assert 1 == len(pipe.execute())
        redis_log.undo(plain, run)
    assert [True] == recorded.transaction(lambda pipe: pipe.multi() or pipe.set("number", 3), "string")


def test_between_watch_and_multi_only_what_can_be_recorded(run, recorded):
    """Anything that would need a MULTI of its own is refused, in words."""
    with recorded.pipeline() as pipe:
        pipe.watch("string")
        with pytest.raises(RecordingError, match=r"ZPOPMIN between WATCH and MULTI .* call it after multi"):
            pipe.zpopmin("sorted")


def test_scripts_and_functions_with_declared_keys_come_back(run, recorded, plain):
    """EVALSHA of a script the server has forgotten, a registered script, in a pipeline too, and a function."""
    script = recorded.register_script("return redis.call('APPEND', KEYS[1], ARGV[1])")
    plain.script_flush()
    assert 3 == script(keys=["string"], args=["x"])
    pipe = recorded.pipeline()
    script(keys=["string"], args=["y"], client=pipe)
    assert [4] == pipe.execute()
    plain.function_load(
        "#!lua name=kit\nredis.register_function('kit', function(k) return redis.call('DEL', k[1]) end)"
    )
    assert 1 == recorded.fcall("kit", 1, "hash")
    plain.function_delete("kit")
    plain.script_flush()
    assert recorded.set("number", 5)
    plain.script_flush()
    assert [True, True] == recorded.pipeline().set("number", 6).set("new", 7).execute()


def test_a_server_that_forgets_scripts_all_the_time(run, recorded, plain, monkeypatch):
    """Each is sent whole then, and what the run left is noted all the same."""
    monkeypatch.setattr(recording, "RECORD_SHA", "0" * 40)
    recorded.zpopmin("sorted")
    recorded.zpopmin("sorted")
    recorded.pipeline().set("new", 1).zpopmin("small sorted").execute()
    assert "kept" not in {each.what for each in redis_log.undo(plain, run)}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("FLUSHDB",), "FLUSHDB empties a database that others use too"),
        (("FLUSHALL", "ASYNC"), "FLUSHALL empties"),
        (("SWAPDB", 0, 1), "SWAPDB swaps"),
        (("MOVE", "string", 1), "MOVE moves a key to another database"),
        (("COPY", "string", "new", "DB", 1), "COPY ... DB moves"),
        (("MIGRATE", "h", 1, "string", 0, 1), "MIGRATE moves keys to another server"),
        (("SELECT", 1), "SELECT changes the database"),
        (("FUNCTION", "FLUSH"), "FUNCTION FLUSH names no keys"),
        (("FUNCTION LOAD", "#!lua name=x\n"), "FUNCTION LOAD names no keys"),
    ],
    ids=str,
)
def test_what_cannot_be_undone_is_refused(words, said, run, recorded):
    """One sentence, alone or in a pipeline, of which then nothing runs."""
    with pytest.raises(RecordingError, match=said.replace(".", r"\.")):
        recorded.execute_command(*words)
    pipe = recorded.pipeline()
    pipe.set("new", 1)
    pipe.execute_command(*words)
    with pytest.raises(RecordingError, match="a test run refuses what it cannot undo"):
        pipe.execute()


def test_a_pop_waits_for_a_neighbour(run, recorded, plain):
    """A blocking pop gets what is pushed while it waits, and gives it back to the list at the end."""
    pushed = threading.Timer(0.05, lambda: plain.rpush("queue", "job"))
    pushed.start()
    assert (b"queue", b"job") == tuple(recorded.blpop(["other", "queue"], timeout=10))
    pushed.join()
    redis_log.undo(plain, run)
    assert [b"job"] == plain.lrange("queue", 0, -1)
    plain.delete("queue")


async def test_asynchronous_clients_record_too(run, asynchronous, plain):
    """Single commands, pipelines, scripts, transactions and blocking pops."""
    assert await asynchronous.set("string", 1)
    assert 2 == await asynchronous.incr("string")
    assert [(b"a", 1.5)] == [tuple(each) for each in await asynchronous.zpopmin("small sorted")]
    async with asynchronous.pipeline() as pipe:
        assert [True, b"x", {b"b": b"2"}] == await pipe.set("new", "x").get("new").hdel("small hash", "a").hgetall(
            "small hash"
        ).execute(raise_on_error=False) or True
    async with asynchronous.pipeline(transaction=False) as pipe:
        for each in range(600):
            pipe.set(f"new {each}", each)
        assert [True] * 600 == await pipe.execute()
    async with asynchronous.pipeline() as pipe:
        await pipe.watch("string")
        await pipe.set("new", 2)
        pipe.multi()
        pipe.delete("hash")
        assert [1] == await pipe.execute()
    script = asynchronous.register_script("return redis.call('DEL', KEYS[1])")
    assert 1 == await script(keys=["set"])
    waiting = asyncio.create_task(asynchronous.blpop("queue", timeout=10))
    await asyncio.sleep(0)
    plain.rpush("queue", "job")
    assert [b"queue", b"job"] == list(await waiting)
    plain.delete("queue")
    with pytest.raises(RecordingError, match="FLUSHDB"):
        await asynchronous.flushdb()
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await asynchronous.lpush("string", 1)
    plain.script_flush()
    assert await asynchronous.set("number", 3)
    redis_log.undo(plain, run)
    plain.delete("queue")
    await asynchronous.aclose()


def test_answers_can_be_text(valkey, run):
    """`decode_responses` decodes what the caller gets, and spoils no image."""
    decoding = RecordedRedis.from_url(valkey.render_as_string(hide_password=False), decode_responses=True)
    decoding.set("new", "1")
    assert "1" == decoding.getdel("new")
    assert ["0", "1"] == decoding.lpop("list", 2)
    assert [("member 0", 0.0)] == [tuple(each) for each in decoding.zpopmin("sorted")]
    assert [True, "x"] == decoding.pipeline().set("new", "x").get("new").execute()
    decoding.set("string", "x")
    decoding.close()


def test_other_databases_than_the_first(valkey, plain, run, recorded):
    """Keys of the same name in several databases are kept apart; the log stands in the first."""
    url = valkey.update_query_dict({"db": "3"}).render_as_string(hide_password=False)
    neighbour, third = redis_py.Redis.from_url(url), RecordedRedis.from_url(url)
    neighbour.set("string", "third")
    third.set("string", 1)
    third.zadd("new", {"a": 1})
    third.zpopmin("new")
    third.pipeline().set("number", 2).append("string", 1).execute()
    recorded.set("string", 0)
    assert [] == neighbour.keys("helios:*")
    redis_log.undo(neighbour, run)
    assert (b"third", [b"string"]) == (neighbour.get("string"), neighbour.keys())
    neighbour.delete("string")
    third.close()
    neighbour.close()


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


def until(reached):
    end = time.monotonic() + 10
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.mark.parametrize("first", [7, 8])
def test_of_two_overlapping_runs_either_may_end_first(first, plain, valkey, monkeypatch):
    """The later run takes over what the earlier one found, so that in the end both are gone."""
    before = redis_log.digest(plain)
    redis_log.begin(plain, 7, "here")
    redis_log.begin(plain, 8, "there")
    made = RecordedRedis.from_url(valkey.render_as_string(hide_password=False))
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
    made = RecordedRedis.from_url(valkey.render_as_string(hide_password=False))
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

    def interrupted(*arguments):
        batches.append(batch(*arguments))
        if len(batches) == 1:
            plain.mset(dict.fromkeys(names, "neighbour"))
            redis_log.mark(plain, free_run)
            recorded.mset(dict.fromkeys(names, "run again"))
        return batches[-1]

    monkeypatch.setattr(log.UNDO, "run", interrupted)
    redis_log.undo(plain, free_run)
    assert {b"neighbour"} == set(plain.mget(names))
    assert 0 == redis_log.close(plain, free_run)


def test_a_server_that_evicts_or_is_old_is_refused(plain):
    """The log would go with what is evicted."""
    plain.config_set("maxmemory", "1gb")
    plain.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(RecordingError, match="evicts any key when it is full"):
            redis_log.begin(plain, 7, "here")
    finally:
        plain.config_set("maxmemory-policy", "noeviction")
        plain.config_set("maxmemory", "0")
    from helios.testing.redis_log.log import refuse_unfit  # noqa: PLC0415 - shown what no server here says

    with pytest.raises(RecordingError, match=r"this Redis is 6\.2\.1, too old"):
        refuse_unfit({"redis_version": "6.2.1"})


def test_a_full_redis_writes_nothing_unrecorded(free_run, recorded, plain):
    """Where no image can be saved, the write fails too; an undo is not refused."""
    recorded.set("number", 1)
    plain.config_set("maxmemory", "1mb")
    try:
        with pytest.raises(OutOfMemoryError):
            recorded.delete("string")
        with pytest.raises(OutOfMemoryError):
            recorded.zpopmin("sorted")
        redis_log.undo(plain, free_run)
    finally:
        plain.config_set("maxmemory", "0")
    assert (b"\x00\xff", 300, b"41") == (plain.get("string"), plain.zcard("sorted"), plain.get("number"))


def test_a_user_who_may_not_write_the_log_writes_nothing(valkey, free_run, plain):
    """The sentence says what the user needs; with it, the user's own limits hold as ever."""
    plain.acl_setuser("bot", enabled=True, nopass=True, keys=["app:*"], categories=["+@all"])
    url = valkey.render_as_string(hide_password=False)
    made = RecordedRedis.from_url(url, username="bot", password="any")  # noqa: S106 - the user has none
    with pytest.raises(RecordingError, match="~helios:undo:"):
        made.set("app:1", 1)
    plain.acl_setuser("bot", enabled=True, nopass=True, keys=["app:*", "helios:undo:*"], categories=["+@all"])
    made.set("app:1", 1)
    with pytest.raises(NoPermissionError):
        made.set("string", 1)
    made.close()
    redis_log.undo(plain, free_run)
    assert (0, b"\x00\xff") == (plain.exists("app:1"), plain.get("string"))
    plain.acl_deluser("bot")


def test_unlabelled_it_is_redis_py(plain, recorded):
    """Without a label the server sees the very commands, FLUSHDB among them."""
    plain.config_resetstat()
    recorded.set("string", 1)
    recorded.pipeline().set("number", 2).execute()
    recorded.zpopmin("sorted")
    seen = plain.info("commandstats")
    assert {"cmdstat_set", "cmdstat_multi", "cmdstat_zpopmin"} <= seen.keys()
    assert not {"cmdstat_evalsha", "cmdstat_command|info", "cmdstat_hset"} & seen.keys()


def test_the_server_tells_what_a_command_writes(valkey, plain, run, recorded):
    """Nothing but the commands used was asked for, once."""
    commands.CATALOGUES.clear()
    plain.config_resetstat()
    for _ in range(3):
        recorded.set("string", 1)
        recorded.get("string")
    assert 2 == plain.info("commandstats")["cmdstat_command|info"]["calls"]


def test_a_server_that_starts_again_changes_nothing(own_home, monkeypatch):
    """It stores what it reads in another order; the run's own keys are still told from a neighbour's."""
    server = servers.Valkey(
        own_home, binaries=CHOSEN.helios_redis_bin, durable=False, options={"enable-debug-command": "yes"}
    )
    url = server.acquire()
    neighbour, made = client(url), RecordedRedis.from_url(url.render_as_string(hide_password=False))
    furnish(neighbour)
    before = redis_log.digest(neighbour)
    redis_log.begin(neighbour, 7, "here")
    monkeypatch.setenv(label.VARIABLE, "7")
    for name in neighbour.scan_iter():
        if not name.startswith(b"helios:"):
            made.execute_command("COPY", name, b"copy of " + name)
            made.expire(name, 1000)
    made.sadd("set", "one more")
    made.execute_command("DEBUG", "RELOAD")
    made.hset("hash", "field", 1)
    assert "kept" not in {each.what for each in redis_log.undo(neighbour, 7)}
    assert (0, before) == (redis_log.close(neighbour, 7), redis_log.digest(neighbour))
    neighbour.close()
    made.close()
    end(server)


WRITER = """
import sys, itertools
from helios.label.clients import RecordedRedis
made = RecordedRedis.from_url(sys.argv[1])
print("ready", flush=True)
for each in itertools.count():
    name = f"key {each % 50}"
    made.set(name, each)
    made.zadd("sorted", {name: each})
    made.zpopmin("sorted", 1)
    made.pipeline().delete("string").rpush("list", each).hset("hash", name, each).expire("set", 1000 + each).execute()
    made.pipeline().zpopmax("sorted").rename("list", "moved").rename("moved", "list").execute()
    made.set("string", each)
"""


def started(program, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, cwd=ROOT, env=os.environ
    )


def ended(process):
    process.kill()
    process.wait()
    process.stdout.close()


def test_killed_writers_are_undone(valkey, plain, run):
    """SIGKILL at any moment leaves a write with its image, or neither."""
    url = valkey.render_as_string(hide_password=False)
    before = redis_log.digest(plain)
    for delay in (0.0, 0.013, 0.031):
        writers = [started(WRITER, url) for _ in range(2)]
        for each in writers:
            assert b"ready\n" == each.stdout.readline()
        until(lambda: plain.exists("key 1"))
        time.sleep(delay)  # the moment of the kill is what varies
        for each in writers:
            ended(each)
        redis_log.undo(plain, run)
        assert before == redis_log.digest(plain)


UNDOER = """
import sys, redis
from helios.testing import redis_log
from helios.testing.redis_log import log
from helios.testing.redis_log import log
log.BATCH = 20
print("ready", flush=True)
redis_log.undo(redis.Redis.from_url(sys.argv[1]), 7)
"""


def test_a_killed_undo_is_run_again(valkey, plain, run, recorded):
    """SIGKILL between any two batches; the next undo does the rest."""
    before = redis_log.digest(plain)
    for left in (9900, 5000, 100):
        for first in range(0, 10000, 1000):
            pipe = recorded.pipeline(transaction=False)
            for each in range(first, first + 1000):
                pipe.set(f"new {each}", each)
            pipe.execute()
        recorded.set("string", "x")
        undoing = started(UNDOER, valkey.render_as_string(hide_password=False))
        assert b"ready\n" == undoing.stdout.readline()
        until(lambda left=left: plain.hlen("helios:undo:{log}:7:0") <= left)
        undoing.send_signal(signal.SIGSTOP)
        ended(undoing)
        redis_log.undo(plain, run)
        assert before == redis_log.digest(plain)


def test_equal_contents_have_equal_digests(plain):
    """Whatever the encoding: grown and shrunk, restored, or written in another order."""
    before = redis_log.digest(plain)
    for name in plain.scan_iter():
        expiry = plain.pexpiretime(name)
        plain.restore(name, max(expiry, 0), plain.dump(name), replace=True, absttl=expiry > 0)
    plain.sadd("small set", *range(1000))
    plain.srem("small set", *range(1000))
    plain.hset("small hash", mapping={str(each): "x" * 100 for each in range(1000)})
    plain.hdel("small hash", *[str(each) for each in range(1000)])
    plain.pfcount("counter")
    assert before == redis_log.digest(plain)


@pytest.mark.parametrize(
    "words",
    [
        ("SET", "string", "other"),
        ("RPUSH", "list", 9),
        ("LSET", "list", 0, 1),
        ("SADD", "set", "x"),
        ("ZINCRBY", "sorted", 0.001, "member 1"),
        ("HSET", "hash", "field 1", "y"),
        ("HPEXPIREAT", "lapsing", 4102444800001, "FIELDS", 1, "a"),
        ("PEXPIREAT", "expiring", 4102444800001),
        ("PERSIST", "expiring"),
        ("XADD", "stream", "*", "b", 1),
        ("XGROUP", "CREATECONSUMER", "stream", "group", "me"),
        ("XREADGROUP", "GROUP", "group", "me", "STREAMS", "stream", ">"),
        ("PFADD", "counter", "x", "y", "z"),
        ("DEL", "numbers"),
        ("SET", "new", 1),
    ],
    ids=str,
)
def test_any_difference_shows_in_the_digest(words, plain):
    """One changed element, expiry, consumer, key: the digest of exactly that key differs."""
    before = redis_log.digest(plain)
    plain.execute_command(*words)
    after = redis_log.digest(plain)
    name = words[2] if words[0] == "XGROUP" else "stream" if words[0] == "XREADGROUP" else words[1]
    assert {f"0:{name}"} == {each for each in before.keys() | after.keys() if before.get(each) != after.get(each)}


def test_large_keys_have_digests_too(plain):
    """Read in pages; the order of a list matters, that of a set does not."""
    members = [f"member {each}" for each in range(6000)]
    for name, order in (("one", members), ("two", members[::-1])):
        plain.sadd(f"set {name}", *order)
        plain.rpush(f"list {name}", *order)
        plain.zadd(f"sorted {name}", dict.fromkeys(order, 1))
        plain.hset(f"hash {name}", mapping=dict.fromkeys(order, 1))
    plain.hpexpireat("hash two", 4102444800000, "member 5")
    found = redis_log.digest(plain)
    assert (True, True) == tuple(found[f"0:{kind} one"] == found[f"0:{kind} two"] for kind in ("set", "sorted"))
    assert (False, False) == tuple(found[f"0:{kind} one"] == found[f"0:{kind} two"] for kind in ("list", "hash"))


def test_bookkeeping_is_no_part_of_the_digest(plain):
    """Neither the log's keys nor what is left out by prefix."""
    before = redis_log.digest(plain)
    redis_log.begin(plain, 7, "here")
    plain.set("helios:trading.helios_trading:{0}:tickers:1", uuid.uuid4().hex)
    assert before == redis_log.digest(plain, excluding=["helios:trading.helios_trading:"])
    redis_log.close(plain, 7)
