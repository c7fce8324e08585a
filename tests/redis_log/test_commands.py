"""Whatever a labelled client writes with comes back: commands, pipelines, transactions and scripts, sync and async."""

import asyncio
import threading

import pytest
import redis as redis_py
from own_servers import recording_client
from redis.exceptions import ResponseError, WatchError
from redis_keys import furnish

from helios import label
from helios.errors import RecordingError
from helios.label import commands, recording
from helios.label.clients import RecordedRedis
from helios.testing import redis_log

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


@pytest.mark.parametrize("client", ["one by one", "pipeline"])
def test_a_clients_own_encoding_is_kept(client, run, valkey, plain):
    """Text is written in the bytes that a client without a label would write."""
    labelled = recording_client(valkey, encoding="latin-1")
    for _ in range(2):  # the second time the command is known
        if client == "pipeline":
            labelled.pipeline().set("clé", "été").execute()
        else:
            labelled.set("clé", "été")
    assert "été".encode("latin-1") == plain.get("clé".encode("latin-1"))
    assert plain.get("clé") is None
    labelled.close()


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


@pytest.mark.parametrize(
    "keys", [["new", "newer"], ["number", "new"], ["new", "number"], ["string", "number"], ["new", "list"], ["list"]]
)
@pytest.mark.parametrize(
    "command", [("SET", "2"), ("SET", "2", "PX", 900000), ("SET", "2", "XX"), ("INCR",), ("APPEND", "0"), ("DEL",)]
)
@pytest.mark.parametrize("times", [1, 2])
def test_a_pipeline_of_one_command_on_many_keys(run, recorded, plain, keys, command, times):
    """New keys, known ones, others of another kind: replies and errors as redis-py gives them, and all comes back."""
    name, *words = command

    def run_all(there):
        for _ in range(times):
            pipe = there.pipeline(transaction=False)
            for key in keys:
                pipe.execute_command(name, key, *words)
            replies = pipe.execute(raise_on_error=False)
        return [str(each) if isinstance(each, Exception) else each for each in replies]

    recorded_replies = run_all(recorded)
    state = {key: plain.dump(key) for key in keys}
    redis_log.undo(plain, run)
    before = {key: (plain.dump(key), plain.pexpiretime(key)) for key in keys}
    assert recorded_replies == run_all(plain)
    assert state == {key: plain.dump(key) for key in keys}
    for key, (dump, expiry) in before.items():
        plain.delete(key)
        if dump is not None:
            plain.restore(key, max(expiry, 0), dump, absttl=expiry > 0)


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
    assert [True, True] == third.pipeline().set("number", 3).set("newer", 1).execute()
    recorded.set("string", 0)
    assert [] == neighbour.keys("helios:*")
    redis_log.undo(neighbour, run)
    assert (b"third", [b"string"]) == (neighbour.get("string"), neighbour.keys())
    neighbour.delete("string")
    third.close()
    neighbour.close()


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
